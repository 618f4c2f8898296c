"""Approach 2: eq. 8 by hand for the defaults and for every option."""

from typing import Any

import pytest
import torch
from torch import Tensor

from mixfast.methods import load
from mixfast.mix import box_mask
from tests.methods.hand import BATCH, SIDE, augmentation, branch, double, infonce, mean

OPTIONS: list[dict[str, Any]] = [
    {},
    {"reverse_regions": "literal"},
    {"box_per_sample": True},
    {"box_per_sample": True, "reverse_regions": "literal", "symmetric": True},
    {"mixed_key": "mixed"},
    {"region_layer": 1},
    {"symmetric": True},
    {"mixture": "saliency"},
    {"mixture": "saliency", "reverse_regions": "literal"},
    {"mixture": "none"},
]


def direction(method: Any, views: dict[str, Tensor], query: str, key: str) -> float:
    """Eq. 8 with the view called `query` on the query side; the reversed terms are all computed."""
    config = method.config
    q, k = branch(method, "query", query, views), branch(method, "key", key, views)
    whole, glob, local = (method.queues.keys()[name] for name in ("whole", "global", "local"))
    lam = views[f"lam_{query}_mixed"].tolist()
    rest = [1 - share for share in lam]
    reversed_rest = rest[::-1]
    mixed_key = k["mixed" if config.mixed_key == "mixed" else "whole"]

    loss = mean(infonce(q["whole"], k["whole"], whole))
    loss += mean(infonce(q["mixed"], mixed_key, whole), lam)
    loss += mean(infonce(q["outside"], k["outside"], glob), lam)
    loss += mean(infonce(q["inside"], k["inside"], local), lam)
    loss += mean(infonce(q["mixed"][::-1], mixed_key, whole), reversed_rest)
    if config.reverse_regions == "paired":
        loss += mean(infonce(q["outside"][::-1], k["outside"][::-1], glob), reversed_rest)
        loss += mean(infonce(q["inside"][::-1], k["inside"][::-1], local), reversed_rest)
    else:
        loss += mean(infonce(q["outside"][::-1], k["outside"], glob), reversed_rest)
        loss += mean(infonce(q["inside"][::-1], k["inside"], local), reversed_rest)
    return loss


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_loss_by_hand(options: dict[str, Any]) -> None:
    method, generators, views = double(load("approach2"), **options)
    expected = direction(method, views, "query", "key")
    if options.get("symmetric"):
        expected += direction(method, views, "key", "query")
    assert method.step(views, generators).loss.item() == pytest.approx(expected, rel=1e-9)


def test_views_exchange_patches_with_the_reversed_batch() -> None:
    _, _, views = double(load("approach2"))
    for name in ("query", "key"):
        mask = box_mask(views[f"boxes_{name}_mixed"], (SIDE, SIDE))[:, None]
        for i in range(BATCH):
            expected = torch.where(mask[i], views[name][BATCH - 1 - i], views[name][i])
            assert torch.equal(views[f"{name}_mixed"][i], expected)
    assert not torch.equal(views["boxes_query_mixed"], views["boxes_key_mixed"])


@pytest.mark.parametrize("reverse", ["paired", "literal"])
def test_unmixed_views_leave_the_forward_terms(reverse: str) -> None:
    """No mixture holds a second image, so lam = 1, and no reversed term may count."""
    method, generators, views = double(load("approach2"), mixture="none", reverse_regions=reverse)
    assert torch.equal(views["query_mixed"], views["query"]) and torch.equal(views["key_mixed"], views["key"])
    q, k = branch(method, "query", "query", views), branch(method, "key", "key", views)
    queues = method.queues.keys()
    expected = 2 * mean(infonce(q["whole"], k["whole"], queues["whole"]))
    expected += mean(infonce(q["outside"], k["outside"], queues["global"]))
    expected += mean(infonce(q["inside"], k["inside"], queues["local"]))
    assert method.step(views, generators).loss.item() == pytest.approx(expected, rel=1e-9)


def test_both_branches_of_a_step_are_mixed_or_neither() -> None:
    """A patch of image N-1-i on one side alone would be compared with image i."""
    method, generators, views = double(load("approach2"), mixture="saliency")
    images = torch.randint(0, 256, (BATCH, 3, SIDE, SIDE), dtype=torch.uint8, generator=generators["images"])
    mixed = []
    for _ in range(30):
        views = method.views(images, augmentation(generators), generators)
        mixed.append([not torch.equal(views[f"{name}_mixed"], views[name]) for name in ("query", "key")])
        assert mixed[-1][0] == mixed[-1][1]
        assert [bool((views[f"lam_{name}_mixed"] < 1).all()) for name in ("query", "key")] == mixed[-1]
    assert {True, False} == {query for query, _ in mixed}
