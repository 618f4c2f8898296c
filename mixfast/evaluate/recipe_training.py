"""The training of a recipe's detector: its state, checkpoints, loop, and test.

Several processes each compute equally many images of every part of a batch, and average their gradients.
"""

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
from mixfast.detection.masks import encoded
from mixfast.detection.originals import Original, OriginalFiles, Pick, Shot, picks
from mixfast.detection.recipes import PublishedRecipe, parameter_groups
from mixfast.errors import CheckpointError, DataError, NonFiniteError, PlatformError
from mixfast.rng import Generators
from mixfast.run import checkpoint, restore
from mixfast.run.console import Console, duration
from mixfast.run.log import Metrics
from mixfast.run.optim import load_optimizer, optimizer_state, set_learning_rate
from mixfast.run.precision import autocast
from mixfast.run.signals import Stopped, StopRequest
from mixfast.run.tensors import check_sums, not_finite, tensors_of
from mixfast.run.torch_state import torch_generators
from mixfast.world import current

LOG_EVERY = 20  # steps between two lines of metrics.jsonl
CHECKPOINT_SECONDS = 600.0  # of training between two checkpoints
CHECKPOINTS = "checkpoints"  # folder
_IN_MASK = 0.5  # smallest probability of a pixel that belongs to an object
_FIELDS: dict[str, type] = {
    **{"settings": dict, "model": dict, "optimizer": dict, "torch_generators": dict},
    **{"step": int, "metrics_bytes": int, "seconds": float},
}


