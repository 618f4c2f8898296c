"""Argument checks of multi_queue_infonce. Those of `check_values` read a tensor's values, the others none."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from mixfast.ops._check import Check

NAME = "multi_queue_infonce"
check = Check(NAME)


class Rows(NamedTuple):
    """What all queries and positives have in common, and how many rows each term has."""

    counts: tuple[int, ...]
    dim: int
    dtype: torch.dtype
    device: torch.device


def check_rows(queries: Any, positives: Any) -> Rows:
    """Queries and positives: sequences of T tensors [N_t, D], or tensors [T, N, D], that agree in everything."""
    tensors, shapes = _terms("queries", queries)
    if not shapes:
        check.value_error("queries must hold at least one term; got none.")
    first, counts, dim = tensors[0], tuple([shape[0] for shape in shapes]), shapes[0][-1]
    rows = Rows(counts, dim, first.dtype, first.device)
    for t, (tensor, shape) in enumerate(zip(tensors, shapes, strict=False)):
        if len(shape) != 2:
            check.value_error(f"queries[{t}] must be [N, D]; got {len(shape)}-D {list(shape)}.")
        if shape[1] != dim:
            check.value_error(f"all queries must share D = {dim}; got queries[{t}] {list(shape)}.")
        if tensor.dtype != rows.dtype:
            check.type_error(f"all queries must share one dtype, {rows.dtype}; got {tensor.dtype} for queries[{t}].")
        if tensor.device != rows.device:
            check.value_error(
                f"all queries must be on one device, {rows.device}; got {tensor.device} for queries[{t}]."
            )
    if dim < 1 or min(counts) < 1:
        check.value_error(f"every term needs at least one row and one dimension; got rows {list(counts)}, D = {dim}.")
    _check_positives(positives, rows, shapes)
    return rows


def _terms(name: str, value: Any) -> tuple[Sequence[Tensor], list[torch.Size]]:
    """The tensors, and the shape of each term's rows."""
    if isinstance(value, Tensor):
        if value.ndim != 3:
            check.value_error(
                f"{name} must be T tensors [N, D] or one tensor [T, N, D]; got a tensor {list(value.shape)}. "
                f"For a single term pass [{name}]."
            )
        check.floats(name, value)
        return (value,), [value.shape[1:]] * value.shape[0]
    check.sequence(name, value, "T tensors [N, D] or one tensor [T, N, D]")
    check.all_floats(name, value)
    return value, [tensor.shape for tensor in value]


def _check_positives(positives: Any, rows: Rows, shapes: list[torch.Size]) -> None:
    tensors, found = _terms("positives", positives)
    for t, tensor in enumerate(tensors):
        if tensor.dtype != rows.dtype or tensor.device != rows.device:
            name = "positives" if tensor is positives else f"positives[{t}]"
            check.dtype_of(name, tensor, "queries", rows.dtype)
            check.device_of(name, tensor, "queries", rows.device)
    if len(found) != len(shapes):
        check.value_error(f"positives must hold as many terms as queries, {len(shapes)}; got {len(found)}.")
    for t, (shape, expected) in enumerate(zip(found, shapes, strict=True)):
        if shape != expected:
            check.value_error(f"positives[{t}] must be [N, D] = {list(expected)} as queries[{t}]; got {list(shape)}.")


