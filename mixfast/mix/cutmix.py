"""CutMix: paste a box of one image into another (Yun et al. 2019, equation 1)."""

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


def paste(base: Tensor, patch: Tensor, boxes: Tensor) -> Tensor:
    """[B, C, H, W] images: `patch` inside `boxes` [B, 4], `base` outside. The patch keeps its own coordinates."""
    return torch.where(box_mask(boxes, (base.shape[2], base.shape[3]))[:, None], patch, base)
