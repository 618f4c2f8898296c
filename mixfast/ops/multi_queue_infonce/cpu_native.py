"""multi_queue_infonce on CPU in C++ (csrc/multi_queue_infonce): checks are done, addresses and sizes go out."""

from collections.abc import Sequence

import torch
from torch import Tensor

from mixfast.ops import _native
from mixfast.ops._native import DTYPES, REDUCTIONS
from mixfast.ops.multi_queue_infonce import _checks
from mixfast.ops.multi_queue_infonce._arguments import terms

unavailable = _native.cpu_unavailable


def why_not(device_type: str, dtype: torch.dtype, queue_dtype: torch.dtype, dim: int) -> str | None:
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


def _keys(queues: Sequence[Tensor], valid_len: Tensor | None) -> list[int]:
    """How many keys of each queue count."""
    keys = [queue.shape[0] for queue in queues]
    if valid_len is None:
        return keys
    lengths = valid_len.tolist()
    _checks.check_valid_len_values(lengths, keys)
    return lengths


def forward(
    queries: Sequence[Tensor],
    positives: Sequence[Tensor],
    queues: Sequence[Tensor],
    queue_index: list[int],
    valid_len: Tensor | None,
    temperature: Tensor | None,
    temperatures: list[float],
    reduction: str,
    need_grad: bool,
    instruction_set: int = -1,
) -> tuple[Tensor, Tensor, Tensor]:
    """(losses, grad_queries, negative_share) as `_operators.forward` describes them."""
    anchors, matches, first = terms(queries), terms(positives), queries[0]
    total, dim, dtype = sum(anchors.rows), first.shape[-1], first.dtype
    statistics = torch.float64 if dtype == torch.float64 else torch.float32
    losses = first.new_empty(total if reduction == "none" else len(anchors.rows), dtype=statistics)
    grad_queries = first.new_empty((total if need_grad else 0, dim), dtype=statistics)
    negative_share = first.new_empty(total, dtype=statistics)
    _native.cpu.infonce_forward(  # type: ignore[union-attr]
        anchors.rows,
        anchors.addresses,
        anchors.strides,
        matches.addresses,
        matches.strides,
        queue_index,
        _per_term(temperature, temperatures),
        DTYPES[dtype],
        [queue.data_ptr() for queue in queues],
        _keys(queues, valid_len),
        [queue.stride(0) for queue in queues],
        [queue.stride(1) for queue in queues],
        DTYPES[queues[0].dtype],
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
    anchors, (total, dim), first = terms(queries), grad_queries.shape, queries[0]
    d_queries = first.new_empty((total if needs[0] else 0, dim))
    d_positives = first.new_empty((total if needs[1] else 0, dim))
    d_temperature = grad_queries.new_empty(len(anchors.rows) if needs[2] else 0)
    _native.cpu.infonce_backward(  # type: ignore[union-attr]
        anchors.rows,
        anchors.addresses,
        anchors.strides,
        _per_term(temperature, temperatures),
        DTYPES[first.dtype],
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
