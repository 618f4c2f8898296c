"""multi_queue_infonce on CPU in C++ (csrc/infonce), which reads the tensors; checks are done."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from mixfast.ops import _native
from mixfast.ops._native import REDUCTIONS
from mixfast.ops.infonce import _checks

_C: Any = _native.cpu

unavailable = _native.cpu_unavailable


def why_not(device_type: str, dtype: torch.dtype, queue_dtype: torch.dtype, dim: int) -> str | None:
    return None if device_type == "cpu" else f"it runs on CPU tensors; these are on {device_type}"


def instruction_sets() -> list[int]:
    """Codes of the instruction sets that this processor can run, from slow to fast."""
    return _C.infonce_instruction_sets() if _C else []


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
) -> tuple[Tensor, Tensor | None, Tensor]:
    """(losses, grad_queries, negative_share) as `_operators.forward` describes them."""
    scale = temperatures if temperature is None else temperature
    results: tuple[Tensor, Tensor | None, Tensor] | None = _C.infonce_forward(
        *(queries, positives, queues, queue_index, valid_len, scale, REDUCTIONS[reduction], need_grad, instruction_set)
    )
    if results is None:
        _checks.check_values(valid_len, temperature, [queue.shape[0] for queue in queues])
        raise AssertionError("C++ refuses values that Python accepts")
    return results


def backward(
    grad_losses: Tensor,
    grad_queries: Tensor,
    negative_share: Tensor,
    queries: Sequence[Tensor],
    temperature: Tensor | None,
    temperatures: list[float],
    reduction: str,
    needs: Sequence[bool],
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """(d_queries, d_positives, d_temperature) as `_operators.backward` describes them."""
    scale = temperatures if temperature is None else temperature
    return _C.infonce_backward(  # type: ignore[no-any-return]
        grad_losses, grad_queries, negative_share, queries, scale, REDUCTIONS[reduction], *needs
    )
