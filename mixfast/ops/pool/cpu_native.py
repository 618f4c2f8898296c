"""masked_upsample_pool on CPU in C++ (csrc/pool): checks are done, addresses and sizes go out."""

from typing import Any, NoReturn

import torch
from torch import Tensor

from mixfast.ops import _native
from mixfast.ops._check import statistics_dtype
from mixfast.ops._native import DTYPES
from mixfast.ops.pool import _checks
from mixfast.ops.pool._operators import dense, empty_maps

_C: Any = _native.cpu

unavailable = _native.cpu_unavailable


def why_not(device_type: str, dtype: torch.dtype) -> str | None:
    return None if device_type == "cpu" else f"it takes CPU tensors; these are on {device_type}"


def regions_tuple(regions: Tensor, height: int, width: int) -> tuple[Tensor, tuple[Any, ...]]:
    """Boxes in int64 or a mask, contiguous, which has to live during the call; and how C++ reads them."""
    boxes = regions.dim() < 3
    regions = (regions.long() if boxes else regions).contiguous()
    dtype = 0 if boxes else DTYPES[regions.dtype]
    return regions, (regions.data_ptr(), regions.shape[0], height, width, boxes, dtype)


def forward(features: Tensor, regions: Tensor, height: int, width: int) -> tuple[Tensor, Tensor, Tensor]:
    (features, channels_last), (_kept, where) = dense(features), regions_tuple(regions, height, width)
    b, c, h, w = features.shape
    inside, outside = features.new_empty((b, c)), features.new_empty((b, c))
    weights = features.new_empty((regions.shape[0], 2, h, w), dtype=statistics_dtype(features.dtype))
    if not _C.pool_regions(
        (b, c, h, w, DTYPES[features.dtype], channels_last),
        features.data_ptr(),
        where,
        weights.data_ptr(),
        inside.data_ptr(),
        outside.data_ptr(),
        torch.get_num_threads(),
    ):
        _refuse("masked_upsample_pool", regions, height, width)
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
        torch.get_num_threads(),
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
        torch.get_num_threads(),
    )
    return inside, outside


def weights(regions: Tensor, height: int, width: int, h: int, w: int, dtype: torch.dtype) -> Tensor:
    _kept, where = regions_tuple(regions, height, width)
    result = regions.new_empty((regions.shape[0], 2, h, w), dtype=dtype)
    if not _C.region_weights(where, h, w, dtype == torch.float64, result.data_ptr(), torch.get_num_threads()):
        _refuse("region_weights", regions, height, width)
    return result


def _refuse(name: str, regions: Tensor, height: int, width: int) -> NoReturn:
    _checks.check_values(name, regions, height, width)
    raise AssertionError(f"{name}: C++ refuses regions that Python accepts")
