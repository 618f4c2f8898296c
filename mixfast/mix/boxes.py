"""Boxes of CutMix: where a patch is cut out and pasted."""

import torch
from torch import Tensor


def sample_lam(draws: int, generator: torch.Generator, alpha: float = 1.0) -> Tensor:
    """lam0, float32 [draws] from Beta(alpha, alpha): the share of the base image before a box is clipped."""
    if alpha == 1:
        return torch.rand(draws, dtype=torch.float32, generator=generator, device=generator.device)
    concentration = torch.full((draws, 2), alpha, dtype=torch.float32, device=generator.device)
    return torch._sample_dirichlet(concentration, generator=generator)[:, 0]


def sample_centres(draws: int, size: tuple[int, int], generator: torch.Generator) -> Tensor:
    """Uniform pixels of an image of `size` (H, W): int64 [draws, 2] as (row, column)."""
    axes = [torch.randint(extent, (draws,), generator=generator, device=generator.device) for extent in size]
    return torch.stack(axes, dim=1)


def boxes_around(centres: Tensor, lam0: Tensor, size: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """Boxes of the size that lam0 gives around pixels, and the share of the image outside of each.

    The sides are floor(H sqrt(1 - lam0)) and floor(W sqrt(1 - lam0)), rounded down to even numbers; what sticks out of
    the image is clipped. A box has at least one pixel and never covers an image of two pixels or more.

    Args:
        centres: int64 [N, 2], (row, column); or [1, 2] for N times the same.
        lam0: float32 [N] in [0, 1]; or [1].
        size: (H, W) in pixels.

    Returns:
        (boxes, lam): int64 [N, 4] as (x0, y0, x1, y1), half-open; float32 [N], 1 - area / (H W) after clipping.
    """
    shrink = (1 - lam0).sqrt()
    (y0, y1), (x0, x1) = (_interval(extent, shrink, centres[:, axis]) for axis, extent in enumerate(size))
    lam = 1 - ((y1 - y0) * (x1 - x0)).float() / (size[0] * size[1])
    return torch.stack([x0, y0, x1, y1], dim=1), lam


def _interval(extent: int, shrink: Tensor, centre: Tensor) -> tuple[Tensor, Tensor]:
    """First and last-plus-one pixel along an axis of `extent` pixels, int64 [N] each."""
    # lam0 = 0 would give the whole axis; its outside would then be empty.
    half = (extent * shrink).floor().long().clamp(max=max(extent - 1, 1)) // 2
    first = (centre - half).clamp(min=0)
    return first, torch.maximum((centre + half).clamp(max=extent), first + 1)
