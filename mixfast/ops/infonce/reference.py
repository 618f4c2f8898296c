"""multi_queue_infonce by its definition, in plain PyTorch: all logits of a term, then their cross entropy.

Shares no code with the other backends, which are tested against it. Gradients, second ones too, are PyTorch's own.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor


def unavailable() -> str | None:
    return None


def why_not(device_type: str, dtype: torch.dtype, queue_dtype: torch.dtype, dim: int) -> str | None:
    return None


def losses(
    queries: Sequence[Tensor] | Tensor,
    positives: Sequence[Tensor] | Tensor,
    queues: Sequence[Tensor],
    queue_index: Sequence[int],
    valid_len: Tensor | None,
    temperature: Sequence[float] | Tensor,
    reduction: str,
) -> Tensor:
    """[T] for reduction "mean" and "sum", else [N], term after term; `temperature` has one entry per term."""
    with torch.autocast(queues[0].device.type, enabled=False):
        terms = [
            _term(query, positive, queues[queue], None if valid_len is None else valid_len[queue], temperature[t])
            for t, (query, positive, queue) in enumerate(zip(queries, positives, queue_index, strict=True))
        ]
    if reduction == "none":
        return torch.cat(terms)
    return torch.stack([term.mean() if reduction == "mean" else term.sum() for term in terms])


def _term(query: Tensor, positive: Tensor, queue: Tensor, valid: Tensor | None, temperature: float | Tensor) -> Tensor:
    statistics = torch.float64 if query.dtype == torch.float64 else torch.float32
    query, positive, queue = query.to(statistics), positive.to(statistics), queue.to(statistics)
    match = (query * positive).sum(1, keepdim=True)  # [N, 1]
    if valid is not None:
        beyond = torch.arange(queue.shape[0], device=queue.device) >= valid
        queue = queue.masked_fill(beyond[:, None], 0.0)  # a NaN there would survive a gradient of zero
    logits = torch.cat([match, query @ queue.T], dim=1) / temperature  # [N, 1 + K]
    if valid is not None:
        logits = logits.masked_fill(F.pad(beyond, (1, 0)), -torch.inf)
    return F.cross_entropy(logits, torch.zeros(len(logits), dtype=torch.long, device=logits.device), reduction="none")
