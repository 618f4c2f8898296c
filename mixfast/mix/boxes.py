"""Random boxes of CutMix: where a patch is cut out and pasted."""

import torch
from torch import Tensor


def sample_boxes(
    batch: int,
    size: tuple[int, int],
    generator: torch.Generator,
    *,
    alpha: float = 1.0,
    per_sample: bool = False,
    count: int = 1,
) -> list[tuple[Tensor, Tensor]]:
    """Draw boxes and the share of the image that each leaves outside.

    One lam0 ~ Beta(alpha, alpha) gives the sides floor(H sqrt(1 - lam0)) and floor(W sqrt(1 - lam0)), rounded down to
    even numbers; a uniform pixel is the centre; what sticks out of the image is clipped. A box has at least one pixel
    and never covers an image of two pixels or more.

    Args:
        batch: B, the number of images.
        size: (H, W) in pixels.
        generator: draws on its own device, which is also the device of the result.
        alpha: concentration of the Beta distribution; 1 is uniform.
        per_sample: a box for every image instead of one for the batch.
        count: boxes with independent centres made from the same lam0.

    Returns:
        `count` pairs (boxes, lam): int64 [B, 4] as (x0, y0, x1, y1), half-open; float32 [B], 1 - area / (H W) after
        clipping.
    """
    draws = batch if per_sample else 1
    shrink = (1 - _beta(alpha, draws, generator)).sqrt()
    pairs = []
    for _ in range(count):
        (y0, y1), (x0, x1) = (_interval(extent, shrink, generator) for extent in size)
        lam = 1 - ((y1 - y0) * (x1 - x0)).float() / (size[0] * size[1])
        pairs.append((torch.stack([x0, y0, x1, y1], dim=1).expand(batch, 4), lam.expand(batch)))
    return pairs


def _beta(alpha: float, draws: int, generator: torch.Generator) -> Tensor:
    """[draws] from Beta(alpha, alpha)."""
    if alpha == 1:
        return torch.rand(draws, generator=generator, device=generator.device)
    concentration = torch.full((draws, 2), alpha, device=generator.device)
    return torch._sample_dirichlet(concentration, generator=generator)[:, 0]


def _interval(extent: int, shrink: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """First and last-plus-one pixel along an axis of `extent` pixels, int64 [draws] each."""
    # lam0 = 0 would give the whole axis; its outside would then be empty.
    half = (extent * shrink).floor().long().clamp(max=max(extent - 1, 1)) // 2
    centre = torch.randint(extent, shrink.shape, generator=generator, device=generator.device)
    first = (centre - half).clamp(min=0)
    return first, torch.maximum((centre + half).clamp(max=extent), first + 1)
