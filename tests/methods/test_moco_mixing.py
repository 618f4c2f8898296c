"""MoCo + CutMix and MoCo + Un-Mix: the losses by hand, and what they reduce to."""

from typing import Any

import pytest
import torch
from torch import Tensor

from mixfast.errors import ConfigError
from mixfast.methods import load
from mixfast.mix import box_mask
from mixfast.models import ModelConfig
from tests.methods.hand import BATCH, SIDE, build, double, infonce, mean, rows

OPTIONS: list[tuple[str, dict[str, Any]]] = [
    ("moco_cutmix", {}),
    ("moco_cutmix", {"partner": "other_view"}),
    ("moco_cutmix", {"box_per_sample": True, "symmetric": True}),
    ("moco_cutmix", {"mixture": "mixup", "box_per_sample": True}),
    ("moco_cutmix", {"mixture": "saliency"}),
    ("moco_unmix", {"p_global": 0.0}),
    ("moco_unmix", {"p_global": 1.0}),
    ("moco_unmix", {"p_global": 0.0, "box_per_sample": True}),
    ("moco_unmix", {"p_global": 1.0, "box_per_sample": True, "symmetric": True}),
    ("moco_unmix", {"p_global": 0.0, "mixture": "saliency", "symmetric": True}),
    ("moco_unmix", {"p_global": 0.0, "mixture": "none"}),
]


def by_hand(method: Any, views: dict[str, Tensor], reverse: bool) -> float:
    """One clean and one mixed term, and the mixture's reversed one, against the keys of each direction."""
    queue, lam = method.queues.keys()["whole"], views["lam_query_mixed"].tolist()
    mixed = rows(method.encoder(views["query_mixed"]).z)
    loss = 0.0
    for query, key in [("query", "key"), ("key", "query")][: 2 if method.config.symmetric else 1]:
        k = rows(method.key_encoder(views[key]).z)
        loss += mean(infonce(rows(method.encoder(views[query]).z), k, queue))
        loss += mean(infonce(mixed, k, queue), lam)
        if reverse:
            loss += mean(infonce(mixed[::-1], k, queue), [1 - share for share in lam[::-1]])
    return loss


@pytest.mark.parametrize(("name", "options"), OPTIONS, ids=str)
@torch.no_grad()
def test_loss_by_hand(name: str, options: dict[str, Any]) -> None:
    method, generators, views = double(load(name), **options)
    expected = by_hand(method, views, reverse=name == "moco_unmix")
    step = method.step(views, generators)
    assert step.loss.item() == pytest.approx(expected, rel=1e-9)
    sides = ["key", "query"] if options.get("symmetric") else ["key"]
    keys = [row for side in sides for row in rows(method.key_encoder(views[side]).z)]
    torch.testing.assert_close(step.carry["whole"], torch.tensor(keys, dtype=torch.float64), atol=1e-9, rtol=0)


def test_symmetric_unmix_has_six_terms_and_mixes_one_view_once() -> None:
    method, generators, views = double(load("moco_unmix"), symmetric=True)
    assert set(views) == {"query", "query_mixed", "boxes_query_mixed", "lam_query_mixed", "key"}
    passes: list[int] = []
    method.encoder.register_forward_pre_hook(lambda *_: passes.append(1))
    parts = method.step(views, generators).parts
    names = ["original", "mixed", "mixed_reverse"]
    assert list(parts) == [*names, *(f"{name}_swapped" for name in names), "lam"]
    assert len(passes) == 3  # x1, x2, and the mixture once for both directions


@pytest.mark.parametrize("partner", ["batch_reverse", "other_view"])
def test_cutmix_pastes_the_partner(partner: str) -> None:
    _, _, views = double(load("moco_cutmix"), partner=partner)
    mask = box_mask(views["boxes_query_mixed"], (SIDE, SIDE))[:, None]
    for i in range(BATCH):
        patch = views["key"][i] if partner == "other_view" else views["query"][BATCH - 1 - i]
        assert torch.equal(views["query_mixed"][i], torch.where(mask[i], patch, views["query"][i]))
    share = 1 - mask.double().mean(dim=(1, 2, 3))
    torch.testing.assert_close(views["lam_query_mixed"].double(), share, atol=1e-6, rtol=0)


def test_unmix_blends_whole_images_with_the_reversed_batch() -> None:
    _, _, views = double(load("moco_unmix"), p_global=1.0)
    lam = views["lam_query_mixed"].double()[0].item()
    for i in range(BATCH):
        wanted = lam * views["query"][i] + (1 - lam) * views["query"][BATCH - 1 - i]
        torch.testing.assert_close(views["query_mixed"][i], wanted, atol=1e-7, rtol=0)
    assert not views["boxes_query_mixed"].any()


@pytest.mark.parametrize("name", ["moco_cutmix", "moco_unmix"])
def test_with_no_mixture_the_original_loss_counts_twice(name: str) -> None:
    """lam = 1 and x1M = x1."""
    method, generators, views = double(load(name), mixture="none")
    assert torch.equal(views["query_mixed"], views["query"]) and (views["lam_query_mixed"] == 1).all()
    step = method.step(views, generators)
    assert step.loss.item() == pytest.approx(2 * step.parts["original"].item(), rel=1e-12)


def test_unmix_without_global_steps_is_cutmix_with_a_reversed_term() -> None:
    """Which is what the paper's published code calls MoCo + CutMix."""
    method, generators, views = double(load("moco_cutmix"))
    cut = method.step(views, generators)
    method, generators, views = double(load("moco_unmix"), p_global=0.0)
    unmixed = method.step(views, generators)
    assert {name: unmixed.parts[name].item() for name in cut.parts} == pytest.approx(
        {name: value.item() for name, value in cut.parts.items()}, rel=1e-12
    )
    reverse = (1 - views["lam_query_mixed"][0].item()) * unmixed.parts["mixed_reverse"].item()
    assert unmixed.loss.item() == pytest.approx(cut.loss.item() + reverse, rel=1e-9)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("moco_unmix", {"p_global": 1.5}, r"method.p_global must be in \[0, 1\]; got 1.5"),
        ("moco_unmix", {"temperature": 0.0}, r"method.temperature must be above 0; got 0.0"),
        ("moco_cutmix", {"alpha": -1.0}, r"method.alpha must be above 0; got -1.0"),
    ],
    ids=str,
)
def test_every_part_of_the_options_is_checked(name: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        build(load(name), ModelConfig(), **options)
