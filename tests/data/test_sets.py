"""Balanced subsets and channel statistics against plain loops."""

import pytest
import torch

from mixfast.data.sets import ImageSet, channel_statistics, first_balanced


def balanced_by_hand(labels: list[int], limit: int) -> list[int]:
    """Round by round, one image of each class a round, the earliest left; a last round too long takes the earliest."""
    rounds = [(labels[:i].count(label), i) for i, label in enumerate(labels)]
    return sorted(i for _, i in sorted(rounds)[:limit])


@pytest.mark.parametrize("limit", [1, 7, 30, 61, 100, 200], ids=str)
def test_first_balanced_matches_the_loop(limit, rng) -> None:
    labels = torch.randint(-1, 6, (100,), generator=rng) ** 2
    assert first_balanced(labels, limit).tolist() == balanced_by_hand(labels.tolist(), limit)


def test_unlabelled_images_are_taken_in_order() -> None:
    assert first_balanced(torch.full((9,), -1), 4).tolist() == [0, 1, 2, 3]


def test_statistics_match_float64(rng) -> None:
    images = torch.randint(0, 256, (2100, 3, 5, 4), generator=rng, dtype=torch.uint8)
    images[:, 1] //= 3
    mean, std = channel_statistics(images.split(1000))
    values = images.double() / 255
    assert mean == pytest.approx(values.mean((0, 2, 3)).tolist(), abs=1e-12)
    assert std == pytest.approx(values.var((0, 2, 3), correction=0).sqrt().tolist(), abs=1e-9)


def test_constant_images_do_not_divide_by_zero() -> None:
    mean, std = channel_statistics([torch.full((2, 3, 4, 4), 51, dtype=torch.uint8)])
    assert mean == pytest.approx((0.2, 0.2, 0.2)) and min(std) > 0


def test_take_keeps_everything_together() -> None:
    n = torch.arange(6)
    whole = ImageSet(
        n[:, None, None, None].expand(6, 3, 2, 2).to(torch.uint8), n, ("a",) * 6, n[:, None].expand(6, 4),
        n[:, None, None].expand(6, 2, 2).to(torch.uint8),
    )  # fmt: skip
    part = whole.take(torch.tensor([4, 1]))
    assert len(part) == 2 and part.class_names == whole.class_names
    for tensor in (part.images, part.labels, part.boxes, part.masks):
        assert [row.unique().item() for row in tensor] == [4, 1]
    assert not ImageSet(whole.images, n - 1, ()).labelled and whole.labelled
