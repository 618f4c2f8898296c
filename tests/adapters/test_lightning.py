"""Methods as a LightningModule end in the bits of the package's own loop: by a loop that calls the hooks as Lightning
documents them, and by Lightning where it is installed."""

import importlib
import importlib.util
import warnings
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from mixfast.adapters import LightningMethod
from mixfast.errors import ConfigError
from mixfast.rng import Generators
from mixfast.run import engine
from mixfast.run.optim import build_optimizer
from mixfast.run.state import Run
from tests.tiny_run import assert_same, open_tiny

Train = Callable[[Run, list[Tensor], int], Any]


def subclass(base: type[nn.Module], run: Run) -> Any:
    class Training(LightningMethod, base):  # type: ignore[misc, valid-type]
        def configure_optimizers(self) -> torch.optim.Optimizer:
            return build_optimizer(run.config.optim, self.parameters())

    return Training(run.method, run.generators, run.augmenter(run.generators))


def by_stand_in(run: Run, batches: list[Tensor], accumulate: int) -> Any:
    """Automatic optimisation as Lightning documents it."""

    class Base(nn.Module):
        logged: list[dict[str, Tensor]]

        def log_dict(self, values: dict[str, Tensor]) -> None:
            self.logged.append(values)

    module = subclass(Base, run)
    module.logged = []
    steps = len(batches) // accumulate
    module.trainer = SimpleNamespace(global_step=0, estimated_stepping_batches=steps, world_size=1)
    optimizer = module.configure_optimizers()
    module.on_fit_start()
    for index, batch in enumerate(batches):
        module.on_train_batch_start((batch, "labels"), index)
        loss = module.training_step((batch, "labels"), index) / accumulate
        if index % accumulate == 0:
            optimizer.zero_grad()
        loss.backward()
        if (index + 1) % accumulate == 0:
            optimizer.step()
            module.trainer.global_step += 1
        module.on_train_batch_end(loss, (batch, "labels"), index)
    assert len(module.logged) == len(batches) and all("loss" in values for values in module.logged)
    return module


def by_lightning(run: Run, batches: list[Tensor], accumulate: int) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        lightning = importlib.import_module("pytorch_lightning")
        module = subclass(lightning.LightningModule, run)
        quiet = dict.fromkeys(("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary"), False)
        lightning.Trainer(accelerator="cpu", max_epochs=1, accumulate_grad_batches=accumulate, **quiet).fit(
            module, torch.utils.data.DataLoader(batches, batch_size=None)
        )
    return module


absent = pytest.mark.skipif(
    importlib.util.find_spec("pytorch_lightning") is None,
    reason="lightning is not installed: pip install mixfast[bench]",
)


@pytest.mark.slow
@pytest.mark.parametrize("train", [by_stand_in, pytest.param(by_lightning, marks=absent)])
@pytest.mark.parametrize("method, accumulate", [("approach1", 2), ("byol", 1)])
def test_the_same_bits_as_the_packages_loop(method: str, accumulate: int, train: Train, tmp_path: Path) -> None:
    """byol: the follower's share depends on the progress; approach1: queues, region heads, boxes."""
    options = {"train__epochs": 1, "train__accumulate": accumulate}
    ours, theirs = (open_tiny(tmp_path / name, method, **options) for name in ("ours", "theirs"))
    batches, again = ([images.clone() for images in run.batches.epoch()] for run in (ours, theirs))
    assert_same(batches, again)
    start = {name: value.clone() for name, value in ours.method.state_dict().items()}
    for images in batches:
        engine.optimiser_step(ours, images, check=False)
        ours.step += 1
    parts = [part for images in batches for part in images.chunk(accumulate)]
    module = train(theirs, parts, accumulate)
    assert_same(dict(theirs.method.state_dict()), dict(ours.method.state_dict()))
    assert_same(theirs.generators.state_dict(), ours.generators.state_dict())
    assert ours.step == len(batches) == 4 and any(
        not torch.equal(value, start[name]) for name, value in ours.method.state_dict().items()
    )

    checkpoint: dict[str, Any] = {}
    module.on_save_checkpoint(checkpoint)
    module.generators = Generators(1)
    module.on_load_checkpoint(checkpoint)
    assert_same(module.generators.state_dict(), ours.generators.state_dict())


@pytest.mark.parametrize("processes, device", [(2, "cpu"), (1, "meta")])
def test_several_processes_or_devices_are_refused(processes: int, device: str) -> None:
    class Training(LightningMethod, nn.Module):
        pass

    method: Any = nn.Linear(1, 1)
    module = Training(method, Generators(0, device), lambda images, count=2: [images] * count)
    module.trainer = SimpleNamespace(world_size=processes)
    with pytest.raises(ConfigError, match=f"got {processes} processes, cpu for the weights and {device} for the gen"):
        module.on_fit_start()
