"""BYOL and BYOL + Un-Mix: losses by hand, the target's pace, reductions, what each row shows."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from mixfast.augment import PRESETS as AUGMENTATIONS
from mixfast.config.presets import build as preset
from mixfast.errors import ConfigError
from mixfast.methods import byol_unmix, load
from mixfast.models import ModelConfig
from tests.methods.hand import Rows, build, cosine, double, head_rows, mean
from tests.methods.test_pairs import CODES, COUNT, content, image, index_method

SMALL = {"predictor_hidden": 12}


@torch.no_grad()
def said(method: Any, view: Tensor) -> tuple[Rows, Rows]:
    """(predictions, targets) of a view."""
    z, target = (
        torch.tensor(head_rows(encoder.head, encoder.pool(view)), dtype=torch.float64)
        for encoder in (method.encoder, method.target_encoder)
    )
    return head_rows(method.predictor, z), target.tolist()


def distances(method: Any, predictions: Rows, targets: Rows) -> list[float]:
    pairs = [cosine(p, t) for p, t in zip(predictions, targets, strict=True)]
    return [-c / 2 if method.config.loss == "cosine" else 2 - 2 * c for c in pairs]


@pytest.mark.parametrize("head", ["linear", "mlp", "mlp_bn"])
@pytest.mark.parametrize("loss", ["cosine", "distance"])
def test_loss_by_hand(loss: str, head: str) -> None:
    method, generators, views = double(load("byol"), head, loss=loss, **SMALL)
    (p1, t1), (p2, t2) = (said(method, views[name]) for name in ("first", "second"))
    expected = mean(distances(method, p1, t2)) + mean(distances(method, p2, t1))
    step = method.step(views, generators)
    assert step.loss.item() == pytest.approx(expected, rel=1e-9)
    assert step.parts["original"].item() == step.loss.item() and step.carry == {}


OPTIONS: list[dict[str, Any]] = [
    {},
    {"mix_online_only": True},
    {"mix_online_only": True, "loss": "distance", "box_per_sample": True},
    {"loss": "distance"},
    {"box_per_sample": True},
    {"p_global": 1.0},
    {"p_global": 0.0},
    {"mixture": "saliency"},
    {"mixture": "mixup", "alpha": 0.5},
]


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_unmix_loss_by_hand(options: dict[str, Any]) -> None:
    method, generators, views = double(load("byol_unmix"), "mlp_bn", **SMALL, **options)
    (p1, t1), (p2, t2), (pm, tm) = (said(method, views[name]) for name in ("first", "second", "first_mixed"))
    lam = views["lam_first_mixed"].tolist()
    rest = [1 - share for share in lam][::-1]
    original = mean(distances(method, p1, t2)) + mean(distances(method, p2, t1))
    rows = {"mixed": distances(method, pm, t2), "mixed_reverse": distances(method, pm[::-1], t2)}
    if not options.get("mix_online_only"):
        for name, targets in (("mixed", tm), ("mixed_reverse", tm[::-1])):
            rows[name] = [a + b for a, b in zip(rows[name], distances(method, p2, targets), strict=True)]
    expected = {
        "original": original, "mixed": mean(rows["mixed"]), "mixed_reverse": mean(rows["mixed_reverse"]),
        "lam": mean(lam), "loss": original + mean(rows["mixed"], lam) + mean(rows["mixed_reverse"], rest),
    }  # fmt: skip
    step = method.step(views, generators)
    values = {name: value.item() for name, value in {**step.parts, "loss": step.loss}.items()}
    assert values == pytest.approx(expected, rel=1e-7)  # lam is a float32


@pytest.mark.parametrize("loss", ["cosine", "distance"])
def test_unmix_without_mixing_is_byol_twice(loss: str) -> None:
    method, generators, views = double(load("byol_unmix"), "mlp_bn", mixture="none", loss=loss, **SMALL)
    step = method.step(views, generators)
    assert step.loss.item() == pytest.approx(2 * step.parts["original"].item(), rel=1e-12)


def test_distance_has_four_times_the_gradient_of_cosine() -> None:
    gradients = {}
    for loss in ("cosine", "distance"):
        method, generators, views = double(load("byol"), "mlp_bn", loss=loss, **SMALL)
        method.step(views, generators).loss.backward()
        gradients[loss] = torch.cat([p.grad.flatten() for p in method.parameters() if p.grad is not None])
    torch.testing.assert_close(gradients["distance"], 4 * gradients["cosine"], rtol=1e-9, atol=1e-13)


@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize(
    ("schedule", "progress", "share"),
    # 1 - 0.1 (1 + cos(pi progress)) / 2
    [
        ("fixed", 0.5, 0.9),
        ("cosine", 0.0, 0.9),
        ("cosine", 0.25, 0.9146447),
        ("cosine", 0.5, 0.95),
        ("cosine", 1.0, 1.0),
    ],
)
def test_target_moves_by_the_share_of_the_schedule(schedule: str, progress: float, share: float, when: str) -> None:
    method, _ = build(
        load("byol"), ModelConfig(depth=8, width=8, dim=6), ema=0.9, ema_schedule=schedule, ema_when=when, **SMALL
    )
    with torch.no_grad():
        method.encoder.head.weight.fill_(1)
        method.target_encoder.head.weight.fill_(0)
    method.begin(torch.tensor(progress, dtype=torch.float64))
    begun = 1 - share if when == "before" else 0.0
    torch.testing.assert_close(method.target_encoder.head.weight, torch.full((6, 32), begun), rtol=0, atol=1e-6)
    method.update({})
    torch.testing.assert_close(method.target_encoder.head.weight, torch.full((6, 32), 1 - share), rtol=0, atol=1e-6)


@pytest.mark.parametrize("head", ["linear", "mlp", "mlp_bn", "mlp_bn2"])
def test_a_shift_of_every_projection_would_get_no_gradient_and_stays_zero(head: str) -> None:
    """The reason why the last bias is frozen: the predictor's batch norm takes it away."""
    method, generators, views = double(load("byol"), head, **SMALL)
    frozen = {name: p for name, p in method.encoder.named_parameters() if not p.requires_grad}
    assert list(frozen) == [[name for name, _ in method.encoder.named_parameters() if name.endswith("bias")][-1]]
    (bias,) = frozen.values()
    before = method.step(views, generators).loss
    with torch.no_grad():
        bias.add_(1)
    torch.testing.assert_close(method.step(views, generators).loss, before, rtol=1e-10, atol=0)
    fresh, _ = build(load("byol"), ModelConfig(depth=8, width=8, head=head), **SMALL)
    assert not dict(fresh.encoder.named_parameters())[next(iter(frozen))].any()


