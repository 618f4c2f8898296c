"""masked_upsample_pool in CUDA C++ (csrc/pool/cuda.cu), on the current stream of the device."""

from typing import Any

import torch
from torch import Tensor

from mixfast.ops import _native

_C: Any = _native.cuda


unavailable = _native.cuda_unavailable


def why_not(device_type: str, dtype: torch.dtype) -> str | None:
    return None if device_type == "cuda" else f"it takes CUDA tensors; these are on {device_type}"


def forward(features: Tensor, regions: Tensor, height: int, width: int) -> tuple[Tensor, Tensor, Tensor]:
    return _C.pool_regions(features, regions, height, width)  # type: ignore[no-any-return]


def backward(grad_inside: Tensor, grad_outside: Tensor, weights: Tensor, channels_last: bool) -> Tensor:
    return _C.spread_weights(grad_inside, grad_outside, weights, channels_last)  # type: ignore[no-any-return]


def pool(features: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
    return _C.pool_weights(features, weights)  # type: ignore[no-any-return]


def weights(regions: Tensor, height: int, width: int, h: int, w: int, dtype: torch.dtype) -> Tensor:
    return _C.region_weights(regions, height, width, h, w, dtype == torch.float64)  # type: ignore[no-any-return]
