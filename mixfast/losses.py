"""Contrastive losses as pure functions on top of the operations; no state, no modules."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from mixfast.ops import multi_queue_infonce, nt_xent
from mixfast.spans import span
from mixfast.world import World, current

__all__ = ["PairTerm", "Term", "infonce_sum", "minus_cosine", "nt_xent_sum", "unit"]


@dataclass(frozen=True)
class Term:
    """One InfoNCE term of a loss: which vectors meet, whose keys are the negatives, and how much it counts."""

    name: str  # key of the term in `Step.parts`
    query: Tensor  # [N, D] unit rows, with gradient; N may differ from term to term
    positive: Tensor  # [N, D] unit rows; row n is the positive of query n
    queue: str  # name of the queue that holds the negatives
    weight: Tensor | float = 1.0  # number or scalar tensor, or [N]: applied to each row before the mean over rows
    negative: Tensor | None = None  # [N, D] unit rows: row n is one more negative of query n, beside the queue's


def unit(vectors: Tensor) -> Tensor:
    """Rows of `vectors` [B, D] divided by their lengths, in float32 or, for float64, float64."""
    return F.normalize(vectors.to(torch.promote_types(vectors.dtype, torch.float32)), dim=1)


@span("losses")
def infonce_sum(
    terms: Sequence[Term], queues: Mapping[str, Tensor], temperature: float
) -> tuple[Tensor, dict[str, Tensor]]:
    """Weighted sum of InfoNCE terms, all through one call of the operation, so that a queue is read once.

    loss = sum_t mean_n w_tn * -log( e^{q.k/T} / (e^{q.k/T} + sum_j e^{q.queue_j/T}) )

    A term's `negative` adds e^{q.negative/T} to the denominator.

    Args:
        terms: at least one, with equal D and different names; N may differ, as for dense and global terms.
        queues: [K, D] unit rows without gradient, by name.
        temperature: T, by which the cosines are divided.

    Returns:
        (loss, parts): a scalar; and for each term, by name, its detached mean loss over rows *before* weighting, to be
        compared with the chance level, ln(1 + K).

    Raises:
        ValueError: a weight is neither one number nor one per row.
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
    losses = [_with_negative(term, rows, temperature) for term, rows in zip(terms, losses, strict=True)]
    weighted = [_weighted_mean(rows, term.weight) for term, rows in zip(terms, losses, strict=True)]
    parts = {term.name: rows.detach().mean() for term, rows in zip(terms, losses, strict=True)}
    return torch.stack(weighted).sum(), parts


def _with_negative(term: Term, rows: Tensor, temperature: float) -> Tensor:
    """The losses [N] of a term, ln(denominator) - q.k/T, with its own negative in the denominator."""
    if term.negative is None:
        return rows
    above = (term.query * (term.negative - term.positive)).sum(dim=1) / temperature
    return torch.logaddexp(rows, above.to(rows.dtype))


@dataclass(frozen=True)
class PairTerm:
    """One NT-Xent term of a loss: each row of two views is compared with all other rows of both views."""

    name: str  # key of the term in `Step.parts`
    first: Tensor  # [B, D] unit rows
    second: Tensor  # [B, D] unit rows; row n shows the image of first's row n
    weight: Tensor | float = 1.0  # number or scalar tensor, or [B]: applied to both anchors of a row before the mean
    excluded: Tensor | None = None  # int64 [2 B]: per anchor one more row that is no negative, or -1


@span("losses")
def nt_xent_sum(terms: Sequence[PairTerm], temperature: float) -> tuple[Tensor, dict[str, Tensor]]:
    """Weighted sum of NT-Xent terms at one `temperature`, each a mean over its 2 B anchors (`mixfast.nt_xent`).

    With several processes, all of them compute the loss of the global batch, from the rows of all.

    Returns:
        (loss, parts): a scalar; and for each term, by name, its detached mean loss over anchors *before* weighting, to
        be compared with the chance level, ln(2 B - 1).
    """
    losses, parts = [], {}
    world = current()
    for term in terms if world.size == 1 else [_global(term, world) for term in terms]:
        rows = nt_xent(
            term.first, term.second, temperature=temperature, excluded=term.excluded, reduction="none"
        )  # [2 B]
        weight = term.weight
        if isinstance(weight, Tensor) and weight.ndim == 1:
            weight = weight.repeat(2)
        losses.append(_weighted_mean(rows, weight))
        parts[term.name] = rows.detach().mean()
    return torch.stack(losses).sum(), parts


def _global(term: PairTerm, world: World) -> PairTerm:
    """The term with the rows of all processes, in the order of the global batch."""
    count = len(term.first)
    weight, excluded = term.weight, term.excluded
    if isinstance(weight, Tensor) and weight.ndim == 1:
        weight = world.ordered(weight)
    if excluded is not None:
        rows = world.rows(world.size * count, excluded.device)
        own_rows = torch.cat([rows, rows + world.size * count])  # of the own rows among all rows of both views
        excluded = world.ordered(torch.where(excluded < 0, -1, own_rows[excluded]), count)
    first, second = world.gather_for_loss(term.first), world.gather_for_loss(term.second)
    return PairTerm(term.name, first, second, weight, excluded)


def _weighted_mean(rows: Tensor, weight: Tensor | float) -> Tensor:
    """Mean over the losses [N] of a term's rows, each times its weight: one number, or [N]."""
    if isinstance(weight, Tensor):
        if weight.shape not in ((), rows.shape):
            raise ValueError(
                f"Term.weight must be a number, a scalar tensor or one number per row, [{len(rows)}]; "
                f"got a tensor of shape {list(weight.shape)}."
            )
        weight = weight.to(rows.dtype)
    return (weight * rows).mean()


@span("losses")
def minus_cosine(predictions: Tensor, targets: Tensor) -> Tensor:
    """Minus the cosine of each row of `predictions` and `targets` [B, D]: [B] (BYOL, Grill et al. 2020, eq. 2)."""
    return -(unit(predictions) * unit(targets)).sum(dim=1)
