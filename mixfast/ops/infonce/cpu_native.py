"""multi_queue_infonce on CPU in C++ (csrc/infonce): checks are done, addresses and sizes go out."""

import functools
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from mixfast.ops import _native
from mixfast.ops._check import statistics_dtype
from mixfast.ops._native import DTYPES, REDUCTIONS
from mixfast.ops.infonce import _checks
from mixfast.ops.infonce._operators import Terms, empty_gradients

_C: Any = _native.cpu

unavailable = _native.cpu_unavailable


def why_not(device_type: str, dtype: torch.dtype, queue_dtype: torch.dtype, dim: int) -> str | None:
    return None if device_type == "cpu" else f"it runs on CPU tensors; these are on {device_type}"


@functools.cache
def instruction_sets() -> list[int]:
    """Codes of the instruction sets that this processor can run, from slow to fast."""
    return _C.infonce_instruction_sets() if _C else []


def adjacent(tensors: Sequence[Tensor]) -> list[Tensor]:
    """Rows with adjacent elements: copies where they are not so, which live as long as the list."""
    return [rows if rows.stride()[-1] == 1 else rows.contiguous() for rows in tensors]


def term_table(queries: Sequence[Tensor], positives: Sequence[Tensor] = (), queue_index: Sequence[int] = ()) -> Any:
    """Six numbers a term, as csrc/infonce/bind.h reads them; a backward pass needs neither positives nor queues."""
    starts, matches = _starts(queries), _starts(positives)
    table: list[int] = []
    for t, (address, stride, rows) in enumerate(starts):
        match = matches[t][:2] if matches else (0, 0)
        table += address, stride, *match, rows, queue_index[t] if queue_index else 0
    return table


def _starts(tensors: Sequence[Tensor]) -> list[tuple[int, int, int]]:
    """Address, row stride and rows of each term."""
    if tensors and tensors[0].dim() == 3:
        (stacked,) = tensors
        address, step = stacked.data_ptr(), stacked.stride(0) * stacked.element_size()
        return [(address + t * step, stacked.stride(1), stacked.size(1)) for t in range(stacked.size(0))]
    return [(rows.data_ptr(), rows.stride()[0], rows.shape[0]) for rows in tensors]


def queue_table(queues: Sequence[Tensor], keys: Sequence[int]) -> list[int]:
    """Four numbers a queue; `keys` says how many of its rows count."""
    table: list[int] = []
    for queue, count in zip(queues, keys, strict=True):
        table += queue.data_ptr(), count, *queue.stride()
    return table


def forward(
    terms: Terms,
    positives: Sequence[Tensor],
    queues: Sequence[Tensor],
    queue_index: Sequence[int],
    valid_len: Tensor | None,
    need_grad: bool,
    instruction_set: int = -1,
) -> tuple[Tensor, Tensor, Tensor]:
    """(losses, grad_queries, negative_share) as `_operators.forward` describes them."""
    first, keys = terms.queries[0], [queue.shape[0] for queue in queues]
    _checks.check_values(valid_len, terms.temperature, keys)
    if valid_len is not None:
        keys = valid_len.tolist()
    rows, matches, counts = adjacent(terms.queries), adjacent(positives), terms.row_counts()
    dim, total, statistics = first.shape[-1], sum(counts), statistics_dtype(first.dtype)
    losses = first.new_empty(total if terms.reduction == "none" else len(counts), dtype=statistics)
    grad_queries = first.new_empty((total if need_grad else 0, dim), dtype=statistics)
    negative_share = first.new_empty(total, dtype=statistics)
    _C.infonce_forward(
        term_table(rows, matches, queue_index),
        terms.temperatures if terms.temperature is None else terms.temperature.tolist(),
        DTYPES[first.dtype],
        queue_table(queues, keys),
        DTYPES[queues[0].dtype],
        dim,
        REDUCTIONS[terms.reduction],
        losses.data_ptr(),
        grad_queries.data_ptr(),
        negative_share.data_ptr(),
        *_native.cpu_place(instruction_sets(), instruction_set),
    )
    return losses, grad_queries, negative_share


def backward(
    terms: Terms, grad_losses: Tensor, grad_queries: Tensor, negative_share: Tensor, needs: Sequence[bool]
) -> tuple[Tensor, Tensor, Tensor]:
    """(d_queries, d_positives, d_temperature) as `_operators.backward` describes them."""
    rows = adjacent(terms.queries)
    d_queries, d_positives, d_temperature = gradients = empty_gradients(terms, grad_queries, needs)
    _C.infonce_backward(
        term_table(rows),
        terms.temperatures if terms.temperature is None else terms.temperature.tolist(),
        DTYPES[rows[0].dtype],
        grad_queries.shape[1],
        REDUCTIONS[terms.reduction],
        grad_losses.data_ptr(),
        grad_losses.stride(0),
        grad_queries.data_ptr(),
        negative_share.data_ptr(),
        d_queries.data_ptr(),
        d_positives.data_ptr(),
        d_temperature.data_ptr(),
        torch.get_num_threads(),
    )
    return gradients
