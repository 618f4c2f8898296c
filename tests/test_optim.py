"""Learning rates against hand numbers, and what the optimiser is made of."""

import pytest
import torch
from torch import nn

from mixfast.config import OptimConfig
from mixfast.optim import build_optimizer, learning_rate, set_learning_rate


@pytest.mark.parametrize(
    ("config", "epochs", "expected"),
    [
        # lr/2 (1 + cos(pi e / 4)) at e = 1, 2, 3, 4: the last epoch runs at rate 0
        (OptimConfig(lr=0.06), 4, [0.0512132, 0.03, 0.0087868, 0.0]),
        (OptimConfig(lr=0.06, cosine_origin=0), 4, [0.06, 0.0512132, 0.03, 0.0087868]),
        # ten epochs, shares 0.6 and 0.9: epochs 0-5, 6-8, 9
        (OptimConfig(lr=1.0, schedule="step"), 10, [1.0] * 6 + [0.1] * 3 + [0.01]),
        (OptimConfig(lr=1.0, schedule="step", steps=(0.5,), step_factor=0.5), 4, [1.0, 1.0, 0.5, 0.5]),
        (OptimConfig(lr=1.0, schedule="step", steps=(), warmup_epochs=3), 5, [0.25, 0.5, 0.75, 1.0, 1.0]),
        (OptimConfig(lr=0.06, warmup_epochs=1), 4, [0.0256066, 0.03, 0.0087868, 0.0]),
        (OptimConfig(lr=0.06), 1, [0.0]),
    ],
)
def test_learning_rate(config: OptimConfig, epochs: int, expected: list[float]) -> None:
    assert [learning_rate(config, epoch, epochs) for epoch in range(epochs)] == pytest.approx(expected, abs=1e-7)


def test_published_recipe_at_the_200th_epoch_and_half_way() -> None:
    assert learning_rate(OptimConfig(), 199, 200) == 0.0
    assert learning_rate(OptimConfig(), 99, 200) == pytest.approx(0.03)


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
