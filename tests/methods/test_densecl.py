"""DenseCL: the loss by hand, from cells that loops match."""

import pytest
import torch
from torch import Tensor

from mixfast.methods import load
from tests.methods.hand import BATCH, Rows, cosine, double, head_rows, infonce, mean, rows


def cells(features: Tensor) -> list[Rows]:
    """By image, the vectors of its cells row by row."""
    return [[column for row in image.permute(1, 2, 0).tolist() for column in row] for image in features]


@torch.no_grad()
@pytest.mark.parametrize("weight", [0.5, 0.2])
def test_loss_by_hand(weight: float) -> None:
    method, generators, views = double(load("densecl"), seed=1, weight=weight)
    queues, key_encoder = method.queues.keys(), method.key_encoder
    query, key = method.encoder(views["query"]), key_encoder(views["key"])
    q, k = rows(query.z), rows(key.z)
    found, positives, pooled = [], [], []
    chosen: list[list[int]] = []
    for n in range(BATCH):
        qD = head_rows(method.dense_head, torch.tensor(cells(query.map)[n], dtype=torch.float64))
        kD = head_rows(method.key_dense_head, torch.tensor(cells(key.map)[n], dtype=torch.float64))
        similar = [[cosine(a, b) for b in cells(key.map)[n]] for a in cells(query.map)[n]]
        chosen.append([row.index(max(row)) for row in similar])
        found += qD
        positives += [kD[t] for t in chosen[n]]
        pooled.append([sum(column) / len(kD) for column in zip(*kD, strict=True)])
    assert len(found) > BATCH and any(match != list(range(len(match))) for match in chosen)
    found, positives, pooled = (
        rows(torch.tensor(vectors, dtype=torch.float64)) for vectors in (found, positives, pooled)
    )
    dense = infonce(found, positives, queues["dense"])
    expected = (1 - weight) * mean(infonce(q, k, queues["whole"])) + weight * mean(dense)
    passes: list[int] = []
    for encoder in (method.encoder, key_encoder):
        encoder.register_forward_pre_hook(lambda _, args: passes.append(len(args[0])))
    step = method.step(views, generators)
    assert step.loss.item() == pytest.approx(expected, rel=1e-7)
    for name, keys in (("whole", k), ("dense", pooled)):
        torch.testing.assert_close(step.carry[name], torch.tensor(keys, dtype=torch.float64), atol=1e-8, rtol=0)
    assert passes == [BATCH, BATCH], "MoCo's cost"


@torch.no_grad()
def test_rows_that_are_two_apart_show_different_images() -> None:
    """Cell after cell of the whole batch: the diagnostics ask whether another image's positive is found."""
    method, generators, views = double(load("densecl"))
    features = method.encoder(views["query"]).map
    second = torch.nn.functional.normalize(method.dense_head(features[:, :, 0, 1]), dim=1)
    dense = method.step(views, generators).terms[1]
    torch.testing.assert_close(dense.query[BATCH : 2 * BATCH], second, atol=1e-10, rtol=0)
