"""Learning rates against hand numbers, and what the optimiser is made of."""

import io
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from mixfast.config.options import OptimConfig
from mixfast.config.presets import build, presets
from mixfast.run.optim import (
    build_optimizer,
    epoch_rate,
    learning_rate,
    load_optimizer,
    mean_rate,
    set_learning_rate,
)


@pytest.mark.parametrize(
    ("config", "epochs", "expected"),
    [
        # lr/2 (1 + cos(pi e / 4)) at e = 0, 1, 2, 3; or at e = 1, 2, 3, 4, where the last epoch runs at rate 0
        (OptimConfig(lr=0.06), 4, [0.06, 0.0512132, 0.03, 0.0087868]),
        (OptimConfig(lr=0.06, cosine_origin=1), 4, [0.0512132, 0.03, 0.0087868, 0.0]),
        # ten epochs, shares 0.6 and 0.9: epochs 0-5, 6-8, 9
        (OptimConfig(lr=1.0, schedule="step"), 10, [1.0] * 6 + [0.1] * 3 + [0.01]),
        (OptimConfig(lr=1.0, schedule="step", steps=(0.5,), step_factor=0.5), 4, [1.0, 1.0, 0.5, 0.5]),
        (OptimConfig(lr=1.0, schedule="step", steps=(), warmup_epochs=3), 5, [0.25, 0.5, 0.75, 1.0, 1.0]),
        # 3 epochs and 1 epoch before the end of five; with two epochs the first of them is left out
        (OptimConfig(lr=1.0, schedule="step", steps=(-3.0, -1.0)), 5, [1.0, 1.0, 0.1, 0.1, 0.01]),
        (OptimConfig(lr=1.0, schedule="step", steps=(-3.0, -1.0)), 2, [1.0, 0.1]),
        (OptimConfig(lr=0.06, cosine_origin=1, warmup_epochs=1), 4, [0.0256066, 0.03, 0.0087868, 0.0]),
        (OptimConfig(lr=0.06, cosine_origin=1), 1, [0.0]),
        (OptimConfig(lr=0.06), 1, [0.06]),
    ],
)
def test_learning_rate(config: OptimConfig, epochs: int, expected: list[float]) -> None:
    rates = [learning_rate(config, epoch, epochs, step=0) for epoch in range(epochs)]
    assert rates == pytest.approx(expected, abs=1e-7)


@pytest.mark.parametrize("epochs", [1, 2, 7, 200, 800, 1000])
def test_the_modifier_moco_demo_is_the_rate_of_mocos_demo_in_every_epoch(epochs: int) -> None:
    config = build("moco", ["moco_demo"], None)[0].optim
    for number in range(1, epochs + 1):  # the demo counts from 1
        expected = 0.06 * (0.5 * (1 + math.cos(math.pi * number / epochs)))
        assert learning_rate(config, number - 1, epochs, step=0) == pytest.approx(expected, rel=1e-12, abs=1e-18)


@pytest.mark.parametrize("epochs", [1, 2, 3, 7, 200, 1000])
@pytest.mark.parametrize("preset", [name for name in presets() if not name.endswith("_wmse") and name != "moco_v1"])
def test_presets_anneal_as_torch_does_and_have_no_epoch_at_rate_0(preset: str, epochs: int) -> None:
    config = build(preset, [], None)[0].optim
    rates = [learning_rate(config, epoch, epochs, step=0) for epoch in range(epochs)]
    weight = nn.Parameter(torch.zeros(()))
    optimizer = torch.optim.SGD([weight], lr=config.lr)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, epochs)
    for rate in rates:
        assert rate == pytest.approx(optimizer.param_groups[0]["lr"], rel=1e-9) and rate > 0
        optimizer.step()
        schedule.step()
    assert sum(rates) / epochs > config.lr / 2


@pytest.mark.parametrize("epochs", [1, 20, 25, 26, 49, 50, 51, 60, 200, 1000])
@pytest.mark.parametrize(
    ("preset", "milestones", "factor"),
    [
        ("simclr_wmse", lambda epochs: [epochs - 50, epochs - 25], 0.2),  # whatever the length
        ("byol_wmse", lambda epochs: [epochs - 50, epochs - 25], 0.2),
        ("moco_v1", lambda epochs: [0.6 * epochs, 0.8 * epochs], 0.1),  # 120 and 160 of 200
    ],
)
def test_step_presets_follow_multi_step_lr(
    preset: str, milestones: Callable[[int], list[float]], factor: float, epochs: int
) -> None:
    config = build(preset, [], None)[0].optim
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(()))], lr=config.lr)
    whole = [math.ceil(begin - 1e-9) for begin in milestones(epochs)]
    schedule = torch.optim.lr_scheduler.MultiStepLR(optimizer, whole, factor)
    for epoch in range(epochs):
        rate = learning_rate(config, epoch, epochs, step=10**6)  # beyond the warm-up
        assert rate == pytest.approx(optimizer.param_groups[0]["lr"], rel=1e-9), epoch
        optimizer.step()
        schedule.step()


