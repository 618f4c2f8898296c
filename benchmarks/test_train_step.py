"""A whole optimiser step of each method beside the bare encoder passes that it needs by definition.

"encoder" runs the same passes on ready-made inputs, with a plain sum as the loss: what is above it is augmentation,
mixing, pooling, losses, queues, EMA, optimiser.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from mixfast import cli, engine
from mixfast.console import Console
from mixfast.data import load
from mixfast.run import Run, build
from mixfast.run_folder import RunFolder
from mixfast.signals import StopRequest

# method: encoder passes with gradient, passes without
PASSES = {"moco": (1, 1), "approach1": (2, 2), "approach2": (2, 2)}
FULL = {"model.depth": 18, "model.width": 16, "model.stem": "cifar_s2", "train.batch_size": 256, "data.scenes": 512}
SMALL = {"model.depth": 8, "model.width": 4, "model.stem": "cifar_s2", "train.batch_size": 16, "data.scenes": 32}


def prepare(method: str, folder: Path, smoke: bool) -> Run:
    values = {**(SMALL if smoke else FULL), "data.test_scenes": 10}
    words = [word for key, value in values.items() for word in (f"--{key}", str(value))]
    config = cli.parse(["--method", method, *words]).config
    parts = (load(config.data, seed=0), RunFolder(folder), Console(), StopRequest(), torch.device("cpu"))
    return build(config, *parts)


def step(run: Run) -> Callable[[], Any]:
    images = run.batches.images[: run.config.train.batch_size]
    return lambda: engine.optimiser_step(run, images, check=False)


def encoder(run: Run) -> Callable[[], Any]:
    with_gradient, without = PASSES[run.config.method_name]
    images = run.normalise(run.batches.images[: run.config.train.batch_size])

    def passes() -> None:
        with torch.no_grad():
            for _ in range(without):
                run.method.key_encoder(images)
        sum(run.method.encoder(images).z.sum() for _ in range(with_gradient)).backward()
        run.optimizer.zero_grad(set_to_none=True)

    return passes


@pytest.mark.parametrize("method", PASSES)
def test_train_step(measure: Any, smoke: bool, method: str, tmp_path: Path) -> None:
    runs = [prepare(method, tmp_path / name, smoke) for name in ("floor", "step")]
    table = {"floor: encoder passes": encoder(runs[0]), "mixfast step": step(runs[1])}
    measure(f"train step, {method}, {runs[0].config.train.batch_size} images", table)
