"""Argument checks that several operations share. They read shapes and types, and no tensor's values."""

import sys
from collections.abc import Sequence
from numbers import Real
from typing import Any, NoReturn

import torch
from torch import Tensor

FLOATS = (torch.float32, torch.float16, torch.bfloat16, torch.float64)
FLOAT_NAMES = "float16, bfloat16, float32 or float64"


class Check:
    """The checks of one operation, whose name begins every message."""

    def __init__(self, operation: str):
        self.operation = operation

    def type_error(self, message: str) -> NoReturn:
        raise TypeError(f"{self.operation}: {message}")

    def value_error(self, message: str) -> NoReturn:
        raise ValueError(f"{self.operation}: {message}")

    def sequence(self, name: str, value: Any, expected: str) -> None:
        if not isinstance(value, (list, tuple)):
            self.type_error(f"{name} must be {expected}; got {type(value).__name__}.")

    def floats(self, name: str, tensor: Any, expected: str = "a tensor") -> None:
        """A dense tensor of floating-point numbers."""
        if not isinstance(tensor, Tensor):
            self.type_error(f"{name} must be {expected}; got {type(tensor).__name__}.")
        if tensor.dtype not in FLOATS:
            self.type_error(
                f"{name} must be {FLOAT_NAMES}; got {tensor.dtype}. Convert it, with .float() for instance."
            )
        self.dense(name, tensor)

    def all_floats(self, name: str, tensors: Sequence[Any]) -> None:
        """Dense tensors of floating-point numbers; the name name[i] is formatted only for an error."""
        for i, tensor in enumerate(tensors):
            if not isinstance(tensor, Tensor) or tensor.dtype not in FLOATS or tensor.layout is not torch.strided:
                self.floats(f"{name}[{i}]", tensor)

    def dense(self, name: str, tensor: Tensor) -> None:
        if tensor.layout is not torch.strided:
            self.type_error(f"{name} must be dense; got layout {tensor.layout}. Call .to_dense() first.")

    def dtype_of(self, name: str, tensor: Tensor, other: str, dtype: torch.dtype) -> None:
        """`tensor` must have the dtype of the argument `other`."""
        if tensor.dtype != dtype:
            self.type_error(f"{name} must have the dtype of {other}, {dtype}; got {tensor.dtype}. Convert one.")

    def device_of(self, name: str, tensor: Tensor, other: str, device: torch.device) -> None:
        """`tensor` must be on the device of the argument `other`."""
        if tensor.device != device:
            self.value_error(f"{name} must be on the device of {other}, {device}; got {tensor.device}.")

    def int64(self, name: str, tensor: Any, expected: str) -> None:
        if not isinstance(tensor, Tensor):
            self.type_error(f"{name} must be {expected}; got {type(tensor).__name__}.")
        if tensor.dtype != torch.int64:
            self.type_error(f"{name} must be int64; got {tensor.dtype}. Call .long().")

    def temperature_tensor(self, temperature: Tensor, other: str, device: torch.device) -> None:
        if temperature.dtype not in FLOATS:
            self.type_error(f"a temperature tensor must be {FLOAT_NAMES}; got {temperature.dtype}.")
        self.device_of("temperature", temperature, other, device)

    def positive(self, name: str, number: float) -> None:
        """A temperature: a number, or an entry of a CPU tensor, which can be read without waiting for a device."""
        if not (number > 0 and is_finite(number)):
            self.value_error(f"{name} must be positive and finite; got {number}.")

    def reduction(self, reduction: Any) -> None:
        if reduction not in ("mean", "sum", "none"):
            self.value_error(f'reduction must be "mean", "sum" or "none"; got {reduction!r}.')


def is_finite(value: Any) -> bool:
    """Whether `value` is a number, of Python or NumPy, that a float can hold."""
    number = isinstance(value, Real) and not isinstance(value, bool)
    return number and bool(abs(value) <= sys.float_info.max)


def autocast_rows(value: Any) -> Any:
    """Convert a loss's rows (a tensor or a sequence of tensors) as autocast does: to float32 on a CPU, where it treats
    them as the input of a loss, and to float16 on a GPU, where it treats them as that of a matrix product. float64
    tensors, and values that are not floating-point tensors, are returned unchanged."""
    if isinstance(value, (list, tuple)):
        return [autocast_rows(rows) for rows in value]
    if not isinstance(value, Tensor) or value.dtype not in FLOATS or value.dtype == torch.float64:
        return value
    kind = value.device.type
    if kind == "meta" or not torch.is_autocast_enabled(kind):
        return value
    return value.to(torch.float32 if kind == "cpu" else torch.float16)


def in_autocast() -> bool:
    """Whether autocast is on for CPU or CUDA tensors."""
    return torch.is_autocast_enabled("cpu") or torch.is_autocast_enabled("cuda")


def statistics_dtype(dtype: torch.dtype) -> torch.dtype:
    """The dtype in which sums over numbers of `dtype` are computed and stored."""
    return torch.float64 if dtype == torch.float64 else torch.float32