def test_mean_rates_are_the_means_over_all_steps() -> None:
    for config in (
        OptimConfig(lr=0.3),
        OptimConfig(lr=0.3, warmup_steps=13, warmup_epochs=1),
        OptimConfig(lr=0.3, schedule="step", steps=(0.5, -1.0), warmup_steps=100),
    ):
        rates = [[learning_rate(config, epoch, 4, 5 * epoch + step) for step in range(5)] for epoch in range(4)]
        for epoch, of_epoch in enumerate(rates):
            assert epoch_rate(config, epoch, 4, 5) == pytest.approx(sum(of_epoch) / 5)
        assert mean_rate(config, 4, 5) == pytest.approx(sum(map(sum, rates)) / 20)


def test_warm_up_by_steps_reaches_the_full_rate_at_its_last_step() -> None:
    config = OptimConfig(lr=1.0, schedule="step", steps=(0.5,), warmup_steps=4)
    # four epochs of two steps; the schedule divides by ten after the second
    rates = [learning_rate(config, step // 2, 4, step) for step in range(8)]
    assert rates == pytest.approx([0.25, 0.5, 0.75, 1.0, 0.1, 0.1, 0.1, 0.1])
    both = OptimConfig(lr=1.0, schedule="step", steps=(), warmup_steps=4, warmup_epochs=1)
    rates = [learning_rate(both, step // 2, 4, step) for step in range(8)]
    assert rates == pytest.approx([0.25, 0.5, 0.75, 1.0, 1.0, 1.0, 1.0, 1.0])


def test_the_wmse_recipe_over_its_thousand_epochs() -> None:
    config = build("simclr_wmse", [], None)[0].optim
    points = {
        (0, 0): 6e-6,
        (0, 49): 3e-4,
        (5, 499): 3e-3,
        (949, 92_052): 3e-3,
        (950, 92_150): 6e-4,
        (975, 94_575): 1.2e-4,
    }
    found = {point: learning_rate(config, point[0], 1000, point[1]) for point in points}
    assert found == pytest.approx(points, rel=1e-12)


def test_sgd_step_with_momentum_and_decay_by_hand() -> None:
    weight, frozen = nn.Parameter(torch.tensor([1.0])), nn.Parameter(torch.tensor([5.0]), requires_grad=False)
    optimizer = build_optimizer(OptimConfig(lr=0.1, momentum=0.5, weight_decay=0.2), [weight, frozen])
    assert len(optimizer.param_groups[0]["params"]) == 1
    weight.grad = torch.tensor([3.0])
    optimizer.step()  # velocity 3 + 0.2 = 3.2
    assert weight.item() == pytest.approx(0.68)
    set_learning_rate(optimizer, 0.01)
    weight.grad = torch.tensor([1.0])
    optimizer.step()  # velocity 0.5 * 3.2 + 1 + 0.2 * 0.68 = 2.736
    assert weight.item() == pytest.approx(0.68 - 0.02736)
    assert frozen.item() == 5.0


def lars_by_hand(
    weights: list[float], gradients: list[float], velocity: list[float], lr: float, adapt: bool
) -> tuple[list[float], list[float]]:
    """One step with momentum 0.5, decay 0.25 and trust 0.125, in loops; decay and adaptation together or not at all."""
    directions = [g + 0.25 * w for w, g in zip(weights, gradients, strict=True)] if adapt else gradients
    lengths = [math.sqrt(sum(x * x for x in values)) for values in (weights, directions)]
    rate = lr * 0.125 * lengths[0] / lengths[1] if adapt and all(lengths) else lr
    velocity = [0.5 * v + rate * d for v, d in zip(velocity, directions, strict=True)]
    return [w - v for w, v in zip(weights, velocity, strict=True)], velocity


LARS_OPTIONS: dict[str, Any] = {"name": "lars", "momentum": 0.5, "weight_decay": 0.25, "lars_trust": 0.125}


@pytest.mark.parametrize("exclude", [True, False])
def test_lars_steps_by_hand(exclude: bool, rng: torch.Generator) -> None:
    shapes = [(3, 2), (4,), (2, 3, 1, 1), ()]
    weights = [nn.Parameter(torch.randn(shape, generator=rng, dtype=torch.float64)) for shape in shapes]
    with torch.no_grad():
        weights[2].zero_()  # no length to compare with: the plain rate
    optimizer = build_optimizer(OptimConfig(lr=2.0, lars_exclude=exclude, **LARS_OPTIONS), weights)
    expected = [(w.flatten().tolist(), [0.0] * w.numel()) for w in weights]
    for rate in (2.0, 0.5, 1.0):  # the rate is inside the velocity, so a change does not scale what is in it
        set_learning_rate(optimizer, rate)
        for n, weight in enumerate(weights):
            weight.grad = torch.randn(weight.shape, generator=rng, dtype=torch.float64)
            adapt = not exclude or weight.ndim > 1
            values, velocity = expected[n]
            expected[n] = lars_by_hand(values, weight.grad.flatten().tolist(), velocity, rate, adapt)
        optimizer.step()
        for weight, (values, _) in zip(weights, expected, strict=True):
            assert weight.flatten().tolist() == pytest.approx(values, rel=1e-12)


@pytest.mark.parametrize("name", ["sgd", "adam", "lars"])
def test_the_rate_is_one_tensor_that_is_filled(name: str) -> None:
    """A recorded step reads it at its address: also after a saved state, here one of another rate, is continued."""
    weight = nn.Parameter(torch.ones(2, 2))
    ours, theirs = (build_optimizer(OptimConfig(name=name, lr=lr), [weight]) for lr in (0.5, 0.25))  # type: ignore[arg-type]
    rate = ours.param_groups[0]["lr"]
    set_learning_rate(ours, 0.125)
    weight.grad = torch.ones(2, 2)
    theirs.step()
    load_optimizer(ours, theirs.state_dict())
    assert ours.param_groups[0]["lr"] is rate and rate.dtype == torch.float32 and rate.item() == 0.125
    moment = {"sgd": "momentum_buffer", "adam": "exp_avg", "lars": "velocity"}[name]
    assert torch.equal(ours.state[weight][moment], theirs.state[weight][moment])


def test_lars_without_gradient_or_with_none_of_length(rng: torch.Generator) -> None:
    still, moving = (nn.Parameter(torch.ones(2, 2)) for _ in range(2))
    optimizer = build_optimizer(OptimConfig(name="lars", lr=1.0, weight_decay=0.0), [still, moving])
    moving.grad = torch.zeros(2, 2)
    optimizer.step()
    assert torch.equal(still, torch.ones(2, 2)) and torch.equal(moving, torch.ones(2, 2))
    assert len(optimizer.state) == 1  # of the one that has a gradient


def test_lars_norms_and_biases_are_a_group_of_their_own() -> None:
    module = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2))
    groups = build_optimizer(OptimConfig(name="lars"), module.parameters()).param_groups
    assert [[tuple(p.shape) for p in group["params"]] for group in groups] == [[(2, 1, 3, 3)], [(2,), (2,), (2,)]]
    assert [(group["weight_decay"], group["adapt"]) for group in groups] == [(5e-4, True), (0.0, False)]
    (alone,) = build_optimizer(OptimConfig(name="lars", lars_exclude=False), module.parameters()).param_groups
    assert len(alone["params"]) == 4 and alone["adapt"] and alone["weight_decay"] == 5e-4


def test_adam_steps_by_hand() -> None:
    """Decay is added to the gradient, as in W-MSE's code, not to the step."""
    weight = nn.Parameter(torch.tensor([1.0], dtype=torch.float64))
    optimizer = build_optimizer(OptimConfig(name="adam", lr=0.125, momentum=0.8, weight_decay=0.5), [weight])
    value = first = second = 0.0
    value = 1.0
    for step, gradient in enumerate((3.0, -1.0, 0.25), start=1):
        weight.grad = torch.tensor([gradient], dtype=torch.float64)
        optimizer.step()
        direction = gradient + 0.5 * value
        first, second = 0.8 * first + 0.2 * direction, 0.999 * second + 0.001 * direction**2
        value -= 0.125 * first / (1 - 0.8**step) / (math.sqrt(second / (1 - 0.999**step)) + 1e-8)
        assert weight.item() == pytest.approx(value, rel=1e-12)


@pytest.mark.parametrize("name", ["sgd", "adam", "lars"])
def test_a_saved_optimiser_continues_with_the_same_bits(name: str, rng: torch.Generator) -> None:
    gradients = [[torch.randn(shape, generator=rng) for shape in ((3, 2), (4,))] for _ in range(4)]
    config = OptimConfig(name=name, lr=0.1)  # type: ignore[arg-type]

    def fresh() -> tuple[list[nn.Parameter], torch.optim.Optimizer]:
        weights = [nn.Parameter(torch.ones(3, 2)), nn.Parameter(torch.ones(4))]
        return weights, build_optimizer(config, weights)

    def step(weights: list[nn.Parameter], optimizer: torch.optim.Optimizer, number: int) -> None:
        for weight, gradient in zip(weights, gradients[number], strict=True):
            weight.grad = gradient.clone()
        optimizer.step()

    weights, optimizer = fresh()
    for number in range(4):
        if number == 2:
            file = io.BytesIO()
            torch.save({"weights": [w.detach() for w in weights], "optimizer": optimizer.state_dict()}, file)
        step(weights, optimizer, number)
    file.seek(0)
    saved = torch.load(file, weights_only=True)
    others, other = fresh()
    with torch.no_grad():
        for weight, value in zip(others, saved["weights"], strict=True):
            weight.copy_(value)
    other.load_state_dict(saved["optimizer"])
    for number in (2, 3):
        step(others, other, number)
    assert all(torch.equal(a, b) for a, b in zip(weights, others, strict=True))
