"""One branch: the loss by hand for the defaults and every option, and what it reduces to."""

from typing import Any

import pytest
import torch
from torch import Tensor

from mixfast.errors import ConfigError
from mixfast.methods import load
from mixfast.mix import box_mask
from mixfast.models import ModelConfig
from tests.methods.hand import BATCH, SIDE, Rows, branch, build, double, infonce, mean, rows

OPTIONS: list[dict[str, Any]] = [
    {},
    {"partner": "batch_reverse"},
    {"box_per_sample": True},
    {"box_per_sample": True, "partner": "batch_reverse", "symmetric": True},
    {"symmetric": True},
    {"region_layer": 2},
    {"mixture": "none"},
    {"mixture": "none", "partner": "batch_reverse"},
    {"mixture": "saliency"},
]


@torch.no_grad()
def whole_map(method: Any, images: Tensor) -> Rows:
    """kW: 1x1 convolution of the key map by the key region head, mean over all pixels."""
    head = method.key_region_head
    features = method.key_encoder(images, method.config.region_layer).map
    projected = torch.nn.functional.conv2d(features, head.weight[:, :, None, None], head.bias)
    return rows(projected.flatten(2).mean(dim=2))


def direction(method: Any, views: dict[str, Tensor], query: str, key: str) -> float:
    config, whole, glob = method.config, method.queues.keys()["whole"], method.queues.keys()["global"]
    q = branch(method, "query", query, views)
    k, kw = rows(method.key_encoder(views[key]).z), whole_map(method, views[key])
    x0, y0, x1, y1 = views[f"boxes_{query}_mixed"].double().unbind(dim=1)
    outside = (1 - (x1 - x0) * (y1 - y0) / SIDE**2).tolist()
    unmixed = config.mixture == "none" and config.partner == "batch_reverse"
    lam = [1.0] * BATCH if unmixed else outside
    rest = [1 - share for share in lam]
    loss = mean(infonce(q["whole"], k, whole)) + mean(infonce(q["mixed"], k, whole), lam)
    if config.partner == "other_view":
        return loss + mean(infonce(q["outside"], kw, glob), rest) + mean(infonce(q["inside"], kw, glob), rest)
    loss += mean(infonce(q["outside"], kw, glob), lam)
    loss += mean(infonce(q["mixed"][::-1], k, whole), rest[::-1])
    return loss + mean(infonce(q["inside"][::-1], kw, glob), rest[::-1])


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_loss_by_hand(options: dict[str, Any]) -> None:
    method, generators, views = double(load("one_branch"), **options)
    expected = direction(method, views, "query", "key")
    if options.get("symmetric"):
        expected += direction(method, views, "key", "query")
    step = method.step(views, generators)
    assert step.loss.item() == pytest.approx(expected, rel=1e-7)
    torch.testing.assert_close(
        step.carry["whole"][:BATCH],
        torch.tensor(rows(method.key_encoder(views["key"]).z), dtype=torch.float64),
        atol=1e-9,
        rtol=0,
    )


def test_the_key_branch_is_neither_mixed_nor_encoded_twice() -> None:
    method, generators, views = double(load("one_branch"))
    assert set(views) == {"query", "query_mixed", "boxes_query_mixed", "lam_query_mixed", "key"}
    passes: list[Tensor] = []
    method.key_encoder.register_forward_pre_hook(lambda _, args: passes.append(args[0]))
    step = method.step(views, generators)
    assert len(passes) == 1 and set(step.carry) == {"whole", "global"}


def test_each_direction_has_a_mixture_and_a_box_of_its_own() -> None:
    _, _, views = double(load("one_branch"), symmetric=True)
    for name, other in (("query", "key"), ("key", "query")):
        mask = box_mask(views[f"boxes_{name}_mixed"], (SIDE, SIDE))[:, None]
        assert torch.equal(views[f"{name}_mixed"], torch.where(mask, views[other], views[name]))
    assert not torch.equal(views["boxes_query_mixed"], views["boxes_key_mixed"])


def test_without_boxes_original_and_mixed_term_are_left() -> None:
    method, generators, views = double(load("one_branch"))
    views["boxes_query_mixed"] = torch.zeros(BATCH, 4, dtype=torch.int64)
    views["lam_query_mixed"], views["query_mixed"] = torch.ones(BATCH), views["query"]
    step = method.step(views, generators)
    assert step.loss.item() == pytest.approx(2 * step.parts["original"].item(), rel=1e-12)


def test_mixup_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"method.mixture must be cutmix, saliency or none .*; got 'mixup'"):
        build(load("one_branch"), ModelConfig(depth=8, width=8), mixture="mixup")