def check_queues(queues: Any, rows: Rows) -> torch.dtype:
    """Queues: Q tensors [K_q, D] of one dtype, without gradient. Returns the dtype."""
    if isinstance(queues, Tensor):
        check.type_error(
            f"queues must be a sequence of tensors [K, D]; got a tensor {list(queues.shape)}. Pass [queue]."
        )
    check.sequence("queues", queues, "a sequence of tensors [K, D]")
    if not queues:
        check.value_error("queues must hold at least one queue; got none.")
    check.all_floats("queues", queues)
    first: torch.dtype = queues[0].dtype
    for i, queue in enumerate(queues):
        name, shape, dtype = f"queues[{i}]", queue.shape, queue.dtype
        if len(shape) != 2 or shape[1] != rows.dim:
            hint = f" Pass {name}.T, which is read in place." if len(shape) == 2 and shape[0] == rows.dim else ""
            check.value_error(f"{name} must be [K, D] with D = {rows.dim} as in queries; got {list(shape)}.{hint}")
        if shape[0] < 1:
            check.value_error(f"{name} is empty: [K, D] = {list(shape)}. Fill it, with random unit rows at first, say.")
        check.device_of(name, queue, "queries", rows.device)
        if dtype != first:
            check.type_error(f"all queues must share one dtype, {first}; got {dtype} for {name}.")
        if (dtype == torch.float64) != (rows.dtype == torch.float64):
            check.type_error(f"float64 goes with float64 only; got queries {rows.dtype} and {name} {dtype}.")
        if queue.requires_grad:
            check.value_error(f"{name} receives no gradient, but it requires one. Pass {name}.detach().")
    return first


def check_queue_index(queue_index: Any, terms: int, queues: int) -> None:
    """queue_index: T integers in [0, Q)."""
    if not isinstance(queue_index, (list, tuple)):
        hint = " Call .tolist()." if isinstance(queue_index, Tensor) else ""
        check.type_error(f"queue_index must be a sequence of {terms} integers; got {type(queue_index).__name__}.{hint}")
    if len(queue_index) != terms:
        check.value_error(f"queue_index must name one queue per term, {terms}; got {len(queue_index)} entries.")
    for t, index in enumerate(queue_index):
        if type(index) is not int:
            check.type_error(f"queue_index[{t}] must be an integer; got {index!r}.")
        if not 0 <= index < queues:
            check.value_error(f"queue_index[{t}] must be in [0, {queues}), as there are {queues} queues; got {index}.")


def check_temperature(temperature: Any, rows: Rows) -> list[float] | Tensor:
    """A number, T numbers, or a floating tensor [T] or []: as one number per term, or a tensor [T]."""
    terms = len(rows.counts)
    if isinstance(temperature, Tensor):
        check.temperature_tensor(temperature, "queries", rows.device)
        if temperature.shape not in ((terms,), ()):
            check.value_error(
                f"a temperature tensor must be [T] = [{terms}], or a scalar []; got {list(temperature.shape)}."
            )
        return temperature.expand(terms)
    numbers = list(temperature) if isinstance(temperature, (list, tuple)) else [temperature]
    if isinstance(temperature, (list, tuple)) and len(numbers) != terms:
        check.value_error(f"temperature must be one number or {terms}, one per term; got {len(numbers)}.")
    for number in numbers:
        if not isinstance(number, (int, float)) or isinstance(number, bool):
            check.type_error(f"temperature must be a number, {terms} numbers or a tensor [{terms}]; got {number!r}.")
        check.positive("temperature", number)
    return [float(number) for number in numbers] * (terms // len(numbers))


def check_valid_len(valid_len: Any, queues: int, rows: Rows) -> None:
    """None, or an int64 tensor [Q]."""
    if valid_len is None:
        return
    check.int64("valid_len", valid_len, f"None or an int64 tensor [{queues}]")
    if valid_len.shape != (queues,):
        check.value_error(f"valid_len must be [Q] = [{queues}], one number per queue; got {list(valid_len.shape)}.")
    check.device_of("valid_len", valid_len, "queries", rows.device)


def check_values(valid_len: Tensor | None, temperature: Tensor | None, keys: Sequence[int]) -> None:
    """The entries of tensors on the CPU, where reading them is free; `keys` are the lengths of the queues."""
    if valid_len is not None and valid_len.device.type == "cpu":
        for q, (length, most) in enumerate(zip(valid_len.tolist(), keys, strict=True)):
            if not 0 <= length <= most:
                check.value_error(
                    f"valid_len[{q}] must be in [0, {most}], as queues[{q}] has {most} keys; got {length}."
                )
    if temperature is not None and temperature.device.type == "cpu":
        for t, number in enumerate(temperature.tolist()):
            check.positive(f"temperature[{t}]", number)
