"""Diagnostics without labels: collapse of the encoder, and how a loss finds its positives."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from mixfast.losses import Term

OTHER_IMAGE = 2  # rows to the positive of another image, which the mixture of a row does not contain: `top1_accuracy`


def normalised_std(rows: Tensor) -> Tensor:
    """Mean standard deviation of the coordinates of unit rows [N, D], times sqrt(D).

    1 if the rows fill the sphere, 0 if all rows are the same.
    """
    return rows.std(dim=0, correction=0).mean() * rows.shape[1] ** 0.5


def effective_rank(rows: Tensor) -> Tensor:
    """exp of the entropy of the singular values of rows [N, C] less their mean, as shares of their sum.

    C if all directions are equally strong, 1 if there is one; 0 if all rows are the same (Roy & Vetterli 2007).
    """
    values = torch.linalg.svdvals((rows - rows.mean(dim=0)).double())
    shares = values / values.sum().clamp(min=torch.finfo(values.dtype).tiny)
    return torch.special.entr(shares).sum().exp() * (values.sum() > 0)


def alignment(first: Tensor, second: Tensor) -> Tensor:
    """Mean squared distance between the unit rows of one view, `first` [N, D], and those of another, `second` [N, D].

    0 if the views of an image agree, 2 if they are at right angles (Wang & Isola 2020, section 4.1.1, alpha = 2).
    """
    return (first - second).square().sum(dim=1).mean()


def uniformity(rows: Tensor) -> Tensor:
    """log of the mean of exp(-2 |u - v|^2) over pairs of different unit rows [N, D], N >= 2.

    0 if all rows are the same; lower is more uniform, about -4 on a sphere in many dimensions (Wang & Isola 2020,
    section 4.1.2, t = 2).
    """
    return torch.nn.functional.pdist(rows).square().mul(-2).exp().mean().log()


def top1_accuracy(terms: Sequence[Term], queues: Mapping[str, Tensor], shift: int = 0) -> dict[str, Tensor]:
    """By term, the share of queries that are more similar to their positive than to every key of the term's queue.

    With a `shift`, row n gets the positive of row n - shift, which is another image's. An accuracy above the chance
    level, 1 / (K + 1), then means that positives are recognised without the image: only they were made with this step's
    box and encoder. The mixture of row n contains the images n and B - 1 - n; the image `OTHER_IMAGE` rows away is
    neither, if the batch size B is even and above 2.

    Args:
        terms: the terms of one step.
        queues: by name, [K, D].
        shift: rows by which positives are rotated.
    """
    shares = {}
    for term in terms:
        query, positive = term.query.float(), term.positive.float().roll(shift, 0)
        nearest = (query @ queues[term.queue].float().T).amax(dim=1)
        shares[term.name] = ((query * positive).sum(dim=1) > nearest).float().mean()
    return shares
