"""Argument checks of nt_xent. They read shapes and types, and no tensor's values."""

import math
from typing import Any, NoReturn

import torch
from torch import Tensor

NAME = "nt_xent"
FLOATS = (torch.float32, torch.float16, torch.bfloat16, torch.float64)
FLOAT_NAMES = "float16, bfloat16, float32 or float64"


def _type_error(message: str) -> NoReturn:
    raise TypeError(f"{NAME}: {message}")


def _value_error(message: str) -> NoReturn:
    raise ValueError(f"{NAME}: {message}")


def check_views(first: Any, second: Any) -> None:
    """Both views: tensors [N, D] that agree in everything."""
    for name, tensor in (("first", first), ("second", second)):
        if not isinstance(tensor, Tensor):
            _type_error(f"{name} must be a tensor [N, D]; got {type(tensor).__name__}.")
        if tensor.dtype not in FLOATS:
            _type_error(f"{name} must be {FLOAT_NAMES}; got {tensor.dtype}. Convert it, with .float() for instance.")
        if tensor.layout is not torch.strided:
            _type_error(f"{name} must be dense; got layout {tensor.layout}. Call .to_dense() first.")
        if tensor.ndim != 2:
            _value_error(f"{name} must be [N, D]; got {tensor.ndim}-D {list(tensor.shape)}.")
    if min(first.shape) < 1:
        _value_error(f"the views need at least one row and one dimension; got first {list(first.shape)}.")
    if second.shape != first.shape:
        _value_error(f"second must be [N, D] = {list(first.shape)} as first; got {list(second.shape)}.")
    if second.dtype != first.dtype:
        _type_error(f"second must have the dtype of first, {first.dtype}; got {second.dtype}. Convert one.")
    if second.device != first.device:
        _value_error(f"second must be on the device of first, {first.device}; got {second.device}.")


def check_temperature(temperature: Any, first: Tensor) -> float | Tensor:
    """A positive number, or a floating tensor []."""
    if isinstance(temperature, Tensor):
        if temperature.dtype not in FLOATS:
            _type_error(f"a temperature tensor must be {FLOAT_NAMES}; got {temperature.dtype}.")
        if temperature.ndim != 0:
            _value_error(f"a temperature tensor must be a scalar []; got {list(temperature.shape)}. Call .squeeze().")
        if temperature.device != first.device:
            _value_error(f"temperature must be on the device of first, {first.device}; got {temperature.device}.")
        return temperature
    if not isinstance(temperature, (int, float)) or isinstance(temperature, bool):
        _type_error(f"temperature must be a number or a scalar tensor; got {temperature!r}.")
    check_temperature_value(temperature)
    return float(temperature)


def check_temperature_value(number: float) -> None:
    """Of a number, or of a tensor where reading it is free."""
    if not 0 < number < math.inf:
        _value_error(f"temperature must be positive and finite; got {number}.")


def check_excluded(excluded: Any, first: Tensor) -> None:
    """None, or int64 [2N] on the device of the views."""
    if excluded is None:
        return
    rows = 2 * first.shape[0]
    if not isinstance(excluded, Tensor):
        _type_error(f"excluded must be None or a tensor int64 [2N]; got {type(excluded).__name__}.")
    if excluded.dtype != torch.int64:
        _type_error(f"excluded must be int64; got {excluded.dtype}. Call .long().")
    if excluded.shape != (rows,):
        _value_error(
            f"excluded must be [2N] = [{rows}], one row for each anchor of both views; got {list(excluded.shape)}."
        )
    if excluded.device != first.device:
        _value_error(f"excluded must be on the device of first, {first.device}; got {excluded.device}.")


def refuse_excluded(anchor: int, row: int, rows: int) -> NoReturn:
    """The value of an entry of `excluded` that cannot be, where reading it is free."""
    if -1 <= row < rows:
        _value_error(f"excluded[{anchor}] must not be the anchor's positive, row {row}.")
    _value_error(f"excluded[{anchor}] must be -1 (none) or a row in [0, {rows}); got {row}.")


def check_reduction(reduction: Any) -> None:
    if reduction not in ("mean", "sum", "none"):
        _value_error(f'reduction must be "mean", "sum" or "none"; got {reduction!r}.')
