"""Chance level of the loss: what it is for each method, and that the run says it."""

import importlib
import math
from pathlib import Path
from typing import Any

import pytest
import torch

from mixfast import methods
from mixfast.models import ModelConfig
from mixfast.run import monitor
from tests.methods.hand import BATCH, SIDE, augmentation, build
from tests.tiny_run import open_tiny

PRESETS = [
    pytest.param(name, values, id=preset)
    for name in methods.names()
    for preset, values in importlib.import_module(f"mixfast.methods.{name}").PRESETS.items()
]


@pytest.mark.parametrize(("name", "values"), PRESETS)
def test_a_network_that_sees_no_difference_is_at_chance_level(name: str, values: dict[str, Any]) -> None:
    """Every head gives the same vector for every image, and the queues hold nothing else."""
    options = {key.removeprefix("method."): value for key, value in values.items() if key.startswith("method.")}
    method, generators = build(methods.load(name), ModelConfig(depth=8, width=8, dim=4, bn_splits=1), **options)
    count = method.candidates(method.config, BATCH)
    for part_name, part in method.named_modules():
        if part_name.rpartition(".")[2] in ("head", "region_head", "key_region_head", "dense_head", "key_dense_head"):
            part.register_forward_hook(lambda module, inputs, output: torch.ones_like(output))
    for keys in method.negatives().values():
        keys.fill_(0.5)
    images = torch.randint(256, (BATCH, 3, SIDE, SIDE), dtype=torch.uint8, generator=generators["probe"])
    step = method.step(method.views(images, augmentation(generators), generators), generators)
    assert (count is None) == name.startswith("byol")
    if count is None:  # the vectors being the same for all images, so are the terms
        assert (step.loss / step.total_weight()).item() == pytest.approx(step.parts["original"].item(), rel=1e-5)
    else:
        own = {term.name for term in step.terms if getattr(term, "negative", None) is not None}  # one candidate more
        chances = {key: math.log(count + (key in own)) for key in step.parts if key != "lam"}
        assert {key: step.parts[key].item() for key in chances} == pytest.approx(chances, rel=1e-5)
        printed = (step.loss / step.total_weight()).item()
        if own:  # RegionCL's terms weigh 1, 1/2 and 1/2
            assert printed == pytest.approx((chances["original"] + chances["canvas"]) / 2, rel=1e-5)
        else:
            assert printed == pytest.approx(math.log(count), rel=1e-5)


@pytest.mark.parametrize(
    ("method", "changes", "line"),
    [
        ("moco", {}, "weighted mean of its terms, averaged over the epoch; chance level ln(65) = 4.17"),
        ("simclr", {}, "weighted mean of its terms, averaged over the epoch; chance level ln(31) = 3.43"),
        ("simclr_unmix", {"train__accumulate": 2}, "chance level ln(15) = 2.71"),
        ("byol", {}, None),
    ],
)
def test_a_run_begins_with_it(
    method: str, changes: dict[str, Any], line: str | None, tmp_path: Path, capsys: Any
) -> None:
    run = open_tiny(tmp_path, method, **changes)
    monitor.introduce(run)
    printed = capsys.readouterr().out
    assert (line in printed) if line else ("chance" not in printed)
    assert (monitor.chance_loss(run.config) is None) == (line is None)
