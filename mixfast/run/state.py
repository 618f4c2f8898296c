"""A run in training: everything that changes from step to step, and the state that a checkpoint holds."""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor

from mixfast.config.options import RunConfig, check_batch, flatten
from mixfast.data import Batches, Splits
from mixfast.errors import CheckpointError, NonFiniteError, PlatformError
from mixfast.models import Encoder
from mixfast.run import checkpoint, machine, records, restore
from mixfast.run.callbacks import Callback, Callbacks, Moment
from mixfast.run.clock import Clock
from mixfast.run.console import Console, Task
from mixfast.run.folder import RunFolder
from mixfast.run.gradient_means import GradientMeans
from mixfast.run.graph import CudaRecorder, StepGraph
from mixfast.run.log import Meter
from mixfast.run.optim import build_optimizer, load_optimizer, optimizer_state
from mixfast.run.setup import Setup, set_up
from mixfast.run.signals import Stopped, StopRequest
from mixfast.run.tensors import check_sums, not_finite, tensors_of
from mixfast.run.torch_state import torch_generators
from mixfast.world import current

Argument = TypeVar("Argument")
Result = TypeVar("Result")


@dataclass
class Run(Setup):
    """A set-up in training: beside the set-up, everything that the loop reads and changes. `build` makes one."""

    folder: RunFolder
    console: Console
    stop: StopRequest
    optimizer: torch.optim.Optimizer
    batches: Batches
    gradient_means: GradientMeans  # over the processes
    progress: Tensor  # float64 scalar on the device: share of the steps done
    graph: StepGraph | None  # calls the halves of a step as CUDA graphs; None: they are called directly
    clock: Clock
    task: Task
    callbacks: Callbacks
    unreported: list[dict[str, Any]] = field(default_factory=list)  # records that the callbacks have not received yet
    meter: Meter = field(default_factory=Meter)
    step: int = 0  # optimiser steps done
    epoch: int = 0  # epochs done
    evaluated: int = -1  # epoch of the last evaluation; -1: not even the baselines
    seconds: float = 0.0  # of training, up to the last record, over all starts
    rate: float = 0.0  # learning rate of the last step
    images: int = 0  # trained on since the last record
    last: dict[str, Any] = field(default_factory=dict)  # the last record of a step
    saved_at: float = field(default_factory=time.monotonic)  # time of the last checkpoint, or of the start
    saved_step: int = 0  # of the last checkpoint

    @property
    def steps(self) -> int:
        """Optimiser steps of the whole run."""
        return self.config.train.epochs * len(self.batches)

    def graphed_or_eager(self, half: Callable[["Run", Argument], Result], argument: Argument) -> Result:
        """half(run, argument): replayed as a CUDA graph where the run has one, else call by call."""
        if self.graph is None:
            return half(self, argument)
        with self.clock.one_part(half.__name__):  # timing events inside would be recorded into the graph
            result: Result = self.graph(half, self, argument)
        return result

    def write(self, record: dict[str, Any]) -> None:
        """Append a record of an epoch or an evaluation to the metrics (first process), and store it for `report`."""
        if current().rank == 0:
            self.folder.metrics.write(record)
        self.unreported.append(record)

    def report(self) -> None:
        """Call the callbacks with the records that were written since the last call."""
        records, self.unreported = self.unreported, []
        for record in records:
            if callback := self.callbacks.for_kind(record["kind"]):
                self.call(callback, record)

    def call(self, callback: Callback, values: dict[str, Any]) -> None:
        """Call a callback between two steps; if it raises an error, save the state before raising it again."""
        position = (self.step, self.steps, self.epoch, self.config.train.epochs)
        try:
            callback(Moment(*position, values, self.method.encoder, self.folder.path))
        except BaseException:
            if self.saved_step < self.step:
                self.save()
            raise

    def state_dict(self) -> dict[str, Any]:
        """Everything that a continued run needs to end in the same bits."""
        return {
            "config": flatten(self.config),
            "data": self.splits.fingerprint,
            "step": self.step,
            "epoch": self.epoch,
            "evaluated": self.evaluated,
            "seconds": self.seconds,
            "method": self.method.state_dict(),
            "optimizer": optimizer_state(self.optimizer),
            "generators": self.generators.state_dict(),
            "torch_generators": torch_generators(self.device),
            "batches": self.batches.state_dict(),
            "meter": self.meter.state_dict(),
            "metrics_bytes": self.folder.metrics.position(),
        }

    def not_finite(self) -> dict[str, float]:
        """The tensors of weights, statistics, queues, moments and means that hold a NaN or an infinity, by name."""
        state = {"method": self.method.state_dict(), "optimizer": self.optimizer.state_dict()["state"]}
        return not_finite(tensors_of({**state, "meter": self.meter.state_dict()}))

    def check_finite(self) -> None:
        """Raise NonFiniteError, with a note for `evaluate replay`, unless everything is finite."""
        if diverged := self.not_finite():
            current().fail(self.diverged(diverged, {}))

    def diverged(self, values: dict[str, float], state: dict[str, Any]) -> NonFiniteError:
        """Write nonfinite.pt, and return the error of a run in which a NaN or an infinity has appeared.

        Args:
            values: the values that are not finite, by the names of their tensors.
            state: batch, generators and everything else before the step, if all of it is finite; else {}.
        """
        path = self.folder.path / "nonfinite.pt"
        terms = [f"{name} = {number}" for name, number in values.items()]
        current().first(lambda: checkpoint.write(path, {"terms": terms, "step": self.step, **state}))
        if state:
            consequence = f"The weights have not moved; batch and state are in {path}."
        else:
            consequence = (
                f"It began in a step that was not checked, after the checkpoint of step {self.saved_step}, which "
                "stays the newest: nothing of the state since then is saved or scored."
            )
        return NonFiniteError(
            f"step {self.step} (epoch {self.epoch}), precision {self.precision}: {'; '.join(terms[:5])}.\n"
            f"{consequence}\nReplay it with `python -m mixfast.evaluate replay {self.folder.path}`; a lower --optim.lr "
            f"or --train.precision fp32 often helps."
        )

    def save(self) -> Path:
        """Write a checkpoint; returns its path.

        Raises:
            NonFiniteError: a tensor holds a NaN or an infinity; nothing is written over the last checkpoint.
        """
        self.check_finite()
        self.check_equal()
        self.saved_at, self.saved_step = time.monotonic(), self.step
        return current().first(lambda: checkpoint.save(self.folder.checkpoints, self.state_dict()))

    def check_equal(self) -> None:
        """Raise a PlatformError unless weights, statistics and queues are the same bits in all processes."""
        if current().size > 1:
            tensors = {f"method.{name}": value for name, value in tensors_of(self.method.state_dict()).items()}
            advice = (
                f"At step {self.step} all processes should hold the same bits; the checkpoint of step "
                f"{self.saved_step} stays the newest. A method must draw from `generators` only, for the global batch, "
                "and keep no statistics of its own rows."
            )
            current().compare(check_sums(tensors), PlatformError, advice)

    def obey(self, signal_number: int) -> None:
        """Save and raise Stopped for the stop signal `signal_number`; do nothing for 0, no signal."""
        if signal_number:
            self.save()
            raise Stopped(signal_number)

    def obey_signal(self) -> None:
        """Save and raise Stopped if any process has received a stop signal; all processes call this together."""
        self.obey(*current().largest(self.stop.number))

    def load(self, path: Path) -> None:
        """Continue from a checkpoint, or from the newest of a folder; metrics written after it are deleted.

        Raises:
            CheckpointError: the file is unreadable, or belongs to another configuration, data set or architecture.
        """
        file, state = checkpoint.load_newest(path, self.console.line)
        self.restore(state, file)
        if (size := self.folder.metrics.position()) < state["metrics_bytes"]:
            lost = f"{size} of the {state['metrics_bytes']} bytes that it had at the checkpoint"
            self.console.line(f"warning: {self.folder.metrics.path} has {lost}; its curves will have a gap.")
        if current().rank == 0:
            self.folder.metrics.truncate(state["metrics_bytes"])
        records.read(self.folder.metrics)  # damaged lines raise an error now, not after the training
        if not path.is_file() and current().rank == 0:
            checkpoint.set_aside(file)

    def restore(self, state: dict[str, Any], path: Path) -> None:
        """Continue from the content of the checkpoint `path`; the folder stays as it is.

        Raises:
            CheckpointError: it belongs to another configuration, data set or architecture, or an entry has a wrong type
                or value.
        """
        restore.check_fields(state, path)
        restore.check_config(state, self.config, path)
        if state["data"] != self.splits.fingerprint:
            raise CheckpointError(
                f"{path} was trained on other images: saved {state['data']}, found {self.splits.fingerprint}."
            )
        restore.check_length(state, self.config, path)
        self.load_method(state, path)
        restore.check_progress(state, self.config.train.epochs, len(self.batches), path)
        restore.check_order(state["batches"], len(self.splits.train), self.config.train.batch_size, path)
        moments = restore.checked_optimizer(self.optimizer, state["optimizer"], state["step"], path)
        load_optimizer(self.optimizer, moments)
        restore.load_generators(self.generators, state["generators"], path)
        restore.load_torch_generators(state["torch_generators"], self.device, path)
        self.batches.load_state_dict(state["batches"])
        restore.load_meter(self.meter, state["meter"], self.device, path)
        self.step, self.epoch, self.evaluated = state["step"], state["epoch"], state["evaluated"]
        self.seconds, self.saved_step = state["seconds"], state["step"]


