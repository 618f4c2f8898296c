"""multi_queue_infonce on CPU in C++ (csrc/multi_queue_infonce): checks are done, addresses and sizes go out."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from mixfast.ops import _native
from mixfast.ops.multi_queue_infonce import _checks

TYPES = {torch.float32: 0, torch.float64: 1, torch.float16: 2, torch.bfloat16: 3}  # csrc/multi_queue_infonce/unit.h
REDUCTIONS = {"none": 0, "mean": 1, "sum": 2}  # csrc/multi_queue_infonce/cpu.h


def unavailable() -> str | None:
    return None if _native.cpu else _native.cpu_error


def why_not(device_type: str, dtype: torch.dtype, queue_dtype: torch.dtype) -> str | None:
    return None if device_type == "cpu" else f"it runs on CPU tensors; these are on {device_type}"


def instruction_sets() -> list[int]:
    """Codes of the instruction sets that this processor can run, from slow to fast."""
    return _native.cpu.infonce_instruction_sets() if _native.cpu else []


def _per_term(temperature: Tensor | None, temperatures: list[float]) -> list[float]:
    if temperature is None:
        return temperatures
    values = temperature.tolist()
    _checks.check_temperature_values(values)
    return values


class Terms(NamedTuple):
    """Where the rows of the terms lie. `kept` holds copies of tensors whose rows had no adjacent elements."""

    kept: list[Tensor]
    rows: list[int]
    addresses: list[int]
    strides: list[int]  # between rows, in elements


def _terms(tensors: Sequence[Tensor]) -> Terms:
    """T tensors [N_t, D], or a single [T, N, D]."""
    kept = [tensor if tensor.stride(-1) == 1 else tensor.contiguous() for tensor in tensors]
    first = kept[0]
    if first.dim() == 3:
        count, step, start = first.size(0), first.stride(0) * first.element_size(), first.data_ptr()
        addresses = [start + t * step for t in range(count)]
        return Terms(kept, [first.size(1)] * count, addresses, [first.stride(1)] * count)
    return Terms(
        kept,
        [tensor.size(0) for tensor in kept],
        [tensor.data_ptr() for tensor in kept],
        [tensor.stride(0) for tensor in kept],
    )


def forward(
    queries: Sequence[Tensor],
    positives: Sequence[Tensor],
    queues: Sequence[Tensor],
    queue_index: list[int],
    temperature: Tensor | None,
    temperatures: list[float],
    reduction: str,
    need_grad: bool,
    instruction_set: int = -1,
) -> tuple[Tensor, Tensor, Tensor]:
    """(losses, grad_queries, negative_share) as `_operators.forward` describes them."""
    anchors, matches = _terms(queries), _terms(positives)
    total, dim, dtype = sum(anchors.rows), queries[0].size(-1), queries[0].dtype
    statistics = torch.float64 if dtype == torch.float64 else torch.float32
    losses = torch.empty(total if reduction == "none" else len(anchors.rows), dtype=statistics)
    grad_queries = torch.empty((total if need_grad else 0, dim), dtype=statistics)
    negative_share = torch.empty(total, dtype=statistics)
    _native.cpu.infonce_forward(  # type: ignore[union-attr]
        anchors.rows,
        anchors.addresses,
        anchors.strides,
        matches.addresses,
        matches.strides,
        queue_index,
        _per_term(temperature, temperatures),
        TYPES[dtype],
        [queue.data_ptr() for queue in queues],
        [queue.size(0) for queue in queues],
        [queue.stride(0) for queue in queues],
        [queue.stride(1) for queue in queues],
        TYPES[queues[0].dtype],
        dim,
        REDUCTIONS[reduction],
        losses.data_ptr(),
        grad_queries.data_ptr() if need_grad else 0,
        negative_share.data_ptr(),
        torch.get_num_threads(),
        instruction_sets()[instruction_set] if instruction_set < 0 else instruction_set,
    )
    return losses, grad_queries, negative_share


def backward(
    grad_losses: Tensor,
    grad_queries: Tensor,
    negative_share: Tensor,
    queries: Sequence[Tensor],
    temperature: Tensor | None,
    temperatures: list[float],
    reduction: str,
    needs: list[bool],
) -> tuple[Tensor, Tensor, Tensor]:
    """(d_queries, d_positives, d_temperature) as `_operators.backward` describes them."""
    terms = _terms(queries)
    total, dim, dtype = grad_queries.size(0), grad_queries.size(1), queries[0].dtype
    d_queries = torch.empty((total if needs[0] else 0, dim), dtype=dtype)
    d_positives = torch.empty((total if needs[1] else 0, dim), dtype=dtype)
    d_temperature = torch.empty(len(terms.rows) if needs[2] else 0, dtype=grad_queries.dtype)
    _native.cpu.infonce_backward(  # type: ignore[union-attr]
        terms.rows,
        terms.addresses,
        terms.strides,
        _per_term(temperature, temperatures),
        TYPES[dtype],
        dim,
        REDUCTIONS[reduction],
        grad_losses.data_ptr(),
        grad_losses.stride(0),
        grad_queries.data_ptr(),
        negative_share.data_ptr(),
        d_queries.data_ptr() if needs[0] else 0,
        d_positives.data_ptr() if needs[1] else 0,
        d_temperature.data_ptr() if needs[2] else 0,
        torch.get_num_threads(),
    )
    return d_queries, d_positives, d_temperature
