"""Mixtures of images: what is mixed, where to cut, and pasting."""

from mixfast.mix.boxes import boxes_around, boxes_of_area, boxes_within, sample_centres, sample_lam
from mixfast.mix.cutmix import paste
from mixfast.mix.mixture import SALIENCY_SHARE, Mixture, MixtureConfig, draw, mix, paste_in, place
from mixfast.mix.saliency import peaks, saliency_map
from mixfast.ops.views.reference import box_mask

__all__ = [
    "SALIENCY_SHARE",
    "Mixture",
    "MixtureConfig",
    "box_mask",
    "boxes_around",
    "boxes_of_area",
    "boxes_within",
    "draw",
    "mix",
    "paste",
    "paste_in",
    "peaks",
    "place",
    "saliency_map",
    "sample_centres",
    "sample_lam",
]
