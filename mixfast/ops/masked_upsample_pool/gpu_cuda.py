"""masked_upsample_pool in CUDA C++ (csrc/masked_upsample_pool/cuda.cu), on the current stream of the device."""

from typing import Any

import torch
from torch import Tensor

from mixfast.ops import _native
from mixfast.ops._native import DTYPES
from mixfast.ops.masked_upsample_pool import _arguments
from mixfast.ops.masked_upsample_pool._arguments import dense, plain_regions, sums_dtype

_C: Any = _native.cuda


unavailable = _native.cuda_unavailable


def why_not(device_type: str, dtype: torch.dtype) -> str | None:
    return None if device_type == "cuda" else f"it takes CUDA tensors; these are on {device_type}"


def forward(features: Tensor, regions: Tensor, height: int, width: int) -> tuple[Tensor, Tensor, Tensor]:
    features, channels_last = dense(features)
    regions, mask_dtype = plain_regions(regions)
    b, c, h, w = features.shape
    inside, outside = features.new_empty((b, c)), features.new_empty((b, c))
    weights = features.new_empty((regions.shape[0], 2, h, w), dtype=sums_dtype(features.dtype))
    sums = _mask_sums(regions, weights)
    _C.pool_regions(
        *(b, c, h, w, DTYPES[features.dtype], channels_last, features.data_ptr()),
        *(regions.data_ptr(), regions.shape[0], height, width, mask_dtype, sums.data_ptr()),
        *(weights.data_ptr(), inside.data_ptr(), outside.data_ptr(), *_native.place(features)),
    )
    return inside, outside, weights


def backward(grad_inside: Tensor, grad_outside: Tensor, weights: Tensor, channels_last: bool) -> Tensor:
    return _arguments.spread(_C, _native.place(grad_inside), grad_inside, grad_outside, weights, channels_last)


def pool(features: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
    return _arguments.pool(_C, _native.place(features), features, weights)


def weights(regions: Tensor, height: int, width: int, h: int, w: int, dtype: torch.dtype) -> Tensor:
    regions, mask_dtype = plain_regions(regions)
    weights = regions.new_empty((regions.shape[0], 2, h, w), dtype=dtype)
    sums = _mask_sums(regions, weights)
    _C.region_weights(
        *(regions.data_ptr(), regions.shape[0], height, width, mask_dtype, h, w, dtype == torch.float64),
        *(sums.data_ptr(), weights.data_ptr(), *_native.place(regions)),
    )
    return weights


def _mask_sums(regions: Tensor, weights: Tensor) -> Tensor:
    """What the kernel that folds masks writes and the next one reads (cuda_weights.cuh); nothing for boxes."""
    images = regions.shape[0] if regions.ndim == 3 else 0
    h, w = weights.shape[2:]
    return weights.new_empty((images, 2, 2, h, w + 1))
