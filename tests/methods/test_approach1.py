"""Approach 1: eq. 7 by hand for the defaults and for every option."""

from typing import Any

import pytest
import torch
from torch import Tensor

from mixfast.errors import ConfigError
from mixfast.methods import load
from mixfast.mix import box_mask, peaks
from mixfast.models import ModelConfig
from tests.methods.hand import BATCH, MIXED, SIDE, UNMIXED, branch, build, double, infonce, mean

OPTIONS: list[dict[str, Any]] = [
    {},
    {"box_mode": "shared"},
    {"box_per_sample": True},
    {"box_per_sample": True, "symmetric": True},
    {"alpha": 0.5},
    {"lam": "mean"},
    {"lam": 0.375},
    {"mixed_key": "mixed"},
    {"patch": "fresh"},
    {"region_layer": 2},
    {"symmetric": True},
    {"mixture": "none", "symmetric": True},
    {"mixture": "saliency"},
    {"mixture": "saliency", "box_mode": "shared"},
]


def direction(method: Any, views: dict[str, Tensor], query: str, key: str) -> float:
    """Eq. 7 with the view called `query` on the query side."""
    config = method.config
    q, k = branch(method, "query", query, views), branch(method, "key", key, views)
    whole, glob, local = (method.queues.keys()[name] for name in ("whole", "global", "local"))
    own, other = views[f"lam_{query}_mixed"].tolist(), views[f"lam_{key}_mixed"].tolist()
    lam = {"ratio": own, "mean": [(a + b) / 2 for a, b in zip(own, other, strict=True)]}.get(
        config.lam, [config.lam] * BATCH
    )
    rest = [1 - share for share in lam]
    loss = mean(infonce(q["whole"], k["whole"], whole))
    loss += mean(infonce(q["mixed"], k["mixed" if config.mixed_key == "mixed" else "whole"], whole), lam)
    loss += mean(infonce(q["inside"], k["outside"], glob), rest)
    loss += mean(infonce(q["inside"], k["inside"], local), rest)
    return loss + mean(infonce(q["outside"], k["outside"], glob), rest)


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_loss_by_hand(options: dict[str, Any]) -> None:
    method, generators, views = double(load("approach1"), **options)
    expected = direction(method, views, "query", "key")
    if options.get("symmetric"):
        expected += direction(method, views, "key", "query")
    assert method.step(views, generators).loss.item() == pytest.approx(expected, rel=1e-9)


def test_parts_are_the_unweighted_terms() -> None:
    method, generators, views = double(load("approach1"))
    parts = method.step(views, generators).parts
    q, k = branch(method, "query", "query", views), branch(method, "key", "key", views)
    queues = method.queues.keys()
    expected = {
        "original": mean(infonce(q["whole"], k["whole"], queues["whole"])),
        "mixed": mean(infonce(q["mixed"], k["whole"], queues["whole"])),
        "local_global": mean(infonce(q["inside"], k["outside"], queues["global"])),
        "local": mean(infonce(q["inside"], k["inside"], queues["local"])),
        "global": mean(infonce(q["outside"], k["outside"], queues["global"])),
        "lam": mean(views["lam_query_mixed"].tolist()),
    }
    assert {name: value.item() for name, value in parts.items()} == pytest.approx(expected, rel=1e-7)


def test_views_exchange_patches_between_the_branches() -> None:
    _, _, views = double(load("approach1"))
    mask1, mask2 = (box_mask(views[f"boxes_{name}_mixed"], (SIDE, SIDE))[:, None] for name in ("query", "key"))
    assert not torch.equal(mask1, mask2)
    assert torch.equal(views["query_mixed"], torch.where(mask1, views["key"], views["query"]))
    assert torch.equal(views["key_mixed"], torch.where(mask2, views["query"], views["key"]))
    assert torch.equal(views["lam_query_mixed"].double(), 1 - mask1.double().mean(dim=(1, 2, 3)))


def test_shared_boxes_make_complementary_mixtures() -> None:
    _, _, views = double(load("approach1"), box_mode="shared")
    assert torch.equal(views["boxes_query_mixed"], views["boxes_key_mixed"])
    assert torch.equal(views["query_mixed"] + views["key_mixed"], views["query"] + views["key"])


@pytest.mark.parametrize("mixture", ["none", "saliency"])
def test_unmixed_views_keep_their_regions_and_weights(mixture: str) -> None:
    """All of both views shows image i, mixed or not: every term stays right, and lam stays the share outside."""
    _, _, views = double(load("approach1"), seed=UNMIXED, mixture=mixture)
    for name in ("query", "key"):
        assert torch.equal(views[f"{name}_mixed"], views[name])
        share = 1 - box_mask(views[f"boxes_{name}_mixed"], (SIDE, SIDE)).double().mean(dim=(1, 2))
        torch.testing.assert_close(views[f"lam_{name}_mixed"].double(), share, atol=1e-6, rtol=0)
        assert (views[f"lam_{name}_mixed"] < 1).all()


def test_each_salient_box_is_around_the_peak_of_its_own_donor() -> None:
    _, _, views = double(load("approach1"), seed=MIXED, mixture="saliency")
    for name, donor in (("query", "key"), ("key", "query")):
        rows, columns = peaks(views[donor]).T
        inside = box_mask(views[f"boxes_{name}_mixed"], (SIDE, SIDE))[torch.arange(BATCH), rows, columns]
        assert inside.all()
    assert not torch.equal(views["boxes_query_mixed"], views["boxes_key_mixed"])


def test_without_boxes_original_and_mixed_term_are_left() -> None:
    """lam = 1 and empty boxes: x1M = x1, and no region term counts."""
    method, generators, views = double(load("approach1"))
    for name in ("query", "key"):
        views[f"boxes_{name}_mixed"] = torch.zeros(BATCH, 4, dtype=torch.int64)
        views[f"lam_{name}_mixed"] = torch.ones(BATCH)
        views[f"{name}_mixed"] = views[name]
    step = method.step(views, generators)
    assert step.loss.item() == pytest.approx(2 * step.parts["original"].item(), rel=1e-12)
    step.loss.backward()
    grads = [p.grad for p in method.parameters() if p.grad is not None]
    assert grads and all(torch.isfinite(grad).all() for grad in grads)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"temperature": 0.0}, r"method.temperature must be above 0; got 0.0"),
        ({"queue_size": 0}, r"method.queue_size must be at least 1"),
        ({"ema": 1.5}, r"method.ema must be in \[0, 1\]; got 1.5"),
        ({"alpha": 0.0}, r"method.alpha must be above 0"),
        ({"lam": 1.2}, r"method.lam must be ratio, mean, or a number in \[0, 1\]; got 1.2"),
        ({"lam": "median"}, r"method.lam must be ratio, mean"),
        ({"mixture": "mixup"}, r"method.mixture must be cutmix, saliency or none .*; got 'mixup'"),
        ({"region_layer": 4}, r"method.region_layer must be in 1 ... 3 for this backbone; got 4"),
        ({"region_layer": 0}, r"method.region_layer must be in 1 ... 3 for this backbone; got 0"),
    ],
    ids=str,
)
def test_bad_options_are_named(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        build(load("approach1"), ModelConfig(depth=8, width=8), **options)
