"""Mixtures of images: what is mixed, where to cut, and pasting."""

from mixfast.mix.boxes import boxes_around, sample_centres, sample_lam
from mixfast.mix.cutmix import paste
from mixfast.mix.mixture import Mixture, MixtureConfig, UnMixConfig, draw, mix, paste_in, place
from mixfast.mix.saliency import peaks, saliency_map
from mixfast.ops.views.reference import box_mask

__all__ = [
    "Mixture",
    "MixtureConfig",
    "UnMixConfig",
    "box_mask",
    "boxes_around",
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