@pytest.mark.parametrize("options", [{"p_global": 1.0}, {"box_per_sample": True}, {"mix_online_only": True}], ids=str)
def test_every_distance_compares_rows_that_share_an_image(
    options: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    method, generators, views = index_method("byol_unmix", **options)
    share = views["lam_first_mixed"][:, None]
    mixture = share * CODES + (1 - share) * CODES.flip(0)
    seen: list[tuple[Tensor, Tensor]] = []
    real = byol_unmix.distance
    monkeypatch.setattr(byol_unmix, "distance", lambda p, t, kind: (seen.append((p, t)), real(p, t, kind))[1])
    method.step(views, generators)
    whole, mixed = [], []
    for predictions, targets in seen:
        clean = [rows for rows in (predictions, targets) if torch.cdist(content(rows), CODES).diagonal().max() < 1e-4]
        assert all(image(rows) == list(range(COUNT)) for rows in clean)
        assert len(clean) >= 1
        (whole if len(clean) == 2 else mixed).append((predictions, targets))
    assert len(whole) == 2 and len(mixed) == (2 if options.get("mix_online_only") else 4)
    forward = backward = 0
    for pair in mixed:
        other = next(content(rows) for rows in pair if torch.cdist(content(rows), CODES).diagonal().max() >= 1e-4)
        forward += torch.allclose(other, mixture, atol=1e-5)
        backward += torch.allclose(other, mixture.flip(0), atol=1e-5)
    assert forward == backward == len(mixed) // 2


def test_every_view_passes_each_network_once() -> None:
    method, generators, views = double(load("byol_unmix"), "mlp_bn", **SMALL)
    method.step(views, generators)
    assert {m.num_batches_tracked.item() for m in method.modules() if isinstance(m, nn.BatchNorm1d)} == {3}
    assert method.encoder.backbone.bn1.num_batches_tracked.item() == 3


def test_recipes_have_the_published_numbers() -> None:
    default, wmse, unmix = (preset(name, [], None)[0] for name in ("byol", "byol_wmse", "byol_unmix"))
    assert default.augment == AUGMENTATIONS["byol"] and default.augment.solarise_second == 0.2
    assert (default.model.head, default.model.hidden, default.model.dim, default.method.predictor_hidden) == (
        "mlp_bn", 1024, 256, 1024,
    )  # fmt: skip
    assert (default.method.ema, default.method.ema_schedule, default.method.ema_when) == (0.99, "fixed", "before")
    assert (default.method.loss, default.optim.lr, default.model.bn_splits) == ("cosine", 0.24, 1)
    assert (unmix.model, unmix.optim, unmix.augment) == (default.model, default.optim, default.augment)
    assert wmse.augment == AUGMENTATIONS["wmse"] and wmse.model.dim == 64
    assert (wmse.method.ema, wmse.method.ema_schedule, wmse.method.ema_when) == (0.99, "cosine", "after")
    assert (wmse.method.loss, wmse.optim.name) == ("distance", "adam")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"ema": 1.5}, r"method.ema must be in \[0, 1\]; got 1.5"),
        ({"predictor_hidden": 0}, r"method.predictor_hidden must be at least 1; got 0"),
        ({"p_global": -0.5}, r"method.p_global must be in \[0, 1\]; got -0.5"),
    ],
)
def test_bad_options_are_named(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        build(load("byol_unmix"), ModelConfig(depth=8, width=8), **options)


def test_cosines_of_the_oracle() -> None:
    assert cosine([3.0, 4.0], [4.0, 3.0]) == pytest.approx(24 / 25) and cosine([1.0], [-2.0]) == -1
    assert math.isclose(cosine([1.0, 1.0], [1.0, 0.0]), math.sqrt(0.5))