def build(
    config: RunConfig[Any],
    splits: Splits,
    folder: RunFolder,
    console: Console,
    stop: StopRequest,
    device: torch.device,
    initial: Mapping[str, Tensor] | None = None,
    callbacks: Callbacks = Callbacks(),  # noqa: B008  # frozen
) -> Run:
    """A new run at step 0; all its random numbers follow from `config.seed`. `initial`: weights, as in `set_up`."""
    world = current()
    world.arrange(config.model.bn_splits)
    setup = set_up(config, splits, device, initial)
    method, generators, batch = setup.method, setup.generators, config.train.batch_size
    compiled, _ = machine.pick_compile(config.train.compile, device)
    graphed, _ = machine.pick_graph(config.train.graph, device)
    for encoder in (module for module in method.modules() if compiled and isinstance(module, Encoder)):
        encoder.compile_training()
    check_batch(config, len(splits.train))
    return Run(
        **vars(setup),
        folder=folder,
        console=console,
        stop=stop,
        optimizer=build_optimizer(config.optim, method.parameters()),
        batches=Batches(
            setup.train_images, batch, generators["order"], world.batch_rows(batch, config.train.accumulate)
        ),
        gradient_means=GradientMeans(method.parameters()),
        progress=torch.zeros((), dtype=torch.float64, device=device),
        graph=StepGraph(method.parameters(), CudaRecorder(device, generators.streams)) if graphed else None,
        clock=Clock(device),
        task=console.task(config.method_name, config.train.epochs * (len(splits.train) // batch)),
        callbacks=callbacks,
    )
