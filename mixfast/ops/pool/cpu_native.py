"""masked_upsample_pool in C++ (csrc/pool), on CPU tensors."""

from typing import Any, NoReturn

import torch
from torch import Tensor

from mixfast.ops import _native
from mixfast.ops.pool import _checks

_C: Any = _native.cpu


unavailable = _native.cpu_unavailable


def why_not(device_type: str, dtype: torch.dtype) -> str | None:
    return None if device_type == "cpu" else f"it takes CPU tensors; these are on {device_type}"


def forward(features: Tensor, regions: Tensor, height: int, width: int) -> tuple[Tensor, Tensor, Tensor]:
    results: tuple[Tensor, Tensor, Tensor] | None = _C.pool_regions(features, regions, height, width)
    if results is None:
        _refuse("masked_upsample_pool", regions, height, width)
    return results


def backward(grad_inside: Tensor, grad_outside: Tensor, weights: Tensor, channels_last: bool) -> Tensor:
    return _C.spread_weights(grad_inside, grad_outside, weights, channels_last)  # type: ignore[no-any-return]


def pool(features: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
    return _C.pool_weights(features, weights)  # type: ignore[no-any-return]


def weights(regions: Tensor, height: int, width: int, h: int, w: int, dtype: torch.dtype) -> Tensor:
    results: Tensor | None = _C.region_weights(regions, height, width, h, w, dtype == torch.float64)
    if results is None:
        _refuse("region_weights", regions, height, width)
    return results


def _refuse(name: str, regions: Tensor, height: int, width: int) -> NoReturn:
    _checks.check_values(name, regions, height, width)
    raise AssertionError(f"{name}: C++ refuses regions that Python accepts")
