"""Argument checks of nt_xent. They read shapes and types, and no tensor's values."""

from typing import Any, NoReturn

from torch import Tensor

from mixfast.ops._check import Check

NAME = "nt_xent"
check = Check(NAME)


def check_views(first: Any, second: Any) -> None:
    """Both views: tensors [N, D] with the same shape, dtype and device."""
    for name, tensor in (("first", first), ("second", second)):
        check.floats(name, tensor, "a tensor [N, D]")
        if tensor.ndim != 2:
            check.value_error(f"{name} must be [N, D]; got {tensor.ndim}-D {list(tensor.shape)}.")
    if min(first.shape) < 1:
        check.value_error(f"the views need at least one row and one dimension; got first {list(first.shape)}.")
    if second.shape != first.shape:
        check.value_error(f"second must be [N, D] = {list(first.shape)} as first; got {list(second.shape)}.")
    check.dtype_of("second", second, "first", first.dtype)
    check.device_of("second", second, "first", first.device)


def check_temperature(temperature: Any, first: Tensor) -> float | Tensor:
    """A positive number, or a floating tensor []."""
    if isinstance(temperature, Tensor):
        check.temperature_tensor(temperature, "first", first.device)
        if temperature.ndim != 0:
            check.value_error(
                f"a temperature tensor must be a scalar []; got {list(temperature.shape)}. Call .squeeze()."
            )
        return temperature
    if not isinstance(temperature, (int, float)) or isinstance(temperature, bool):
        check.type_error(f"temperature must be a number or a scalar tensor; got {temperature!r}.")
    check.positive("temperature", temperature)
    return float(temperature)


def check_excluded(excluded: Any, first: Tensor) -> None:
    """None, or int64 [2N] on the device of the views."""
    if excluded is None:
        return
    rows = 2 * first.shape[0]
    check.int64("excluded", excluded, "None or a tensor int64 [2N]")
    if excluded.shape != (rows,):
        check.value_error(
            f"excluded must be [2N] = [{rows}], one row for each anchor of both views; got {list(excluded.shape)}."
        )
    check.device_of("excluded", excluded, "first", first.device)


def refuse_excluded(anchor: int, row: int, rows: int) -> NoReturn:
    """Raise for a wrong value in `excluded`, which the cpu backend has found."""
    if -1 <= row < rows:
        check.value_error(f"excluded[{anchor}] must not be the anchor's positive, row {row}.")
    check.value_error(f"excluded[{anchor}] must be -1 (none) or a row in [0, {rows}); got {row}.")
