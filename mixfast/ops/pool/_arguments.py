"""Layouts and dtypes of maps and weights."""

import torch
from torch import Tensor


def dense(features: Tensor) -> tuple[Tensor, bool]:
    """The maps as they are, if they are contiguous or channels last, else a copy; and whether channels are last."""
    if features.is_contiguous():
        return features, False
    if features.is_contiguous(memory_format=torch.channels_last):
        return features, True
    return features.contiguous(), False


def sums_dtype(dtype: torch.dtype) -> torch.dtype:
    """What maps of `dtype` are summed in, and so the dtype of their weights."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def empty_maps(like: Tensor, h: int, w: int, channels_last: bool) -> Tensor:
    """[B, C, h, w] for the gradient of maps whose results are [B, C]."""
    layout = torch.channels_last if channels_last else torch.contiguous_format
    return torch.empty((*like.shape, h, w), dtype=like.dtype, device=like.device, memory_format=layout)
