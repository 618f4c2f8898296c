"""CutMix: paste a box of one image into another (Yun et al. 2019, equation 1)."""

import torch
from torch import Tensor

from mixfast.ops.views.reference import box_mask


def paste(base: Tensor, patch: Tensor, boxes: Tensor) -> Tensor:
    """[B, C, H, W] images: `patch` inside `boxes` [B, 4], `base` outside. The patch keeps its own coordinates."""
    return torch.where(box_mask(boxes, (base.shape[2], base.shape[3]))[:, None], patch, base)
