"""Weighted nearest-neighbour classification (Wu et al. 2018), the monitor of the MoCo family."""

import torch
import torch.nn.functional as F
from torch import Tensor

from mixfast.scoring.features import Features
from mixfast.world import current

CHUNK_BYTES = 2**28  # bound on one chunk of similarities


@torch.no_grad()
def knn_predict(
    queries: Tensor, bank: Tensor, labels: Tensor, *, k: int = 200, temperature: float = 0.1, chunk: int | None = None
) -> Tensor:
    """The class with the largest sum of exp(similarity / temperature) over the k most similar bank rows.

    Similarity is the cosine. Of equal similarities at rank k, and of equal classes, the lower index counts.

    Args:
        queries: [M, D] and bank: [N, D], any floating dtype; normalised here, in float32.
        labels: [N] integer classes of the bank, from 0.
        k: neighbours, at most N.
        temperature: similarities are divided by it.
        chunk: number of queries computed at once; None: 64 on a CPU (measured fastest), 1024 on a GPU, fewer if their
            similarities would not fit in CHUNK_BYTES.

    Returns:
        [M] int64 classes.

    Raises:
        ValueError: shapes that do not fit, k outside 1..N, a temperature that is not positive.
    """
    _check(queries, bank, labels, k, temperature)
    bank = F.normalize(bank.float(), dim=1)
    queries = F.normalize(queries.float(), dim=1)
    classes = int(labels.max()) + 1
    if chunk is None:
        chunk = max(1, min(64 if queries.device.type == "cpu" else 1024, CHUNK_BYTES // (4 * len(bank))))
    world = current()  # several processes divide the chunks among them
    chunks = world.own_parts(queries.split(chunk))
    predictions = [_predict(rows, bank, labels, classes, k, temperature) for rows in chunks]
    return world.gather_parts(predictions, len(queries), chunk)


def _check(queries: Tensor, bank: Tensor, labels: Tensor, k: int, temperature: float) -> None:
    if queries.ndim != 2 or bank.ndim != 2 or queries.shape[1] != bank.shape[1]:
        raise ValueError(
            f"knn_predict: queries must be [M, D] and bank [N, D] with one D; "
            f"got {list(queries.shape)} and {list(bank.shape)}"
        )
    if labels.shape != bank.shape[:1] or labels.is_floating_point():
        raise ValueError(
            f"knn_predict: labels must be [{len(bank)}] integers; got {list(labels.shape)} of {labels.dtype}"
        )
    if not 1 <= k <= len(bank):
        raise ValueError(f"knn_predict: k must be between 1 and the {len(bank)} rows of the bank; got {k}")
    if not temperature > 0:
        raise ValueError(f"knn_predict: temperature must be above 0; got {temperature}")


def _predict(queries: Tensor, bank: Tensor, labels: Tensor, classes: int, k: int, temperature: float) -> Tensor:
    similarity = queries @ bank.T  # [m, N]
    values, index = _top(similarity, k)
    # 1, the largest similarity, is subtracted: all weights are scaled by the same factor and stay below 1.
    weights = ((values.double() - 1) / temperature).exp()
    scores = weights.new_zeros(len(queries), classes).scatter_add_(1, labels[index], weights)
    return scores.argmax(1)


def _top(similarity: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The k largest entries of each row; of entries equal to the k-th, those with the lowest index."""
    values, index = similarity.topk(min(k + 1, similarity.shape[1]), dim=1)
    if values.shape[1] > k:
        tied = (values[:, k - 1] == values[:, k]).nonzero().flatten()  # topk's choice among these rows is arbitrary
        values, index = values[:, :k].contiguous(), index[:, :k].contiguous()
        if len(tied):
            order = similarity[tied].sort(dim=1, descending=True, stable=True)
            values[tied], index[tied] = order.values[:, :k], order.indices[:, :k]
    return values, index


def accuracy(predicted: Tensor, labels: Tensor) -> float:
    """Share of entries of `predicted` [N] that equal those of `labels` [N], in percent."""
    return 100.0 * (predicted == labels).double().mean().item()


def knn_scores(
    bank: Features, labels: Tensor, queries: Features, answers: Tensor, k: int, temperature: float
) -> dict[str, float]:
    """Accuracy in percent, {"knn_z": on the head's output, "knn_h": on the pooled features}.

    Args:
        bank, queries: features of M training and N test images.
        labels, answers: int64 [M] and [N], their classes.
        k, temperature: as in `knn_score`.
    """
    return {
        f"knn_{name}": knn_score(getattr(bank, name), labels, getattr(queries, name), answers, k, temperature)
        for name in Features._fields
    }


def knn_score(bank: Tensor, labels: Tensor, queries: Tensor, answers: Tensor, k: int, temperature: float) -> float:
    """Accuracy in percent on one kind of features.

    Args:
        bank: [M, D], features of the training images.
        labels: int64 [M], their classes.
        queries: [N, D], features of the test images.
        answers: int64 [N], their classes.
        k: neighbours that vote, at most M.
        temperature: of the weights exp(similarity / temperature).
    """
    return accuracy(knn_predict(queries, bank, labels, k=min(k, len(bank)), temperature=temperature), answers)
