"""The published code of Approach 2: its objective by hand, and what the views show."""

import pytest
import torch

from mixfast.methods import load
from mixfast.methods.approach2_reference import PRESETS
from mixfast.mix import box_mask
from tests.methods.hand import BATCH, SIDE, double, infonce, mean, region_rows, rows


@torch.no_grad()
def test_loss_by_hand() -> None:
    """I(q,k) + lam [I(qM,k) + I(qG,k) + I(qL,kL)] + (1-lam) [the same with rho x1M encoded once more]."""
    method, generators, views = double(load("approach2_reference"))
    boxes, lam = views["boxes_query_mixed"], views["lam_query_mixed"][0].item()
    q = rows(method.encoder(views["query"]).z)
    k = rows(method.key_encoder(views["key"]).z)
    key_inside, _ = region_rows(
        method.key_encoder(views["key_mixed"]).map, views["boxes_key_mixed"], method.region_head
    )
    whole, local = method.queues.keys()["whole"], method.queues.keys()["local"]
    expected = mean(infonce(q, k, whole))
    for mixture, weight in [(views["query_mixed"], lam), (views["query_mixed"].flip(0), 1 - lam)]:
        encoded = method.encoder(mixture)
        inside, outside = region_rows(encoded.map, boxes, method.region_head)
        expected += weight * mean(infonce(rows(encoded.z), k, whole))
        expected += weight * mean(infonce(outside, k, whole))
        expected += weight * mean(infonce(inside, key_inside, local))
    step = method.step(views, generators)
    assert step.loss.item() == pytest.approx(expected, rel=1e-9)
    assert set(method.queues.keys()) == set(step.carry) == {"whole", "local"}


def test_views_exchange_patches_with_the_reversed_batch() -> None:
    _, _, views = double(load("approach2_reference"))
    for name in ("query", "key"):
        mask = box_mask(views[f"boxes_{name}_mixed"], (SIDE, SIDE))[:, None]
        for i in range(BATCH):
            expected = torch.where(mask[i], views[name][BATCH - 1 - i], views[name][i])
            assert torch.equal(views[f"{name}_mixed"][i], expected)
    assert not torch.equal(views["boxes_query_mixed"], views["boxes_key_mixed"])


def test_key_mixtures_are_not_shuffled() -> None:
    method, generators, views = double(load("approach2_reference"))
    fed: list[torch.Tensor] = []
    method.key_encoder.register_forward_pre_hook(lambda _, args: fed.append(args[0]))
    method.step(views, generators)
    assert not torch.equal(fed[0], views["key"]) and torch.equal(fed[1], views["key_mixed"])


def test_augmentation_is_the_published_one() -> None:
    assert PRESETS == {"approach2_reference": {"augment.interpolation": "bicubic"}}
