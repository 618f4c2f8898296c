"""SimCLR and SimCLR + Un-Mix: losses by hand, reductions, what each row shows, batch statistics."""

from typing import Any

import pytest
import torch
from torch import Tensor

from mixfast.augment import PRESETS as AUGMENTATIONS
from mixfast.config.presets import build as preset
from mixfast.errors import ConfigError
from mixfast.losses import PairTerm
from mixfast.methods import load, simclr_unmix
from mixfast.methods.simclr import PRESETS
from mixfast.methods.simclr_unmix import reverse_rows
from mixfast.models import ModelConfig
from tests.methods.hand import Rows, build, double, head_rows, mean, nt_xent
from tests.methods.test_pairs import CODES, COUNT, content, image, index_method

HEADS = [("linear", False), ("mlp_bn2", False), ("mlp_bn2", True)]


def pair(method: Any, first: Tensor, second: Tensor) -> tuple[Rows, Rows]:
    """Vectors of two views: the head on each, or on both at once."""
    h = [method.encoder.pool(view) for view in (first, second)]
    if getattr(method.config, "joint_head", False):
        both = head_rows(method.encoder.head, torch.cat(h))
        return both[: len(first)], both[len(first) :]
    return head_rows(method.encoder.head, h[0]), head_rows(method.encoder.head, h[1])


@pytest.mark.parametrize(("head", "joint"), HEADS)
def test_loss_by_hand(head: str, joint: bool) -> None:
    method, generators, views = double(load("simclr"), head, joint_head=joint)
    expected = mean(nt_xent(*pair(method, views["first"], views["second"])))
    step = method.step(views, generators)
    assert step.loss.item() == pytest.approx(expected, rel=1e-9)
    assert step.parts["original"].item() == step.loss.item() and step.carry == {}


OPTIONS: list[dict[str, Any]] = [
    {},
    {"mask_reverse_negative": True},
    {"box_per_sample": True},
    {"box_per_sample": True, "mask_reverse_negative": True},
    {"p_global": 1.0},
    {"p_global": 0.0},
    {"mixture": "saliency"},
    {"mixture": "mixup", "alpha": 0.5},
]


def unmixed_by_hand(method: Any, views: dict[str, Tensor]) -> dict[str, float]:
    """The three terms, unweighted, and the loss."""
    skip = method.config.mask_reverse_negative
    z1, z2 = pair(method, views["first"], views["second"])
    zm, beside = pair(method, views["first_mixed"], views["second"])
    lam = views["lam_first_mixed"].tolist()
    rest = [1 - share for share in lam][::-1]
    mixed, reverse = (nt_xent(rows, beside, without_reverse=skip) for rows in (zm, zm[::-1]))
    original = nt_xent(z1, z2)
    return {
        "original": mean(original),
        "mixed": mean(mixed),
        "mixed_reverse": mean(reverse),
        "lam": mean(lam),
        "loss": mean(original) + mean(mixed, lam * 2) + mean(reverse, rest * 2),
    }


@pytest.mark.parametrize("head", ["linear", "mlp_bn2"])
@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_unmix_loss_by_hand(options: dict[str, Any], head: str) -> None:
    method, generators, views = double(load("simclr_unmix"), head, **options)
    expected = unmixed_by_hand(method, views)
    step = method.step(views, generators)
    values = {name: value.item() for name, value in {**step.parts, "loss": step.loss}.items()}
    assert values == pytest.approx(expected, rel=1e-7)  # lam is a float32


def test_unmix_without_mixing_is_simclr_twice() -> None:
    method, generators, views = double(load("simclr_unmix"), "mlp_bn2", mixture="none")
    assert torch.equal(views["first_mixed"], views["first"]) and views["lam_first_mixed"].eq(1).all()
    step = method.step(views, generators)
    assert step.loss.item() == pytest.approx(2 * step.parts["original"].item(), rel=1e-12)


def test_every_view_passes_the_encoder_once() -> None:
    method, generators, views = double(load("simclr_unmix"), "mlp_bn2")
    method.step(views, generators)
    assert {m.num_batches_tracked.item() for m in method.modules() if hasattr(m, "num_batches_tracked")} == {3}


def test_reverse_rows_are_those_of_the_other_view() -> None:
    assert reverse_rows(2, torch.device("cpu")).tolist() == [3, 2, 1, 0]
    # row 1 of three is its own reverse, which would be the positive
    assert reverse_rows(3, torch.device("cpu")).tolist() == [5, -1, 3, 2, -1, 0]


@pytest.mark.parametrize(
    "options",
    [{"p_global": 1.0}, {"p_global": 0.0}, {"box_per_sample": True}],
    ids=str,
)
def test_weights_are_the_shares_of_the_images_that_the_second_view_shows(
    options: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    terms: list[PairTerm] = []
    real = simclr_unmix.nt_xent_sum
    monkeypatch.setattr(simclr_unmix, "nt_xent_sum", lambda given, t: (terms.extend(given), real(given, t))[1])
    method, generators, views = index_method("simclr_unmix", mask_reverse_negative=True, **options)
    method.step(views, generators)
    assert [term.name for term in terms] == ["original", "mixed", "mixed_reverse"]
    for term in terms:
        assert image(term.second) == list(range(COUNT))
        share = torch.as_tensor(term.weight).expand(COUNT)[:, None]
        torch.testing.assert_close(content(term.first), share * CODES + (1 - share) * CODES.flip(0), atol=1e-5, rtol=0)
    for term in terms[1:]:
        assert term.excluded is not None
        for a, row in enumerate(term.excluded.tolist()):  # an anchor's other image, in the other view
            assert (a < COUNT) != (row < COUNT) and row % COUNT == COUNT - 1 - a % COUNT


def test_recipes_have_the_published_numbers() -> None:
    default, wmse, unmix = (preset(name, [], None)[0] for name in ("simclr", "simclr_wmse", "simclr_unmix"))
    assert (default.optim.lr, default.optim.weight_decay, default.method.temperature) == (0.24, 5e-4, 0.5)
    assert (default.model.head, default.model.dim, default.model.hidden, default.model.bn_splits) == (
        "mlp_bn2", 128, None, 1,
    )  # fmt: skip
    assert unmix.model == default.model and unmix.optim == default.optim and unmix.method.p_global == 0.5
    assert wmse.augment == AUGMENTATIONS["wmse"] and wmse.method.joint_head
    assert (wmse.model.hidden, wmse.model.dim, wmse.optim.name, wmse.optim.lr) == (1024, 64, "adam", 3e-3)
    assert (wmse.optim.weight_decay, wmse.optim.warmup_steps, wmse.optim.step_factor) == (1e-6, 500, 0.2)
    assert wmse.optim.steps == (-50, -25)
    assert set(PRESETS) == {"simclr", "simclr_wmse"}


def test_bad_options_are_named() -> None:
    with pytest.raises(ConfigError, match=r"method.temperature must be above 0; got 0.0"):
        build(load("simclr"), ModelConfig(depth=8, width=8), temperature=0.0)
    with pytest.raises(ConfigError, match=r"method.p_global must be in \[0, 1\]; got 1.5"):
        build(load("simclr_unmix"), ModelConfig(depth=8, width=8), p_global=1.5)
    with pytest.raises(ConfigError, match=r"method.temperature must be above 0"):
        build(load("simclr_unmix"), ModelConfig(depth=8, width=8), temperature=-1.0)
