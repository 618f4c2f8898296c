"""Approach 2: eq. 8 by hand for the defaults and for every option, and the published code's objective."""

from typing import Any

import pytest
import torch
from torch import Tensor

from mixfast.methods import load
from mixfast.methods.approach2 import PRESETS
from mixfast.mix import box_mask
from tests.methods.hand import BATCH, SIDE, augmentation, branch, double, infonce, mean, region_rows, rows

OPTIONS: list[dict[str, Any]] = [
    {},
    {"reverse_regions": "cross"},
    {"reverse_regions": "literal"},
    {"box_per_sample": True},
    {"box_per_sample": True, "reverse_regions": "cross"},
    {"box_per_sample": True, "reverse_regions": "literal", "symmetric": True},
    {"box_mode": "shared"},
    {"lam": "mean"},
    {"lam": 0.375},
    {"mixed_key": "mixed"},
    {"gg_key": "whole"},
    {"gg_key": "whole", "reverse_regions": "cross"},
    {"gg_key": "whole", "reverse_regions": "literal"},
    {"queues": 2},
    {"queues": 2, "reverse_regions": "cross"},
    {"ll_weight": "share"},
    {"ll_weight": "share", "reverse_regions": "literal"},
    {"region_head": "shared_live"},
    {"region_head": "fc"},
    {"region_layer": 1},
    {"shuffle_mixed": False},
    {"bn_stats": "clean_only"},
    {"symmetric": True},
    {"symmetric": True, "reverse_regions": "cross", "queues": 2},
    {"mixture": "saliency", "saliency_prob": 1.0},
    {"mixture": "saliency", "saliency_prob": 1.0, "saliency_box": "first", "reverse_regions": "cross"},
    {"mixture": "saliency", "saliency_prob": 0.0, "lam": 0.375},
    {"mixture": "none", "lam": "mean"},
]


def direction(method: Any, views: dict[str, Tensor], query: str, key: str) -> float:
    """Eq. 8 with the view called `query` on the query side; the reversed terms are all computed."""
    config = method.config
    q, k = branch(method, "query", query, views), branch(method, "key", key, views)
    whole, local = method.queues["whole"].keys, method.queues["local"].keys
    own_global = whole if config.queues == 2 or "global" not in method.queues else method.queues["global"].keys
    own, other = views[f"lam_{query}_mixed"].tolist(), views[f"lam_{key}_mixed"].tolist()
    lam = {"ratio": own, "mean": [(a + b) / 2 for a, b in zip(own, other, strict=True)]}.get(
        config.lam, [config.lam if a < 1 else 1 for a in own]
    )
    rest = [1 - share for share in lam]
    reversed_rest = rest[::-1]
    mixed_key = k["mixed" if config.mixed_key == "mixed" else "whole"]
    global_key, global_queue = (k["whole"], whole) if config.gg_key == "whole" else (k["outside"], own_global)

    loss = mean(infonce(q["whole"], k["whole"], whole))
    loss += mean(infonce(q["mixed"], mixed_key, whole), lam)
    loss += mean(infonce(q["outside"], global_key, global_queue), lam)
    loss += mean(infonce(q["inside"], k["inside"], local), rest if config.ll_weight == "share" else lam)
    loss += mean(infonce(q["mixed"][::-1], mixed_key, whole), reversed_rest)
    if config.reverse_regions == "paired":
        loss += mean(infonce(q["outside"][::-1], global_key[::-1], global_queue), reversed_rest)
        loss += mean(infonce(q["inside"][::-1], k["inside"][::-1], local), reversed_rest)
    elif config.reverse_regions == "cross":
        loss += mean(infonce(q["inside"][::-1], k["outside"], own_global), reversed_rest)
        loss += mean(infonce(q["outside"][::-1], k["inside"], local), reversed_rest)
    else:
        loss += mean(infonce(q["outside"][::-1], global_key, global_queue), reversed_rest)
        loss += mean(infonce(q["inside"][::-1], k["inside"], local), reversed_rest)
    return loss


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_loss_by_hand(options: dict[str, Any]) -> None:
    method, generators, views = double(load("approach2"), **options)
    expected = direction(method, views, "query", "key")
    if options.get("symmetric"):
        expected += direction(method, views, "key", "query")
    assert method.step(views, generators).loss.item() == pytest.approx(expected, rel=1e-9)


