"""Argument checks of split_batch_norm. They read shapes and types, and no tensor's values."""

from typing import Any, NoReturn

import torch
from torch import Tensor

NAME = "split_batch_norm"
FLOATS = (torch.float32, torch.float16, torch.bfloat16, torch.float64)


def _type_error(message: str) -> NoReturn:
    raise TypeError(f"{NAME}: {message}")


def _value_error(message: str) -> NoReturn:
    raise ValueError(f"{NAME}: {message}")


def check_maps(x: Any, num_splits: Any) -> None:
    """Maps [B, C, H, W], and a number of groups that divides B."""
    if not isinstance(x, Tensor):
        _type_error(f"x must be a tensor [B, C, H, W]; got {type(x).__name__}.")
    if x.dtype not in FLOATS:
        _type_error(f"x must be float16, bfloat16, float32 or float64; got {x.dtype}.")
    if x.layout is not torch.strided:
        _type_error(f"x must be dense; got layout {x.layout}. Call .to_dense() first.")
    if x.ndim != 4:
        _value_error(f"x must be [B, C, H, W]; got {x.ndim}-D {list(x.shape)}.")
    if not isinstance(num_splits, int) or isinstance(num_splits, bool):
        _type_error(f"num_splits must be an integer; got {num_splits!r}.")
    if num_splits < 1:
        _value_error(f"num_splits must be at least 1; got {num_splits}.")
    batch, channels, height, width = x.shape
    if batch % num_splits:
        _value_error(f"x must hold a multiple of num_splits = {num_splits} samples; got B = {batch}.")
    if channels < 1 or batch // num_splits * height * width < 2:
        _value_error(
            f"each of the num_splits = {num_splits} groups needs two numbers of each of at least one channel; got "
            f"{list(x.shape)}."
        )


def check_channels(name: str, tensor: Any, x: Tensor) -> None:
    """A contiguous vector [C], in the precision of the statistics."""
    if not isinstance(tensor, Tensor):
        _type_error(f"{name} must be a tensor [C]; got {type(tensor).__name__}.")
    statistics = torch.float64 if x.dtype == torch.float64 else torch.float32
    if tensor.dtype != statistics:
        _type_error(
            f"{name} must be {statistics} for x in {x.dtype}; got {tensor.dtype}. Keep batch norms in float32, or "
            "float64 for float64 maps."
        )
    if tensor.shape != (x.shape[1],):
        _value_error(f"{name} must be [C] = [{x.shape[1]}]; got {list(tensor.shape)}.")
    if tensor.device != x.device:
        _value_error(f"{name} must be on the device of x, {x.device}; got {tensor.device}.")
    if not tensor.is_contiguous():
        _value_error(f"{name} must be contiguous; got strides {tensor.stride()}. Call .contiguous().")


def check_running(running_mean: Any, running_var: Any, x: Tensor) -> None:
    """Both None, or both vectors [C] that can be written."""
    if (running_mean is None) != (running_var is None):
        _type_error("running_mean and running_var must both be tensors, or both None.")
    for name, tensor in (("running_mean", running_mean), ("running_var", running_var)):
        if tensor is None:
            continue
        check_channels(name, tensor, x)
        if tensor.requires_grad:
            _value_error(f"{name} is written in place and must not require a gradient. Pass {name}.detach().")


def check_numbers(momentum: Any, eps: Any) -> None:
    for name, number in (("momentum", momentum), ("eps", eps)):
        if not isinstance(number, (int, float)) or isinstance(number, bool):
            _type_error(f"{name} must be a number; got {number!r}.")
    if not 0 <= momentum <= 1:
        _value_error(f"momentum must be in [0, 1]; got {momentum}.")
    if not 0 < eps < float("inf"):
        _value_error(f"eps must be positive and finite; got {eps}.")
