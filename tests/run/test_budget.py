"""The cost of a step, against counts by hand."""

from typing import Any

import pytest
import torch
from torch import nn

from mixfast.config.options import replace
from mixfast.config.presets import build, presets, switch_method
from mixfast.run.budget import explain_out_of_memory, state_bytes, step_cost

SMALL: dict[str, Any] = {"model.depth": 8, "model.width": 8, "model.dim": 8, "method.queue_size": 256}


@pytest.mark.parametrize(
    ("method", "symmetric", "expected"),
    # passes with gradient count 3, passes without 1
    [("moco", False, 4), ("moco", True, 8), ("approach1", False, 8), ("approach1", True, 16), ("approach2", False, 8)],
)
def test_encoder_passes(method: str, symmetric: bool, expected: int) -> None:
    config = switch_method(build("demo", [], None)[0], method)
    config = replace(config, {**SMALL, "method.symmetric": symmetric})
    cost = step_cost(config, side=16)
    assert cost.encoder == expected
    assert cost.saved_bytes > 3 * 16 * 16 * 4  # at least the input of the first convolution


@pytest.mark.parametrize(
    ("preset", "options", "expected"),
    [
        ("simclr", {}, 6),
        ("simclr_wmse", {}, 6),
        ("simclr_unmix", {}, 9),
        ("byol", {}, 8),
        ("byol_unmix", {}, 12),
        ("byol_unmix", {"method.mix_online_only": True}, 11),
    ],
)
def test_encoder_passes_without_a_queue(preset: str, options: dict[str, Any], expected: int) -> None:
    config = replace(build(preset, [], None)[0], {"model.depth": 8, "model.width": 8, **options})
    assert step_cost(config, side=16).encoder == expected


@pytest.mark.parametrize("preset", [name for name, values in presets().items() if values.cost.endswith("x")])
def test_costs_in_the_help_are_relative_to_moco(preset: str) -> None:
    config = replace(build(preset, [], None)[0], {"model.depth": 8, "model.width": 8})
    assert presets()[preset].cost == f"{step_cost(config, side=16).encoder / 4:g}x"


def test_state_bytes_by_hand() -> None:
    module = nn.Sequential(nn.Linear(3, 2), nn.Linear(2, 2).requires_grad_(False))
    module.register_buffer("queue", torch.zeros(5, 2))
    assert state_bytes(module) == {
        "weights": 4 * (8 + 6), "gradients and momentum": 2 * 4 * 8, "queues and statistics": 40
    }  # fmt: skip
    assert state_bytes(module, moments=2)["gradients and momentum"] == 3 * 4 * 8


def test_explanation_grows_with_memory_and_names_options() -> None:
    config = replace(build("demo", [], "moco")[0], SMALL)
    images = torch.zeros(10, 3, 16, 16, dtype=torch.uint8)
    texts = [explain_out_of_memory(config, nn.Linear(2, 2), images, total, "augment") for total in (2**20, 2**28)]
    fits = [int(text.split("fits at once: ")[1].split(" ")[0]) for text in texts]
    assert 0 <= fits[0] < fits[1] and all(fit % config.model.bn_splits == 0 for fit in fits)
    assert "after part 'augment'" in texts[0] and "--train.accumulate 2" in texts[0]