@torch.no_grad()
def test_reference_preset_is_the_published_objective() -> None:
    """I(q,k) + lam [I(qM,k) + I(qG,k) + I(qL,kL)] + (1-lam) [the same with rho x1M encoded once more]."""
    options = {name.removeprefix("method."): value for name, value in PRESETS["approach2_reference"].items()}
    augment = {name: options.pop(name) for name in list(options) if name.startswith("augment.")}
    assert augment == {"augment.interpolation": "bicubic"}
    method, generators, views = double(load("approach2"), **options)
    boxes, lam = views["boxes_query_mixed"], views["lam_query_mixed"][0].item()
    q = rows(method.encoder(views["query"]).z)
    k = rows(method.key_encoder(views["key"]).z)
    key_inside, _ = region_rows(
        method.key_encoder(views["key_mixed"]).map, views["boxes_key_mixed"], method.region_head
    )
    whole, local = method.queues["whole"].keys, method.queues["local"].keys
    expected = mean(infonce(q, k, whole))
    for mixture, weight in [(views["query_mixed"], lam), (views["query_mixed"].flip(0), 1 - lam)]:
        encoded = method.encoder(mixture)
        inside, outside = region_rows(encoded.map, boxes, method.region_head)
        expected += weight * mean(infonce(rows(encoded.z), k, whole))
        expected += weight * mean(infonce(outside, k, whole))
        expected += weight * mean(infonce(inside, key_inside, local))
    step = method.step(views, generators)
    assert step.loss.item() == pytest.approx(expected, rel=1e-9)
    assert set(method.queues) == set(step.carry) == {"whole", "local"}
    assert not hasattr(method, "key_region_head")


def test_views_exchange_patches_with_the_reversed_batch() -> None:
    _, _, views = double(load("approach2"))
    for name in ("query", "key"):
        mask = box_mask(views[f"boxes_{name}_mixed"], (SIDE, SIDE))[:, None]
        for i in range(BATCH):
            expected = torch.where(mask[i], views[name][BATCH - 1 - i], views[name][i])
            assert torch.equal(views[f"{name}_mixed"][i], expected)
    assert not torch.equal(views["boxes_query_mixed"], views["boxes_key_mixed"])


@pytest.mark.parametrize("options", [{}, {"lam": 0.375}, {"ll_weight": "lam"}], ids=str)
@pytest.mark.parametrize("reverse", ["paired", "cross", "literal"])
def test_unmixed_views_leave_the_forward_terms(reverse: str, options: dict[str, Any]) -> None:
    """No mixture holds a second image, so lam = 1 whatever the options, and no reversed term may count."""
    method, generators, views = double(load("approach2"), mixture="none", reverse_regions=reverse, **options)
    assert torch.equal(views["query_mixed"], views["query"]) and torch.equal(views["key_mixed"], views["key"])
    q, k = branch(method, "query", "query", views), branch(method, "key", "key", views)
    queues = {name: queue.keys for name, queue in method.queues.items()}
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


def test_only_queues_that_are_read_exist() -> None:
    expected = {
        ("region", 3, "paired"): {"whole", "global", "local"},
        ("whole", 3, "paired"): {"whole", "local"},
        ("whole", 3, "cross"): {"whole", "global", "local"},
        ("region", 2, "cross"): {"whole", "local"},
    }
    for (gg_key, queues, reverse), names in expected.items():
        method, generators, views = double(load("approach2"), gg_key=gg_key, queues=queues, reverse_regions=reverse)
        assert set(method.queues) == set(method.step(views, generators).carry) == names