@dataclass
class Training:
    """A detector in training. A checkpoint can only be continued with equal `settings`, which decide the results."""

    recipe: PublishedRecipe
    model: nn.Module
    photographs: Sequence[Original]  # to train on
    files: OriginalFiles  # the image files of `photographs`
    folder: Path
    settings: dict[str, Any]
    device: torch.device
    workers: int
    step: int = 0  # optimiser steps done
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

    def batches(self, name: str, skip: int, until: int) -> Iterator[list[list[Shot]]]:
        """Training batches number `skip` to `until` of the stream of draws `name`; seed and number decide a batch.

        Each batch is a list of its parts, and each part a list of the photographs that this process computes.
        """
        recipe, world, generators = self.recipe, current(), Generators(self.settings["seed"])
        stream = picks(self.photographs, recipe.batch_size, recipe.flip, recipe.sides, generators, name)
        count = recipe.batch_size // self.accumulate // world.size
        starts = [(part * world.size + world.rank) * count for part in range(self.accumulate)]
        own_picks = ([pick for start in starts for pick in batch[start : start + count]] for batch in stream)
        for shots in read(self.files, islice(own_picks, skip, until), self.workers, self.device):
            yield [shots[start : start + count] for start in range(0, len(shots), count)]

    def losses(self, shots: Sequence[Shot]) -> dict[str, Tensor]:
        """The detector's losses, in training mode; their mean over the processes is that of the global batch."""
        targets: list[dict[str, Any]] = [
            {key: value.to(self.device) for key, value in shot.target.items()} for shot in shots
        ]
        for target, shot in zip(targets, shots, strict=True):
            target.update(side=shot.pick.side, seed=shot.pick.seed)
        with autocast(self.device, self.settings["precision"]):
            losses: dict[str, Tensor] = self.model(self.images(shots), targets)
        return losses

    def images(self, shots: Sequence[Shot]) -> list[Tensor]:
        """float32 [3, H, W] in [0, 1], each of its own size."""
        return [shot.image.to(self.device).float() / 255 for shot in shots]

    def save(self) -> None:
        """Write a checkpoint, all processes together.

        Raises:
            NonFiniteError: a weight is NaN or infinite; the last checkpoint stays. PlatformError: the processes do not
                hold the same bits.
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
        tensors = tensors_of({key: state[key] for key in ("model", "optimizer")})
        if diverged := not_finite(tensors):
            self.diverged(f"{next(iter(diverged))} is not finite")
        if current().size > 1:
            advice = f"At step {self.step} all processes should hold the same bits; the last checkpoint stays."
            current().compare(check_sums(tensors), PlatformError, advice)
        self.saved_at = time.monotonic()
        current().first(lambda: checkpoint.save(self.folder / CHECKPOINTS, state))

    def load(self, console: Console) -> None:
        """Continue from the newest checkpoint of the folder.

        Raises:
            CheckpointError: there is none, it is unreadable, or it belongs to other settings.
        """
        file, state = checkpoint.load_newest(self.folder / CHECKPOINTS, console.line)
        for name, kind in _FIELDS.items():
            entry = state.get(name)
            has_type = isinstance(entry, dict) if kind is dict else type(entry) is kind
            restore.expect(has_type, file, name, f"a {kind.__name__}", entry)
        saved_settings = state["settings"]
        if changed := [key for key in self.settings if saved_settings.get(key) != self.settings[key]]:
            lines = [f"{key}: saved {saved_settings.get(key)}, now {self.settings[key]}" for key in changed]
            raise CheckpointError(f"{file} belongs to other settings:\n  " + "\n  ".join(lines))
        steps = self.recipe.steps
        restore.expect(0 <= state["step"] <= steps, file, "step", f"in 0 ... {steps}", state["step"])
        restore.load_weights(self.model, state["model"], "model", file)
        moments = restore.checked_optimizer(self.optimizer, state["optimizer"], state["step"], file)
        load_optimizer(self.optimizer, moments)
        restore.load_torch_generators(state["torch_generators"], self.device, file)
        self.step, self.seconds = state["step"], state["seconds"]
        if current().rank == 0:
            self.metrics.truncate(state["metrics_bytes"])
            checkpoint.set_aside(file)

    def diverged(self, reason: str) -> None:
        """Raise a NonFiniteError in all processes."""
        current().fail(
            NonFiniteError(
                f"recipe {self.recipe.name}, step {self.step} of {self.recipe.steps}: {reason}. Give a smaller --lr "
                f"than {self.recipe.lr:g} and another --out, or check whether the run's weights are finite."
            )
        )


def read(
    files: OriginalFiles, batches: Iterable[list[Pick]], workers: int, device: torch.device
) -> Iterator[list[Shot]]:
    """The photographs of each batch, decoded ahead by worker processes if there are any.

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
        generator=torch.Generator(),  # else the loader would draw from torch's global generator
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
        Stopped: a signal came to a process; the training is saved.
        NonFiniteError: a loss or a weight is NaN or infinite; the last checkpoint stays.
    """
    steps, started, first = training.recipe.steps, time.monotonic(), training.step
    task = console.task(training.recipe.name, steps)
    if training.step == 0:
        training.save()
    training.model.train()
    for parts in training.batches("recipe", training.step, steps):
        start = time.monotonic()
        losses = train_step(training, parts)
        training.seconds += time.monotonic() - start
        if current().rank == 0 and (training.step % LOG_EVERY == 0 or training.step == steps):
            rate = training.recipe.rate(training.step - 1)
            training.metrics.write({"kind": "step", "step": training.step, "lr": rate, **losses})
        remaining = (time.monotonic() - started) / (training.step - first) * (steps - training.step)
        note = f"loss {sum(losses.values()):.3f}; about {duration(remaining)} left"
        task.update(training.step, note)
        if console.silent_for_long():
            console.line(f"  step {training.step} of {steps}: {note}")
        overdue = time.monotonic() - training.saved_at > CHECKPOINT_SECONDS
        signal_number, overdue_anywhere = current().largest(stop.number, overdue)
        if signal_number or overdue_anywhere or training.step == steps:
            training.save()
        if signal_number:
            raise Stopped(signal_number)
    task.close()


def train_step(training: Training, parts: Sequence[Sequence[Shot]]) -> dict[str, float]:
    """Update the weights by the mean gradient of the global batch; returns its losses."""
    set_learning_rate(training.optimizer, training.recipe.rate(training.step))
    sums: dict[str, Tensor] = {}
    for shots in parts:
        losses = training.losses(shots)
        (torch.stack(list(losses.values())).sum() / len(parts)).backward()  # type: ignore[no-untyped-call]
        sums = {name: sums.get(name, 0) + loss.detach() / len(parts) for name, loss in losses.items()}
    values = torch.stack(list(sums.values()))
    current().mean_([*(weight.grad for weight in training.model.parameters() if weight.grad is not None), values])
    means = dict(zip(sums, values.tolist(), strict=True))
    training.step += 1
    if not_finite({"losses": torch.tensor(list(means.values()))}):
        training.diverged(", ".join(f"{name} = {value:g}" for name, value in means.items()))
    training.optimizer.step()
    training.optimizer.zero_grad(set_to_none=True)
    return means


@torch.no_grad()
def precise_statistics(training: Training) -> None:
    """Set the statistics of every batch norm to their means over `precise_batches` training batches.

    As detectron2's PRECISE_BN: running means are noisy, and lag behind the weights.
    """
    norms = [module for module in training.model.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # the mean of all batches
    training.model.train()
    for parts in training.batches("recipe/precise", 0, training.recipe.precise_batches):
        for shots in parts:
            training.losses(shots)
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum


@torch.no_grad()
def predict(training: Training, files: OriginalFiles, console: Console) -> tuple[Detections, list[list[str]]]:
    """The detections in photographs, with boxes in pixels of the photograph, and the masks of each photograph.

    The photographs are divided among the processes, and every process gets all results. Each photograph is a batch of
    its own, without padding to the size of others. The masks are run lengths in the order of the boxes, by falling
    score; [] for a detector without masks.
    """
    count, size = len(files.paths), current().size
    training.model.eval()
    task = console.task("test", count)

    def share(rank: int) -> list[tuple[dict[str, Tensor], list[str]]]:
        alone = ([Pick(number)] for number in range(rank, count, size))
        detections: list[tuple[dict[str, Tensor], list[str]]] = []
        for shots in read(files, alone, training.workers, training.device):
            with autocast(training.device, training.settings["precision"]):
                (image,) = training.model(training.images(shots))
            masks = image.pop("masks", None)
            runs = [] if masks is None else encoded(masks[:, 0] >= _IN_MASK)
            detections.append(({name: value.cpu() for name, value in image.items()}, runs))
            task.update(min(count, len(detections) * size), "")
            if console.silent_for_long():
                console.line(f"  test image {len(detections) * size} of {count}")
        return detections

    shares = current().jobs(size, share)
    images = [shares[number % size][number // size] for number in range(count)]
    boxes, labels, scores = stacked((image for image, _ in images), count)
    task.close()
    detections = Detections(boxes, labels, scores, (boxes[..., 2:] - boxes[..., :2]).prod(-1))
    return detections, [runs for _, runs in images]
