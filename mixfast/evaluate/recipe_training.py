"""The training of a recipe's detector: what moves from step to step, its checkpoints, the loop, and the test."""

import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from mixfast.data.loader import begin_worker, workers_that_obey
from mixfast.detection.average_precision import Detections
from mixfast.detection.detectors import stacked
from mixfast.detection.originals import Original, OriginalFiles, Pick, Shot, picks
from mixfast.detection.recipes import PublishedRecipe, parameter_groups
from mixfast.errors import CheckpointError, DataError, NonFiniteError
from mixfast.rng import Generators
from mixfast.run import checkpoint, restore
from mixfast.run.console import Console, duration
from mixfast.run.finite import not_finite, tensors_of
from mixfast.run.log import Metrics
from mixfast.run.optim import load_optimizer, optimizer_state, set_learning_rate
from mixfast.run.setup import autocast
from mixfast.run.signals import Stopped, StopRequest
from mixfast.run.torch_state import torch_generators

LOG_EVERY = 20  # steps between two lines of metrics.jsonl
CHECKPOINT_SECONDS = 600.0  # of training between two checkpoints
CHECKPOINTS = "checkpoints"  # folder
_FIELDS: dict[str, type] = {
    **{"settings": dict, "model": dict, "optimizer": dict, "torch_generators": dict},
    **{"step": int, "metrics_bytes": int, "seconds": float},
}


@dataclass
class Training:
    """A detector that is trained. `settings` decide its bits: a checkpoint is of one of them alone."""

    recipe: PublishedRecipe
    model: nn.Module
    photographs: Sequence[Original]  # to train on
    files: OriginalFiles  # the same
    folder: Path
    settings: dict[str, Any]
    device: torch.device
    workers: int
    step: int = 0  # done
    seconds: float = 0.0  # of training, over all starts
    saved_at: float = field(default_factory=time.monotonic)

    def __post_init__(self) -> None:
        self.metrics = Metrics(self.folder)
        rate = torch.tensor(self.recipe.lr, dtype=torch.float32, device=self.device)
        groups = parameter_groups(self.model, self.recipe)
        self.optimizer = torch.optim.SGD(groups, lr=rate, momentum=self.recipe.momentum, fused=True)

    @property
    def accumulate(self) -> int:
        """Parts of a batch that are computed one after the other."""
        return int(self.settings["accumulate"])

    def batches(self, name: str, skip: int, until: int) -> Iterator[list[Shot]]:
        """Training batches number `skip` to `until` of a stream of draws: a batch follows from seed and number."""
        draws = Generators(self.settings["seed"])
        stream = picks(self.photographs, self.recipe.batch_size, self.recipe.flip, draws, name)
        return read(self.files, islice(stream, skip, until), self.workers, self.device)

    def losses(self, shots: Sequence[Shot]) -> dict[str, Tensor]:
        """The detector's losses of some photographs, in training mode."""
        targets = [{key: value.to(self.device) for key, value in shot.target.items()} for shot in shots]
        with autocast(self.device, self.settings["precision"]):
            losses: dict[str, Tensor] = self.model(self.images(shots), targets)
        return losses

    def images(self, shots: Sequence[Shot]) -> list[Tensor]:
        """float32 [3, H, W] in [0, 1], each of its own size."""
        return [shot.image.to(self.device).float() / 255 for shot in shots]

    def save(self) -> Path:
        """Write a checkpoint; returns its path.

        Raises:
            NonFiniteError: a weight is NaN or infinite; the last checkpoint stays.
        """
        state = {
            "settings": self.settings,
            "step": self.step,
            "seconds": self.seconds,
            "model": self.model.state_dict(),
            "optimizer": optimizer_state(self.optimizer),
            "torch_generators": torch_generators(self.device),
            "metrics_bytes": self.metrics.position(),
        }
        if bad := not_finite(tensors_of({key: state[key] for key in ("model", "optimizer")})):
            raise self.diverged(f"{next(iter(bad))} is not finite")
        self.saved_at = time.monotonic()
        return checkpoint.save(self.folder / CHECKPOINTS, state)

    def load(self, console: Console) -> None:
        """Continue from the newest checkpoint of the folder.

        Raises:
            CheckpointError: there is none, it is unreadable, or of other settings.
        """
        file, state = checkpoint.load_newest(self.folder / CHECKPOINTS, console.line)
        for name, kind in _FIELDS.items():
            entry = state.get(name)
            same = isinstance(entry, dict) if kind is dict else type(entry) is kind
            restore.expect(same, file, name, f"a {kind.__name__}", entry)
        old = state["settings"]
        if unlike := [key for key in self.settings if old.get(key) != self.settings[key]]:
            lines = [f"{key}: saved {old.get(key)}, now {self.settings[key]}" for key in unlike]
            raise CheckpointError(f"{file} belongs to other settings:\n  " + "\n  ".join(lines))
        steps = self.recipe.steps
        restore.expect(0 <= state["step"] <= steps, file, "step", f"in 0 ... {steps}", state["step"])
        restore.load_weights(self.model, state["model"], "model", file)
        moments = restore.checked_optimizer(self.optimizer, state["optimizer"], state["step"], file)
        load_optimizer(self.optimizer, moments)
        restore.load_torch_generators(state["torch_generators"], self.device, file)
        self.metrics.truncate(state["metrics_bytes"])
        self.step, self.seconds = state["step"], state["seconds"]
        checkpoint.set_aside(file)

    def diverged(self, what: str) -> NonFiniteError:
        """The error of a training that has met a NaN or an infinity."""
        return NonFiniteError(
            f"recipe {self.recipe.name}, step {self.step} of {self.recipe.steps}: {what}. Give a smaller --lr than "
            f"{self.recipe.lr:g} and another --out, or look whether the run's weights are finite."
        )


