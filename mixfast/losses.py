"""Contrastive losses as pure functions on top of the operations; no state, no modules."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from mixfast.ops import multi_queue_infonce, nt_xent
from mixfast.spans import span

__all__ = ["PairTerm", "Term", "infonce_sum", "minus_cosine", "nt_xent_sum", "unit"]


@dataclass(frozen=True)
class Term:
    """One InfoNCE term of a loss: which vectors meet, whose keys are the negatives, and how much it counts."""

    name: str  # key of the term in `Step.parts`
    query: Tensor  # [B, D] unit rows, with gradient
    positive: Tensor  # [B, D] unit rows; row n is the positive of query n
    queue: str  # name of the queue that holds the negatives
    weight: Tensor | float = 1.0  # number, or [B]: applied to each row before the mean over rows


def unit(vectors: Tensor) -> Tensor:
    """Rows of [B, D] divided by their lengths, in float32 (float64 stays): bfloat16 would lose the cosine's digits."""
    return F.normalize(vectors.to(torch.promote_types(vectors.dtype, torch.float32)), dim=1)


@span("losses")
def infonce_sum(
    terms: Sequence[Term], queues: Mapping[str, Tensor], temperature: float
) -> tuple[Tensor, dict[str, Tensor]]:
    """Weighted sum of InfoNCE terms, all through one call of the operation, so that a queue is read once.

    loss = sum_t mean_n w_tn * -log( e^{q.k/T} / (e^{q.k/T} + sum_j e^{q.queue_j/T}) )

    Args:
        terms: at least one; all with the same B and D, names all different.
        queues: by name, [K, D] unit rows without gradient.
        temperature: T, the cosines are divided by it.

    Returns:
        (loss, parts): a scalar, and by term the detached mean over rows *before* weighting, to be compared with
        the loss of guessing, ln(1 + K).
    """
    names = list(dict.fromkeys(term.queue for term in terms))
    losses = multi_queue_infonce(
        [term.query for term in terms],
        [term.positive for term in terms],
        [queues[name] for name in names],
        [names.index(term.queue) for term in terms],
        temperature=temperature,
        reduction="none",
    )
    rows = torch.stack(list(losses))  # [T, B]
    weights = torch.stack(
        [
            term.weight.to(rows.dtype)
            if isinstance(term.weight, Tensor)
            else rows.new_full(rows.shape[1:], term.weight)
            for term in terms
        ]
    )
    means = rows.detach().mean(dim=1).unbind()
    return (weights * rows).mean(dim=1).sum(), {term.name: mean for term, mean in zip(terms, means, strict=True)}


@dataclass(frozen=True)
class PairTerm:
    """One NT-Xent term of a loss: two views whose rows look for each other among all rows of both."""

    name: str  # key of the term in `Step.parts`
    first: Tensor  # [B, D] unit rows
    second: Tensor  # [B, D] unit rows; row n shows the image of first's row n
    weight: Tensor | float = 1.0  # number, or [B]: applied to both anchors of each row before the mean
    excluded: Tensor | None = None  # int64 [2 B]: per anchor one more row that is no negative, or -1


@span("losses")
def nt_xent_sum(terms: Sequence[PairTerm], temperature: float) -> tuple[Tensor, dict[str, Tensor]]:
    """Weighted sum of NT-Xent terms, each a mean over its 2 B anchors (`mixfast.nt_xent`).

    Returns:
        (loss, parts): a scalar, and by term the detached mean over anchors *before* weighting, to be compared with
        the loss of guessing, ln(2 B - 1).
    """
    losses, parts = [], {}
    for term in terms:
        rows = nt_xent(
            term.first, term.second, temperature=temperature, excluded=term.excluded, reduction="none"
        )  # [2 B]
        weight = term.weight.to(rows.dtype).repeat(2) if isinstance(term.weight, Tensor) else term.weight
        losses.append((weight * rows).mean())
        parts[term.name] = rows.detach().mean()
    return torch.stack(losses).sum(), parts


@span("losses")
def minus_cosine(predictions: Tensor, targets: Tensor) -> Tensor:
    """-cos of each row of [B, D] with the same row of `targets`: [B], in [-1, 1] (BYOL, Grill et al. 2020, eq. 2)."""
    return -(unit(predictions) * unit(targets)).sum(dim=1)
