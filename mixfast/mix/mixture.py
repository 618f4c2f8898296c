"""Mixtures of two batches of images: the one place where methods decide what is mixed, where, and how much.

    kind       mixture                                      lam, the base's share
    cutmix     base outside a random box, donor inside      share of the pixels outside
    saliency   as cutmix, but the box is around the         as cutmix; 1 for a batch that stays unmixed,
               donor's salient pixel                        which half of them do
    mixup      lam0 base + (1 - lam0) donor                 lam0
    none       base                                         1

Sources: CutMix, Yun et al. 2019; SaliencyMix, Uddin et al. 2021; mixup, Zhang et al. 2018. Un-Mix (Shen et al. 2022)
mixes whole images in a share `p_global` of the steps and regions in the others.
"""

from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from mixfast.mix.boxes import boxes_around, sample_centres, sample_lam
from mixfast.mix.saliency import peaks
from mixfast.ops import mix_views
from mixfast.ranges import Positive, check_ranges
from mixfast.world import current

# Share of the steps that kind "saliency" mixes, as in SaliencyMix; the others stay unmixed.
SALIENCY_SHARE = 0.5


@dataclass(frozen=True)
class MixtureConfig:
    """Options that every method with mixtures has."""

    mixture: Literal["cutmix", "mixup", "saliency", "none"] = "cutmix"  # patch, whole images, salient patch, nothing
    alpha: Positive = 1.0  # lam0 ~ Beta(alpha, alpha) is the base image's share; 1 is uniform
    box_per_sample: bool = False  # a lam0 and a box for every image instead of one for the batch

    def __post_init__(self) -> None:
        check_ranges(self, "method")


class Mixture(NamedTuple):
    """B mixed images. In a mixture of x with x.flip(0), row N-1-i holds image i with share 1 - lam of that row."""

    images: Tensor  # [B, 3, H, W]
    boxes: Tensor  # int64 [B, 4] (x0, y0, x1, y1), half-open: where the donor shows; zeros where it has no box
    lam: Tensor  # float32 [B], share of the base


class Draw(NamedTuple):
    """Everything drawn for a step except box positions."""

    lam0: Tensor  # float32 [1] or [B], share of the base before a box is clipped
    mixed: Tensor  # bool [1], whether regions are mixed at all


def mix(
    base: Tensor, donor: Tensor, generator: torch.Generator, config: MixtureConfig, *, p_global: float = 0.0
) -> Mixture:
    """Mix every image of `base` with the same row of `donor`, both [B, 3, H, W] normalised views.

    Draws, in the order of Un-Mix's code: whole images or regions (only if `p_global` > 0; one choice per batch), lam0,
    then the centre of the box. The choice stays on the device, and one pass makes either mixture.

    Args:
        base, donor: [B, 3, H, W], of the same shape, dtype and device.
        generator: on their device.
        config: the kind of mixture, and how lam0 and boxes are drawn.
        p_global: probability of mixing whole images in place of regions; kind "none" stays unmixed.
    """
    if config.mixture == "none":
        return Mixture(base, *_no_box(base))
    if config.mixture == "mixup":
        return _blend(base, donor, draw(len(base), generator, config).lam0)
    whole = _chance(p_global, generator) if p_global else None
    drawn = draw(len(base), generator, config)
    boxes, outside = place(donor, drawn.lam0, generator, config)
    if whole is None:
        return paste_in(base, donor, boxes, outside, drawn.mixed)
    return _mixture(base, donor, boxes, outside, drawn.mixed & ~whole, torch.where(whole, drawn.lam0, 1.0))


def draw(batch: int, generator: torch.Generator, config: MixtureConfig) -> Draw:
    """Draw from `generator` lam0 and whether this step mixes regions, for `batch` images, as `config` says.

    Several mixtures of a step share the draw.
    """
    here = current()
    lam0 = sample_lam(here.size * batch if config.box_per_sample else 1, generator, config.alpha)
    lam0 = here.own(lam0) if config.box_per_sample else lam0
    if config.mixture == "saliency":
        return Draw(lam0, _chance(SALIENCY_SHARE, generator))
    return Draw(lam0, torch.full((1,), config.mixture == "cutmix", device=generator.device))


def place(donor: Tensor, lam0: Tensor, generator: torch.Generator, config: MixtureConfig) -> tuple[Tensor, Tensor]:
    """Boxes of the size that lam0 gives, int64 [B, 4], and the share of the image outside of each, float32 [B].

    Args:
        donor: [B, 3, H, W].
        lam0: float32 [1], or [B] for a box of each image.
        generator: draws the centres: uniform pixels.
        config: with kind "saliency" the centres are the donor's most salient pixels.
    """
    size = (donor.shape[2], donor.shape[3])
    here = current()
    if config.mixture == "saliency":
        centres = peaks(donor)
    elif config.box_per_sample:
        centres = here.own(sample_centres(here.size * len(donor), size, generator))
    else:
        centres = sample_centres(1, size, generator)
    boxes, outside = boxes_around(centres, lam0, size)
    return boxes.expand(len(donor), 4), outside.expand(len(donor))


def paste_in(base: Tensor, donor: Tensor, boxes: Tensor, outside: Tensor, mixed: Tensor) -> Mixture:
    """Mixtures with `donor` inside `boxes` and `base` outside; `base` alone where `mixed` [1] is false.

    Args:
        base, donor: [B, 3, H, W] images.
        boxes: int64 [B, 4].
        outside: float32 [B], the share of the image outside its box.
        mixed: bool [1].
    """
    return _mixture(base, donor, boxes, outside, mixed, outside.new_ones(1))


def _blend(base: Tensor, donor: Tensor, lam0: Tensor) -> Mixture:
    """Mixup: lam0 base + (1 - lam0) donor."""
    boxes, _ = _no_box(base)
    share = lam0.expand(len(base))
    return Mixture(mix_views(base, donor, boxes, share), boxes, share)


def _mixture(base: Tensor, donor: Tensor, boxes: Tensor, outside: Tensor, boxed: Tensor, share: Tensor) -> Mixture:
    """`donor` inside `boxes` where `boxed`; elsewhere `share` of `base`, which must be 1 where there is a box."""
    boxes, share = boxes * boxed[:, None], share.expand(len(base))
    return Mixture(mix_views(base, donor, boxes, share), boxes, torch.where(boxed, outside, share))


def _chance(probability: float, generator: torch.Generator) -> Tensor:
    """bool [1], true with that probability."""
    return torch.rand(1, dtype=torch.float32, generator=generator, device=generator.device) < probability


def _no_box(base: Tensor) -> tuple[Tensor, Tensor]:
    """(boxes, lam) of images without a donor."""
    return base.new_zeros(len(base), 4, dtype=torch.int64), base.new_ones(len(base), dtype=torch.float32)