def read(
    files: OriginalFiles, batches: Iterable[list[Pick]], workers: int, device: torch.device
) -> Iterator[list[Shot]]:
    """The photographs of each batch, decoded ahead by processes if there are some.

    Raises:
        DataError: a photograph cannot be read, or a process has died.
    """
    loader: DataLoader[Shot] = DataLoader(
        files,
        batch_sampler=batches,
        collate_fn=list,
        num_workers=workers,
        pin_memory=device.type == "cuda",
        worker_init_fn=begin_worker,
        multiprocessing_context="forkserver" if workers else None,
        generator=torch.Generator(),  # else the loader would draw from torch's own
    )
    try:
        with workers_that_obey() if workers else nullcontext():
            arriving = iter(loader)
        for shots in arriving:
            for shot in shots:
                if shot.error:
                    raise DataError(shot.error)
            yield shots
    except RuntimeError as error:
        if not str(error).startswith("DataLoader worker (pid"):
            raise
        raise DataError(f"a process that decodes photographs has died: {error} Try fewer --workers.") from error


def train(training: Training, stop: StopRequest, console: Console) -> None:
    """Train to the last step; save at the start, on the way, and at the end.

    Raises:
        Stopped: a signal came; the training is saved.
        NonFiniteError: a loss or a weight is NaN or infinite; the last checkpoint stays.
    """
    steps, begin, first = training.recipe.steps, time.monotonic(), training.step
    task = console.task(training.recipe.name, steps)
    if training.step == 0:
        training.save()
    training.model.train()
    for shots in training.batches("recipe", training.step, steps):
        start = time.monotonic()
        losses = train_step(training, shots)
        training.seconds += time.monotonic() - start
        if training.step % LOG_EVERY == 0 or training.step == steps:
            rate = training.recipe.rate(training.step - 1)
            training.metrics.write({"kind": "step", "step": training.step, "lr": rate, **losses})
        left = (time.monotonic() - begin) / (training.step - first) * (steps - training.step)
        note = f"loss {sum(losses.values()):.3f}; about {duration(left)} left"
        task.update(training.step, note)
        if console.silent_for_long():
            console.line(f"  step {training.step} of {steps}: {note}")
        if stop or training.step == steps or time.monotonic() - training.saved_at > CHECKPOINT_SECONDS:
            training.save()
        if stop:
            raise Stopped(stop.number)
    task.close()


def train_step(training: Training, shots: Sequence[Shot]) -> dict[str, float]:
    """Move the weights by the mean gradient of a batch; returns its losses."""
    set_learning_rate(training.optimizer, training.recipe.rate(training.step))
    parts, size = training.accumulate, len(shots) // training.accumulate
    sums: dict[str, Tensor] = {}
    for part in range(parts):
        losses = training.losses(shots[part * size : (part + 1) * size])
        (torch.stack(list(losses.values())).sum() / parts).backward()  # type: ignore[no-untyped-call]
        sums = {name: sums.get(name, 0) + loss.detach() / parts for name, loss in losses.items()}
    means = dict(zip(sums, torch.stack(list(sums.values())).tolist(), strict=True))
    training.step += 1
    if not_finite({"losses": torch.tensor(list(means.values()))}):
        raise training.diverged(", ".join(f"{name} = {value:g}" for name, value in means.items()))
    training.optimizer.step()
    training.optimizer.zero_grad(set_to_none=True)
    return means


@torch.no_grad()
def precise_statistics(training: Training) -> None:
    """Give every batch norm the mean of its batches' statistics over `precise_batches` training batches.

    As detectron2's PRECISE_BN: what a running mean remembers of the last steps is noisy and late.
    """
    norms = [module for module in training.model.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # the mean of all batches
    training.model.train()
    size = training.recipe.batch_size // training.accumulate
    for shots in training.batches("recipe/precise", 0, training.recipe.precise_batches):
        for part in range(training.accumulate):
            training.losses(shots[part * size : (part + 1) * size])
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum


@torch.no_grad()
def predict(training: Training, files: OriginalFiles, console: Console) -> Detections:
    """What the detector finds in photographs, each alone and so without another's padding; boxes in their pixels."""
    count = len(files.paths)
    training.model.eval()
    task = console.task("test", count)
    alone = ([(number, False)] for number in range(count))

    def found() -> Iterator[dict[str, Tensor]]:
        for number, shots in enumerate(read(files, alone, training.workers, training.device), 1):
            with autocast(training.device, training.settings["precision"]):
                yield from training.model(training.images(shots))
            task.update(number, "")
            if console.silent_for_long():
                console.line(f"  test image {number} of {count}")

    boxes, labels, scores = stacked(found(), count)
    task.close()
    return Detections(boxes, labels, scores, (boxes[..., 2:] - boxes[..., :2]).prod(-1))
