"""The diagnostics against plain loops and cases with a known answer."""

import math

import pytest
import torch

from mixfast.losses import Term, unit
from mixfast.scoring import diagnostics


def rows(count: int, dim: int, seed: int = 0) -> torch.Tensor:
    return unit(torch.randn(count, dim, generator=torch.Generator().manual_seed(seed), dtype=torch.float64))


def test_spread_is_one_on_the_axes_and_zero_if_all_are_the_same() -> None:
    axes = torch.cat([torch.eye(4), -torch.eye(4)])
    assert diagnostics.normalised_std(axes).item() == pytest.approx(1)
    assert diagnostics.normalised_std(axes[:1].expand(8, 4)).item() == 0


def test_effective_rank_counts_equal_directions() -> None:
    axes = torch.cat([torch.eye(6), -torch.eye(6)])
    assert diagnostics.effective_rank(axes).item() == pytest.approx(6)
    assert diagnostics.effective_rank(torch.tensor([[1.0, 2.0], [2.0, 4.0], [3.0, 6.0]])).item() == pytest.approx(1)
    assert diagnostics.effective_rank(torch.ones(5, 3)).item() == 0
    unequal = torch.tensor([[3.0, 0.0], [-3.0, 0.0], [0.0, 1.0], [0.0, -1.0]])  # singular values 3 : 1
    entropy = -(0.75 * math.log(0.75) + 0.25 * math.log(0.25))
    assert diagnostics.effective_rank(unequal).item() == pytest.approx(math.exp(entropy))


def test_alignment_and_uniformity_by_loops() -> None:
    first, second = rows(7, 5), rows(7, 5, seed=1)
    by_hand = sum(sum((a - b) ** 2 for a, b in zip(u, v, strict=True)) for u, v in zip(first, second, strict=True)) / 7
    assert diagnostics.alignment(first, second).item() == pytest.approx(float(by_hand))
    pairs = [math.exp(-2 * float((first[i] - first[j]).square().sum())) for i in range(7) for j in range(i)]
    assert diagnostics.uniformity(first).item() == pytest.approx(math.log(sum(pairs) / len(pairs)))
    assert diagnostics.uniformity(first[:1].expand(4, 5)).item() == pytest.approx(0)


def test_top1_accuracy_by_loops() -> None:
    query, keys, queue = rows(8, 3), rows(8, 3, seed=2), rows(2, 3, seed=3)
    terms = [Term("a", query, keys, "queue")]
    for shift in (0, 2):
        hits = [float(query[n] @ keys[(n - shift) % 8]) > max(float(query[n] @ key) for key in queue) for n in range(8)]
        assert 0 < sum(hits) < 8
        assert diagnostics.top1_accuracy(terms, {"queue": queue}, shift)["a"].item() == pytest.approx(sum(hits) / 8)


def test_a_box_that_a_batch_shares_is_recognised_without_the_image() -> None:
    """Every query and positive of a step share a direction that no key of the queue has."""
    box, queue = torch.tensor([0.0, 0.0, 1.0]), torch.nn.functional.pad(rows(64, 2).float(), (0, 1))
    query, positive = (unit(torch.nn.functional.pad(rows(16, 2, s).float(), (0, 1)) + 3 * box) for s in (4, 5))
    terms = [Term("local", query, positive, "queue")]
    assert diagnostics.top1_accuracy(terms, {"queue": queue}, diagnostics.OTHER_IMAGE)["local"].item() == 1


def test_the_other_image_is_neither_the_image_nor_its_reversal() -> None:
    for batch in (4, 6, 64):
        images = torch.arange(batch)
        others = images.roll(diagnostics.OTHER_IMAGE)
        assert not (others == images).any() and not (others == images.flip(0)).any()
