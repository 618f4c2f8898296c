"""split_batch_norm on CPU in C++ (csrc/norm): passes addresses and sizes of checked arguments."""

import functools
from typing import Any

import torch
from torch import Tensor

from mixfast.ops import _native
from mixfast.ops._native import DTYPES
from mixfast.ops.norm._operators import empty_gradients, empty_results

unavailable = _native.cpu_unavailable


def why_not(device_type: str, dtype: torch.dtype) -> str | None:
    return None if device_type == "cpu" else f"it runs on CPU tensors; these are on {device_type}"


@functools.cache
def instruction_sets() -> list[int]:
    """Codes of the instruction sets that this processor can run, from slow to fast."""
    return _native.cpu.split_batch_norm_instruction_sets() if _native.cpu else []


def maps_tuple(x: Tensor, splits: int) -> tuple[Any, ...]:
    """Sizes, layout and dtype of dense maps. Maps with one channel have both layouts; contiguous is faster."""
    batch, channels, height, width = x.shape
    last = channels > 1 and x.is_contiguous(memory_format=torch.channels_last)
    return batch, channels, height * width, splits, last, DTYPES[x.dtype]


def address(tensor: Tensor | None) -> int:
    return 0 if tensor is None else tensor.data_ptr()


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
    instruction_set: int = -1,
) -> tuple[Tensor, Tensor, Tensor]:
    """(y, means, inverses) as `_operators.forward` describes them; x is dense, and a residual has its layout."""
    y, means, inverses = results = empty_results(x, weight, splits)
    _native.cpu.split_batch_norm_forward(  # type: ignore[union-attr]
        *maps_tuple(x, splits),
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
        *_native.cpu_place(instruction_sets(), instruction_set),
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
    instruction_set: int = -1,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """(dx, d_weight, d_bias, d_residual) as `_operators.backward` describes them; all maps are dense, in one layout."""
    dx, d_weight, d_bias, d_residual = gradients = empty_gradients(x, weight, masked)
    tensors = dy, x, y, weight, means, inverses, dx, d_residual, d_weight, d_bias
    _native.cpu.split_batch_norm_backward(  # type: ignore[union-attr]
        *maps_tuple(x, splits),
        *(address(tensor) for tensor in tensors),
        *_native.cpu_place(instruction_sets(), instruction_set),
    )
    return gradients
