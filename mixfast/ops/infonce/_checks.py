"""Argument checks of multi_queue_infonce. They read shapes and types, and no tensor's values."""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple, NoReturn

import torch
from torch import Tensor

NAME = "multi_queue_infonce"
FLOATS = (torch.float32, torch.float16, torch.bfloat16, torch.float64)
FLOAT_NAMES = "float16, bfloat16, float32 or float64"


class Rows(NamedTuple):
    """What all queries and positives have in common, and how many rows each term has."""

    counts: tuple[int, ...]
    dim: int
    dtype: torch.dtype
    device: torch.device


_accepted: dict[object, tuple[Rows, torch.dtype]] = {}
MOST_ACCEPTED = 1024


def _type_error(message: str) -> NoReturn:
    raise TypeError(f"{NAME}: {message}")


def _value_error(message: str) -> NoReturn:
    raise ValueError(f"{NAME}: {message}")


def check_tensors(queries: Any, positives: Any, queues: Any) -> tuple[Rows, torch.dtype]:
    """All tensors; returns the rows and the dtype of the queues. What was accepted once is not looked into again."""
    key = None if torch.compiler.is_compiling() else _key(queries, positives, queues)
    found = None if key is None else _accepted.get(key)
    if found is None:
        rows = check_rows(queries, positives)
        found = rows, check_queues(queues, rows)
        if key is not None:
            if len(_accepted) == MOST_ACCEPTED:
                _accepted.clear()
            _accepted[key] = found
    return found


def _key(*groups: Any) -> object | None:
    """All that the checks of tensors look at; None for what is none, and for sizes that are symbols."""
    try:
        key = tuple([_traits(group) for group in groups])
        hash(key)
    except (AttributeError, TypeError):
        return None
    return key


def _traits(tensors: Any) -> object:
    if isinstance(tensors, Tensor):
        return tensors.shape, tensors.dtype, tensors.device, tensors.layout
    if not isinstance(tensors, (list, tuple)):
        raise TypeError
    return tuple([(each.shape, each.dtype, each.device, each.layout, each.requires_grad) for each in tensors])


def check_rows(queries: Any, positives: Any) -> Rows:
    """Queries and positives: sequences of T tensors [N_t, D], or tensors [T, N, D], that agree in everything."""
    if isinstance(queries, Tensor):
        if queries.ndim != 3:
            _value_error(
                f"queries must be T tensors [N, D] or one tensor [T, N, D]; got a tensor {list(queries.shape)}. "
                "For a single term pass [queries]."
            )
        _check_tensor("queries", queries)
        first, counts = queries, (queries.shape[1],) * queries.shape[0]
    else:
        _check_sequence("queries", queries, "T tensors [N, D] or one tensor [T, N, D]")
        for t, query in enumerate(queries):
            _check_term("queries", t, query, queries[0])
        first, counts = queries[0] if queries else torch.empty(0), tuple([query.shape[0] for query in queries])
    if not counts:
        _value_error("queries must hold at least one term; got none.")
    dim = first.shape[-1]
    if dim < 1 or min(counts) < 1:
        _value_error(f"every term needs at least one row and one dimension; got rows {list(counts)}, D = {dim}.")
    _check_positives(positives, first, counts, dim)
    return Rows(counts, dim, first.dtype, first.device)


