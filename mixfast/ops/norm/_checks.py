"""Argument checks of split_batch_norm. They read shapes and types, and no tensor's values."""

from typing import Any

from torch import Tensor

from mixfast.ops._check import Check, is_finite, statistics_dtype

NAME = "split_batch_norm"
check = Check(NAME)


def check_maps(x: Any, num_splits: Any) -> None:
    """Maps [B, C, H, W], and a number of groups that divides B."""
    check.floats("x", x, "a tensor [B, C, H, W]")
    if x.ndim != 4:
        check.value_error(f"x must be [B, C, H, W]; got {x.ndim}-D {list(x.shape)}.")
    if not isinstance(num_splits, int) or isinstance(num_splits, bool):
        check.type_error(f"num_splits must be an integer; got {num_splits!r}.")
    if num_splits < 1:
        check.value_error(f"num_splits must be at least 1; got {num_splits}.")
    batch, channels, height, width = x.shape
    if batch % num_splits:
        check.value_error(f"x must hold a multiple of num_splits = {num_splits} samples; got B = {batch}.")
    if channels < 1 or batch // num_splits * height * width < 2:
        check.value_error(
            f"each of the num_splits = {num_splits} groups needs two numbers of each of at least one channel; got "
            f"{list(x.shape)}."
        )


def check_channels(name: str, tensor: Any, x: Tensor) -> None:
    """A contiguous vector [C], in the precision of the statistics."""
    if not isinstance(tensor, Tensor):
        check.type_error(f"{name} must be a tensor [C]; got {type(tensor).__name__}.")
    statistics = statistics_dtype(x.dtype)
    if tensor.dtype != statistics:
        check.type_error(
            f"{name} must be {statistics} for x in {x.dtype}; got {tensor.dtype}. Keep batch norms in float32, or "
            "float64 for float64 maps."
        )
    if tensor.shape != (x.shape[1],):
        check.value_error(f"{name} must be [C] = [{x.shape[1]}]; got {list(tensor.shape)}.")
    check.device_of(name, tensor, "x", x.device)
    if not tensor.is_contiguous():
        check.value_error(f"{name} must be contiguous; got strides {tensor.stride()}. Call .contiguous().")


def check_running(running_mean: Any, running_var: Any, x: Tensor) -> None:
    """Both None, or both vectors [C] that can be written."""
    if (running_mean is None) != (running_var is None):
        check.type_error("running_mean and running_var must both be tensors, or both None.")
    for name, tensor in (("running_mean", running_mean), ("running_var", running_var)):
        if tensor is None:
            continue
        check_channels(name, tensor, x)
        if tensor.requires_grad:
            check.value_error(f"{name} is written in place and must not require a gradient. Pass {name}.detach().")


def check_relu(relu: Any, residual: Any, x: Tensor) -> None:
    """A flag, and None or maps like x."""
    if not isinstance(relu, bool):
        check.type_error(f"relu must be True or False; got {relu!r}.")
    if residual is None:
        return
    check.floats("residual", residual, "a tensor [B, C, H, W], or None")
    check.dtype_of("residual", residual, "x", x.dtype)
    check.device_of("residual", residual, "x", x.device)
    if residual.shape != x.shape:
        check.value_error(f"residual must have the shape of x, {list(x.shape)}; got {list(residual.shape)}.")


def check_numbers(momentum: Any, eps: Any) -> None:
    for name, number in (("momentum", momentum), ("eps", eps)):
        if not isinstance(number, (int, float)) or isinstance(number, bool):
            check.type_error(f"{name} must be a number; got {number!r}.")
    if not 0 <= momentum <= 1:
        check.value_error(f"momentum must be in [0, 1]; got {momentum}.")
    if not (eps > 0 and is_finite(eps)):
        check.value_error(f"eps must be positive and finite; got {eps}.")
