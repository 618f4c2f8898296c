"""masked_upsample_pool in CUDA C++ (csrc/pool/cuda.cu), on the current stream of the device."""

from typing import Any

import torch
from torch import Tensor

from mixfast.ops import _native
from mixfast.ops._check import statistics_dtype
from mixfast.ops._native import DTYPES
from mixfast.ops.pool._operators import dense, empty_maps
from mixfast.ops.pool.cpu_native import regions_tuple

_C: Any = _native.cuda

unavailable = _native.cuda_unavailable


def why_not(device_type: str, dtype: torch.dtype) -> str | None:
    return None if device_type == "cuda" else f"it takes CUDA tensors; these are on {device_type}"


def forward(features: Tensor, regions: Tensor, height: int, width: int) -> tuple[Tensor, Tensor, Tensor]:
    (features, channels_last), (_kept, where) = dense(features), regions_tuple(regions, height, width)
    b, c, h, w = features.shape
    inside, outside = features.new_empty((b, c)), features.new_empty((b, c))
    weights = features.new_empty((regions.shape[0], 2, h, w), dtype=statistics_dtype(features.dtype))
    sums = _mask_sums(regions, weights)
    _C.pool_regions(
        (b, c, h, w, DTYPES[features.dtype], channels_last),
        features.data_ptr(),
        where,
        sums.data_ptr(),
        weights.data_ptr(),
        inside.data_ptr(),
        outside.data_ptr(),
        *_native.place(features),
    )
    return inside, outside, weights


def backward(grad_inside: Tensor, grad_outside: Tensor, weights: Tensor, channels_last: bool) -> Tensor:
    grad_inside, grad_outside, weights = grad_inside.contiguous(), grad_outside.contiguous(), weights.contiguous()
    (b, c), (images, _, h, w) = grad_inside.shape, weights.shape
    grad = empty_maps(grad_inside, h, w, channels_last)
    _C.spread_weights(
        (b, c, h, w, DTYPES[grad.dtype], channels_last),
        grad_inside.data_ptr(),
        grad_outside.data_ptr(),
        images,
        weights.data_ptr(),
        grad.data_ptr(),
        *_native.place(grad),
    )
    return grad


def pool(features: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
    (features, channels_last), weights = dense(features), weights.contiguous()
    b, c, h, w = features.shape
    inside, outside = features.new_empty((b, c)), features.new_empty((b, c))
    _C.pool_weights(
        (b, c, h, w, DTYPES[features.dtype], channels_last),
        features.data_ptr(),
        weights.shape[0],
        weights.data_ptr(),
        inside.data_ptr(),
        outside.data_ptr(),
        *_native.place(features),
    )
    return inside, outside


def weights(regions: Tensor, height: int, width: int, h: int, w: int, dtype: torch.dtype) -> Tensor:
    _kept, where = regions_tuple(regions, height, width)
    result = regions.new_empty((regions.shape[0], 2, h, w), dtype=dtype)
    sums = _mask_sums(regions, result)
    wide = dtype == torch.float64
    _C.region_weights(where, h, w, wide, sums.data_ptr(), result.data_ptr(), *_native.place(regions))
    return result


def _mask_sums(regions: Tensor, weights: Tensor) -> Tensor:
    """What the kernel that folds masks writes and the next one reads (csrc/pool/cuda_weights.cuh); empty for boxes."""
    images, _, h, w = weights.shape
    return weights.new_empty((images * 4, h, w + 1) if regions.dim() == 3 else 0)