def _check_positives(positives: Any, first: Tensor, counts: tuple[int, ...], dim: int) -> None:
    if isinstance(positives, Tensor):
        if positives.ndim != 3:
            _value_error(
                f"positives must be T tensors [N, D] or one tensor [T, N, D]; got a tensor {list(positives.shape)}. "
                "For a single term pass [positives]."
            )
        shapes = [tuple(positives.shape[1:])] * positives.shape[0]
        tensors: Sequence[Any] = (positives,)
    else:
        _check_sequence("positives", positives, "T tensors [N, D] or one tensor [T, N, D]")
        tensors = positives
        shapes = []
    for t, positive in enumerate(tensors):
        name = "positives" if positive is positives else f"positives[{t}]"
        _check_tensor(name, positive)
        if positive.dtype != first.dtype:
            _type_error(f"{name} must have the dtype of queries, {first.dtype}; got {positive.dtype}. Convert one.")
        if positive.device != first.device:
            _value_error(f"{name} must be on the device of queries, {first.device}; got {positive.device}.")
        if positive is not positives:
            shapes.append(tuple(positive.shape))
    if len(shapes) != len(counts):
        _value_error(f"positives must hold as many terms as queries, {len(counts)}; got {len(shapes)}.")
    for t, (shape, rows) in enumerate(zip(shapes, counts, strict=True)):
        if shape != (rows, dim):
            _value_error(f"positives[{t}] must be [N, D] = {[rows, dim]} as queries[{t}]; got {list(shape)}.")


def _check_sequence(name: str, value: Any, expected: str) -> None:
    if not isinstance(value, (list, tuple)):
        _type_error(f"{name} must be {expected}; got {type(value).__name__}.")


def _check_tensor(name: str, tensor: Any) -> None:
    if not isinstance(tensor, Tensor):
        _type_error(f"{name} must be a tensor; got {type(tensor).__name__}.")
    if tensor.dtype not in FLOATS:
        _type_error(f"{name} must be {FLOAT_NAMES}; got {tensor.dtype}. Convert it, with .float() for instance.")
    if tensor.layout is not torch.strided:
        _type_error(f"{name} must be dense; got layout {tensor.layout}. Call .to_dense() first.")


def _check_term(name: str, t: int, tensor: Any, first: Tensor) -> None:
    _check_tensor(f"{name}[{t}]", tensor)
    if tensor.ndim != 2:
        _value_error(f"{name}[{t}] must be [N, D]; got {tensor.ndim}-D {list(tensor.shape)}.")
    if tensor.shape[1] != first.shape[1]:
        _value_error(f"all {name} must share D = {first.shape[1]}; got {name}[{t}] {list(tensor.shape)}.")
    if tensor.dtype != first.dtype:
        _type_error(f"all {name} must share one dtype, {first.dtype}; got {tensor.dtype} for {name}[{t}].")
    if tensor.device != first.device:
        _value_error(f"all {name} must be on one device, {first.device}; got {tensor.device} for {name}[{t}].")


def check_queues(queues: Any, rows: Rows) -> torch.dtype:
    """Queues: Q tensors [K_q, D] of one dtype, without gradient. Returns the dtype."""
    if isinstance(queues, Tensor):
        _type_error(f"queues must be a sequence of tensors [K, D]; got a tensor {list(queues.shape)}. Pass [queue].")
    _check_sequence("queues", queues, "a sequence of tensors [K, D]")
    if not queues:
        _value_error("queues must hold at least one queue; got none.")
    for i, queue in enumerate(queues):
        name = f"queues[{i}]"
        _check_tensor(name, queue)
        if queue.ndim != 2 or queue.shape[1] != rows.dim:
            _value_error(f"{name} must be [K, D] with D = {rows.dim} as in queries; got {list(queue.shape)}.")
        if queue.shape[0] < 1:
            _value_error(
                f"{name} is empty: [K, D] = {list(queue.shape)}. Fill it, with random unit rows at first, say."
            )
        if queue.device != rows.device:
            _value_error(f"{name} must be on the device of queries, {rows.device}; got {queue.device}.")
        if queue.dtype != queues[0].dtype:
            _type_error(f"all queues must share one dtype, {queues[0].dtype}; got {queue.dtype} for {name}.")
        if (queue.dtype == torch.float64) != (rows.dtype == torch.float64):
            _type_error(f"float64 goes with float64 only; got queries {rows.dtype} and {name} {queue.dtype}.")
        if queue.requires_grad:
            _value_error(f"{name} receives no gradient, but it requires one. Pass {name}.detach().")
    dtype: torch.dtype = queues[0].dtype
    return dtype


