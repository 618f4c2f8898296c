"""Mixtures of two views, in plain PyTorch."""

import torch
from torch import Tensor


def box_mask(boxes: Tensor, size: tuple[int, int]) -> Tensor:
    """bool [B, H, W], true inside boxes [B, 4] given as (x0, y0, x1, y1) in pixels, half-open."""
    x0, y0, x1, y1 = boxes[:, :, None].unbind(dim=1)  # [B, 1] each
    rows = torch.arange(size[0], device=boxes.device)
    columns = torch.arange(size[1], device=boxes.device)
    in_rows = (rows >= y0) & (rows < y1)  # [B, H]
    in_columns = (columns >= x0) & (columns < x1)  # [B, W]
    return in_rows[:, :, None] & in_columns[:, None, :]


def mixture(base: Tensor, donor: Tensor, boxes: Tensor, share: Tensor) -> Tensor:
    """share base + (1 - share) donor, of which boxes have the donor alone; in the memory format of `base`."""
    dtype = torch.promote_types(base.dtype, torch.float32)
    inside = box_mask(boxes, (base.shape[2], base.shape[3]))
    weight = torch.where(inside, 0.0, share[:, None, None])[:, None].to(dtype)
    return torch.empty_like(base).copy_(torch.lerp(donor.to(dtype), base.to(dtype), weight))
