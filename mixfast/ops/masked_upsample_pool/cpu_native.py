"""masked_upsample_pool in C++ (csrc/masked_upsample_pool), on CPU tensors."""

from typing import Any

import torch
from torch import Tensor

from mixfast.ops import _native
from mixfast.ops._native import DTYPES
from mixfast.ops.masked_upsample_pool import _arguments, _checks
from mixfast.ops.masked_upsample_pool._arguments import dense, plain_regions, sums_dtype

_C: Any = _native.cpu


unavailable = _native.cpu_unavailable


def why_not(device_type: str, dtype: torch.dtype) -> str | None:
    return None if device_type == "cpu" else f"it takes CPU tensors; these are on {device_type}"


def forward(features: Tensor, regions: Tensor, height: int, width: int) -> tuple[Tensor, Tensor, Tensor]:
    features, channels_last = dense(features)
    regions, mask_dtype = plain_regions(regions)
    b, c, h, w = features.shape
    inside, outside = features.new_empty((b, c)), features.new_empty((b, c))
    weights = features.new_empty((regions.shape[0], 2, h, w), dtype=sums_dtype(features.dtype))
    valid = _C.pool_regions(
        *(b, c, h, w, DTYPES[features.dtype], channels_last, features.data_ptr()),
        *(regions.data_ptr(), regions.shape[0], height, width, mask_dtype),
        *(weights.data_ptr(), inside.data_ptr(), outside.data_ptr(), torch.get_num_threads()),
    )
    if not valid:
        _checks.check_values("masked_upsample_pool", regions, height, width)
    return inside, outside, weights


def backward(grad_inside: Tensor, grad_outside: Tensor, weights: Tensor, channels_last: bool) -> Tensor:
    return _arguments.spread(_C, (torch.get_num_threads(),), grad_inside, grad_outside, weights, channels_last)


def pool(features: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
    return _arguments.pool(_C, (torch.get_num_threads(),), features, weights)


def weights(regions: Tensor, height: int, width: int, h: int, w: int, dtype: torch.dtype) -> Tensor:
    regions, mask_dtype = plain_regions(regions)
    weights = regions.new_empty((regions.shape[0], 2, h, w), dtype=dtype)
    valid = _C.region_weights(
        *(regions.data_ptr(), regions.shape[0], height, width, mask_dtype, h, w, dtype == torch.float64),
        *(weights.data_ptr(), torch.get_num_threads()),
    )
    if not valid:
        _checks.check_values("region_weights", regions, height, width)
    return weights