def check_queue_index(queue_index: Any, terms: int, queues: int) -> None:
    """queue_index: T integers in [0, Q)."""
    if not isinstance(queue_index, (list, tuple)):
        hint = " Call .tolist()." if isinstance(queue_index, Tensor) else ""
        _type_error(f"queue_index must be a sequence of {terms} integers; got {type(queue_index).__name__}.{hint}")
    if len(queue_index) != terms:
        _value_error(f"queue_index must name one queue per term, {terms}; got {len(queue_index)} entries.")
    for t, index in enumerate(queue_index):
        if type(index) is not int:
            _type_error(f"queue_index[{t}] must be an integer; got {index!r}.")
        if not 0 <= index < queues:
            _value_error(f"queue_index[{t}] must be in [0, {queues}), as there are {queues} queues; got {index}.")


def check_temperature(temperature: Any, terms: int, rows: Rows) -> list[float] | Tensor:
    """A number, T numbers, or a floating tensor [T]: as one number per term, or the tensor."""
    if isinstance(temperature, Tensor):
        if temperature.dtype not in FLOATS:
            _type_error(f"a temperature tensor must be {FLOAT_NAMES}; got {temperature.dtype}.")
        if temperature.shape != (terms,):
            _value_error(
                f"a temperature tensor must be [T] = [{terms}]; got {list(temperature.shape)}. "
                f"Call .expand({terms}) on a single one."
            )
        if temperature.device != rows.device:
            _value_error(f"temperature must be on the device of queries, {rows.device}; got {temperature.device}.")
        return temperature
    numbers = list(temperature) if isinstance(temperature, (list, tuple)) else [temperature]
    if isinstance(temperature, (list, tuple)) and len(numbers) != terms:
        _value_error(f"temperature must be one number or {terms}, one per term; got {len(numbers)}.")
    for number in numbers:
        if not isinstance(number, (int, float)) or isinstance(number, bool):
            _type_error(f"temperature must be a number, {terms} numbers or a tensor [{terms}]; got {number!r}.")
        if not 0 < number < math.inf:
            _value_error(f"temperature must be positive and finite; got {number}.")
    return [float(number) for number in numbers] * (terms // len(numbers))


def check_temperature_values(temperatures: Sequence[float]) -> None:
    """The values of a temperature tensor, where reading them is free."""
    for t, number in enumerate(temperatures):
        if not 0 < number < math.inf:
            _value_error(f"temperature[{t}] must be positive and finite; got {number}.")


def check_valid_len(valid_len: Any, queues: int, rows: Rows) -> None:
    """None, or an int64 tensor [Q]."""
    if valid_len is None:
        return
    if not isinstance(valid_len, Tensor):
        _type_error(f"valid_len must be None or an int64 tensor [{queues}]; got {type(valid_len).__name__}.")
    if valid_len.dtype != torch.int64:
        _type_error(f"valid_len must be int64; got {valid_len.dtype}. Call .long().")
    if valid_len.shape != (queues,):
        _value_error(f"valid_len must be [Q] = [{queues}], one number per queue; got {list(valid_len.shape)}.")
    if valid_len.device != rows.device:
        _value_error(f"valid_len must be on the device of queries, {rows.device}; got {valid_len.device}.")


def check_valid_len_values(lengths: Sequence[int], keys: Sequence[int]) -> None:
    """The values of valid_len, where reading them is free."""
    for q, (length, most) in enumerate(zip(lengths, keys, strict=True)):
        if not 0 <= length <= most:
            _value_error(f"valid_len[{q}] must be in [0, {most}], as queues[{q}] has {most} keys; got {length}.")


def check_values(valid_len: Tensor | None, temperature: Tensor | None, keys: Sequence[int]) -> None:
    """The values of both tensors, of those on the CPU."""
    if valid_len is not None and valid_len.device.type == "cpu":
        check_valid_len_values(valid_len.tolist(), keys)
    if temperature is not None and temperature.device.type == "cpu":
        check_temperature_values(temperature.tolist())


def check_reduction(reduction: Any) -> None:
    if reduction not in ("mean", "sum", "none"):
        _value_error(f'reduction must be "mean", "sum" or "none"; got {reduction!r}.')
