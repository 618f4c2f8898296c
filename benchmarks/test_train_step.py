"""A whole optimiser step of each method beside the bare encoder passes that it needs, and beside steps of others.

Ours begins with the images, so it augments and mixes as well. The peers (benchmarks/plain_steps.py) get views and
mixtures ready-made, but for the one whose loader makes two views of each image with torchvision in the same process.
On a machine with a GPU the shapes are those of trainings, elsewhere of a size that a CPU can measure.
"""

import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks.plain_steps import PlainStep, lightly_moco
from benchmarks.test_augment import torchvision
from mixfast.config.options import flatten, replace
from mixfast.config.presets import build
from mixfast.profile.__main__ import SHAPES
from mixfast.profile.measure import bare_encoder, prepare
from mixfast.run import engine
from mixfast.run.budget import step_cost
from mixfast.run.state import Run

METHODS = ("moco", "moco_unmix", "approach1", "approach2", "simclr", "byol")
SMALL = {"model.depth": 8, "model.width": 8, "model.stem": "cifar_s2", "data.size": 32, "train.batch_size": 16}
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
CASES = ("cifar", "imagenet") if DEVICE.type == "cuda" else ("small",)


def start(method: str, shape: str, folder: Path, smoke: bool, **changes: Any) -> Run:
    config = build(method, [], None)[0]
    sizes = {key: value for key, value in (SMALL if smoke else SHAPES[shape]).items() if key in flatten(config)}
    return prepare(replace(config, {**sizes, **changes}), DEVICE, folder)


def waited(run: Callable[[], object]) -> Callable[[], None]:
    """Until the device is done."""

    def call() -> None:
        run()
        if DEVICE.type == "cuda":
            torch.cuda.synchronize()

    return call


def with_loader(step: PlainStep, loader: Callable[[], list[Any]]) -> Callable[[], None]:
    """The step after two views by torchvision, one image at a time, as a loader in the same process makes them."""
    names = [name for name, view in step.views.items() if view.ndim == 4][:1]

    def run() -> None:
        first, *_ = loader()
        step.views[names[0]] = first.to(DEVICE)
        step()

    return run


@pytest.mark.parametrize("shape", CASES)
@pytest.mark.parametrize("method", METHODS)
def test_train_step(measure: Any, smoke: bool, method: str, shape: str, tmp_path: Path) -> None:
    run = start(method, shape, tmp_path, smoke)
    images = run.batches.images[: run.config.train.batch_size]
    table = {
        "floor: encoder passes": bare_encoder(run, step_cost(run.config, side=32)),
        "mixfast step": lambda: engine.optimiser_step(run, images, check=False),
        "plain PyTorch, views ready-made": PlainStep(run, images),
    }
    if shape != "imagenet":  # whose loaders decode as well
        loader = torchvision(images.cpu())["torchvision v1 on PIL images"]
        table["plain PyTorch, views by torchvision"] = with_loader(PlainStep(run, images), loader)
    if method == "moco" and importlib.util.find_spec("lightly"):  # which pip install mixfast[bench] brings
        table["lightly, views ready-made"] = lightly_moco(run, images)
    label = f"{run.config.model.title}, {run.config.data.size} px"
    title = f"train step, {method}, {label}, batch {len(images)}"
    measure(title, {name: waited(call) for name, call in table.items()})


@pytest.mark.parametrize("method", METHODS)
def test_plain_steps_compute_the_same_loss(method: str, tmp_path: Path) -> None:
    """With one batch norm group, as the groups of shuffled keys are random."""
    run = start(method, "small", tmp_path, smoke=True, **{"model.bn_splits": 1})
    images = run.batches.images[:16]
    step = PlainStep(run, images)
    loss, keys = step.loss(step.views)
    by_mixfast = run.method.step(step.views, run.generators)
    torch.testing.assert_close(loss.detach(), by_mixfast.loss.detach(), rtol=2e-5, atol=2e-5)
    assert set(keys) == set(by_mixfast.carry)
    for name, rows in keys.items():
        torch.testing.assert_close(rows, by_mixfast.carry[name], rtol=1e-4, atol=1e-5)


@pytest.mark.skipif(not importlib.util.find_spec("lightly"), reason="lightly is not installed")
def test_lightly_computes_the_same_loss(tmp_path: Path) -> None:
    run = start("moco", "small", tmp_path, smoke=True, **{"model.bn_splits": 1})
    images = run.batches.images[:16]
    run.views(images)  # the streams of the views exist from here on
    before = run.generators.state_dict()
    value = lightly_moco(run, images)()
    run.generators.load_state_dict(before)
    step = PlainStep(run, images)
    torch.testing.assert_close(value, step.loss(step.views)[0].detach(), rtol=2e-5, atol=2e-5)
