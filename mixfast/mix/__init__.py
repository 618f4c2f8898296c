"""Mixtures of images: where to cut, and pasting."""

from mixfast.mix.boxes import sample_boxes
from mixfast.mix.cutmix import box_mask, paste

__all__ = ["box_mask", "paste", "sample_boxes"]
