"""What the compiled backends share: tensors made ready for a call by pointers and sizes, and calls that are alike.

`native` is the compiled module, `place` its last arguments: threads on the CPU, device and stream on a GPU.
"""

from typing import Any

import torch
from torch import Tensor

from mixfast.ops._native import DTYPES

# The numbers of csrc/masked_upsample_pool/kernels.h; -1 stands for boxes.
_MASK_DTYPES = {**DTYPES, torch.bool: 4, torch.uint8: 4}


def dense(features: Tensor) -> tuple[Tensor, bool]:
    """The maps as they are, if they are contiguous or channels last, else a copy; and whether channels are last."""
    if features.is_contiguous():
        return features, False
    if features.is_contiguous(memory_format=torch.channels_last):
        return features, True
    return features.contiguous(), False


def plain_regions(regions: Tensor) -> tuple[Tensor, int]:
    """Boxes as contiguous int64, or a contiguous mask; and the number of the mask's dtype."""
    if regions.ndim == 3:
        return regions.contiguous(), _MASK_DTYPES[regions.dtype]
    return (regions if regions.dtype == torch.int64 else regions.to(torch.int64)).contiguous(), -1


def sums_dtype(dtype: torch.dtype) -> torch.dtype:
    """What maps of `dtype` are summed in, and so the dtype of their weights."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def empty_maps(like: Tensor, h: int, w: int, channels_last: bool) -> Tensor:
    """[B, C, h, w] for the gradient of maps whose results are [B, C]."""
    layout = torch.channels_last if channels_last else torch.contiguous_format
    return torch.empty((*like.shape, h, w), dtype=like.dtype, device=like.device, memory_format=layout)


def spread(
    native: Any, place: tuple[int, ...], grad_inside: Tensor, grad_outside: Tensor, weights: Tensor, channels_last: bool
) -> Tensor:
    """The gradient of the maps."""
    grad_inside, grad_outside, weights = grad_inside.contiguous(), grad_outside.contiguous(), weights.contiguous()
    (b, c), (h, w) = grad_inside.shape, weights.shape[2:]
    grad = empty_maps(grad_inside, h, w, channels_last)
    native.spread_weights(
        *(b, c, h, w, DTYPES[grad.dtype], channels_last, grad_inside.data_ptr(), grad_outside.data_ptr()),
        *(weights.shape[0], weights.data_ptr(), grad.data_ptr(), *place),
    )
    return grad


def pool(native: Any, place: tuple[int, ...], features: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
    """Two weighted sums of every map."""
    features, channels_last = dense(features)
    weights = weights.contiguous()
    b, c, h, w = features.shape
    inside, outside = features.new_empty((b, c)), features.new_empty((b, c))
    native.pool_weights(
        *(b, c, h, w, DTYPES[features.dtype], channels_last, features.data_ptr()),
        *(weights.shape[0], weights.data_ptr(), inside.data_ptr(), outside.data_ptr(), *place),
    )
    return inside, outside
