"""split_batch_norm in CUDA C++ (csrc/norm/cuda.cu), on the current stream of the device."""

from typing import Any

import torch
from torch import Tensor

from mixfast.ops import _native
from mixfast.ops.norm._operators import empty_gradients, empty_results
from mixfast.ops.norm.cpu_native import address, maps_tuple

_C: Any = _native.cuda

unavailable = _native.cuda_unavailable


def why_not(device_type: str, dtype: torch.dtype) -> str | None:
    if device_type != "cuda":
        return f"it takes CUDA tensors; these are on {device_type}"
    return "it has no float64; backend='reference' has" if dtype == torch.float64 else None


def forward(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    residual: Tensor | None,
    splits: int,
    momentum: float,
    eps: float,
    relu: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """(y, means, inverses) as `_operators.forward` describes them; x is dense, and a residual has its layout."""
    maps = maps_tuple(x, splits)
    y, means, inverses = results = empty_results(x, weight, splits)
    workspace = weight.new_empty(_C.split_batch_norm_workspace(*maps))
    _C.split_batch_norm_forward(
        *maps,
        x.data_ptr(),
        weight.data_ptr(),
        bias.data_ptr(),
        *(address(tensor) for tensor in (running_mean, running_var, residual)),
        momentum,
        eps,
        relu,
        y.data_ptr(),
        means.data_ptr(),
        inverses.data_ptr(),
        workspace.data_ptr(),
        *_native.place(x),
    )
    return results


def backward(
    dy: Tensor,
    x: Tensor,
    y: Tensor | None,
    weight: Tensor,
    means: Tensor,
    inverses: Tensor,
    splits: int,
    masked: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """(dx, d_weight, d_bias, d_residual) as `_operators.backward` describes them; all maps are dense, in one layout."""
    maps = maps_tuple(x, splits)
    dx, d_weight, d_bias, d_residual = gradients = empty_gradients(x, weight, masked)
    workspace = weight.new_empty(_C.split_batch_norm_workspace(*maps))
    tensors = dy, x, y, weight, means, inverses, dx, d_residual, d_weight, d_bias, workspace
    _C.split_batch_norm_backward(*maps, *(address(tensor) for tensor in tensors), *_native.place(x))
    return gradients
