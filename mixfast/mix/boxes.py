"""Boxes: where CutMix cuts a patch out and pastes it; random boxes of an area, and within regions."""

import math

import torch
from torch import Tensor

from mixfast.world import current


def sample_lam(draws: int, generator: torch.Generator, alpha: float = 1.0) -> Tensor:
    """lam0, float32 [draws] from Beta(alpha, alpha) by `generator`: the base image's share before a box is clipped."""
    if alpha == 1:
        return torch.rand(draws, dtype=torch.float32, generator=generator, device=generator.device)
    concentration = torch.full((draws, 2), alpha, dtype=torch.float32, device=generator.device)
    return torch._sample_dirichlet(concentration, generator=generator)[:, 0]


def sample_centres(draws: int, size: tuple[int, int], generator: torch.Generator) -> Tensor:
    """Uniform pixels of an image of `size` (H, W) by `generator`: int64 [draws, 2] as (row, column)."""
    axes = [torch.randint(extent, (draws,), generator=generator, device=generator.device) for extent in size]
    return torch.stack(axes, dim=1)


def boxes_around(centres: Tensor, lam0: Tensor, size: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """Boxes around given pixels, with sizes from lam0, and the share of the image outside each box.

    The sides are floor(H sqrt(1 - lam0)) and floor(W sqrt(1 - lam0)), rounded down to even numbers; boxes are clipped
    to the image. A box has at least one pixel and never covers an image of two pixels or more.

    Args:
        centres: int64 [N, 2], (row, column), or [1, 2] for all images.
        lam0: float32 [N] in [0, 1], or [1] for all images.
        size: (H, W) in pixels.

    Returns:
        (boxes, lam): int64 [N, 4] as (x0, y0, x1, y1), half-open; float32 [N], 1 - area / (H W) after clipping.
    """
    shrink = (1 - lam0).sqrt()
    (y0, y1), (x0, x1) = (_interval(extent, shrink, centres[:, axis]) for axis, extent in enumerate(size))
    lam = 1 - ((y1 - y0) * (x1 - x0)).float() / (size[0] * size[1])
    return torch.stack([x0, y0, x1, y1], dim=1), lam


def boxes_of_area(
    draws: int, size: tuple[int, int], area: tuple[float, float], ratio: tuple[float, float], generator: torch.Generator
) -> Tensor:
    """Random boxes wholly inside images of `size` (H, W): int64 [draws, 4] as (x0, y0, x1, y1).

    Drawn from `generator`: the share of the image, uniform in `area`; width / height times H / W, log-uniform in
    `ratio`; the position, uniform. A side is rounded to pixels; it has at least one, and in an image of two or more
    pixels leaves at least one.
    """
    here = current()
    u = torch.rand(4, here.size * draws, dtype=torch.float32, generator=generator, device=generator.device)
    u = here.own(u, dim=1)
    share = area[0] + (area[1] - area[0]) * u[0]
    shape = (math.log(ratio[0]) + math.log(ratio[1] / ratio[0]) * u[1]).exp()
    starts, ends = [], []
    for extent, part, at in ((size[1], share * shape, u[2]), (size[0], share / shape, u[3])):
        side = (extent * part.sqrt()).round().clamp(1, max(extent - 1, 1))
        starts.append((at * (extent - side + 1)).floor().clamp(max=extent - side))
        ends.append(starts[-1] + side)
    return torch.stack([*starts, *ends], dim=1).long()


def boxes_within(regions: Tensor, count: int, least: float, generator: torch.Generator) -> Tensor:
    """`count` random boxes within each region: [B, count, 4] of regions [B, 4], as (x0, y0, x1, y1) in any unit.

    Drawn from `generator`: each side, uniform between `least` and 1 times the region's; the position, uniform.
    """
    here = current()
    shape = (2, here.size * len(regions), count, 2)
    u = here.own(torch.rand(shape, dtype=torch.float32, generator=generator, device=generator.device), dim=1)
    low, high = regions[:, None, :2], regions[:, None, 2:]
    sides = (high - low) * (least + (1 - least) * u[0])
    first = low + (high - low - sides) * u[1]
    return torch.cat([first, first + sides], dim=-1)


def _interval(extent: int, shrink: Tensor, centre: Tensor) -> tuple[Tensor, Tensor]:
    """First and last-plus-one pixel along an axis of `extent` pixels, int64 [N] each."""
    # lam0 = 0 would give the whole axis; its outside would then be empty.
    half = (extent * shrink).floor().long().clamp(max=max(extent - 1, 1)) // 2
    first = (centre - half).clamp(min=0)
    return first, torch.maximum((centre + half).clamp(max=extent), first + 1)
