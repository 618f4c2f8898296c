"""A run: its configuration turned into objects, and the state that a checkpoint holds."""

import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor

from mixfast import methods
from mixfast.augment import Augment, AugmentConfig, augment, normalise
from mixfast.config.options import RunConfig, differences, flatten
from mixfast.data import Batches, Splits
from mixfast.errors import CheckpointError, ConfigError
from mixfast.methods import Method
from mixfast.models import Encoder, build_encoder
from mixfast.rng import Generators
from mixfast.run import checkpoint, machine
from mixfast.run.clock import Clock
from mixfast.run.console import Console, Task
from mixfast.run.folder import RunFolder
from mixfast.run.graph import CudaRecorder, StepGraph
from mixfast.run.log import Meter
from mixfast.run.optim import build_optimizer, load_optimizer
from mixfast.run.signals import Stopped, StopRequest

Argument = TypeVar("Argument")
Result = TypeVar("Result")


@dataclass
class Run:
    """Everything the training loop reads and moves. `build` makes one."""

    config: RunConfig[Any]
    splits: Splits
    folder: RunFolder
    console: Console
    stop: StopRequest
    device: torch.device
    precision: str  # fp32 or bf16
    generators: Generators
    method: Method
    optimizer: torch.optim.Optimizer
    batches: Batches
    memory_format: torch.memory_format
    progress: Tensor  # float64 scalar on the device: share of the steps done
    graph: StepGraph | None  # through which the halves of a step are called; None: as they are
    choices: list[str]  # what was chosen where the options say auto, and why
    clock: Clock
    task: Task
    meter: Meter = field(default_factory=Meter)
    step: int = 0  # optimiser steps done
    epoch: int = 0  # epochs done
    evaluated: int = -1  # epoch of the last evaluation; -1: not even the baselines
    seconds: float = 0.0  # of training, up to the last record, over all starts
    rate: float = 0.0  # learning rate of the last step
    images: int = 0  # trained on since the last record
    last: dict[str, Any] = field(default_factory=dict)  # that record
    saved_at: float = field(default_factory=time.monotonic)

    @property
    def steps(self) -> int:
        """Optimiser steps of the whole run."""
        return self.config.train.epochs * len(self.batches)

    def augmenter(self, generators: Generators, recipe: AugmentConfig | None = None) -> Augment:
        """What makes random views of images on the device, by the run's recipe or another."""
        cfg, state = recipe or self.config.augment, generators.counter("augment")
        given = (cfg, state, self.splits.mean, self.splits.std)

        def views(images: Tensor, count: int = 2) -> list[Tensor]:
            return augment(images, *given, count, memory_format=self.memory_format)

        return views

    def views(self, images: Tensor, generators: Generators | None = None) -> dict[str, Tensor]:
        """The method's views of uint8 images [B, 3, H, W] on the device, by the run's generators or others."""
        draws = self.generators if generators is None else generators
        return self.method.views(images, self.augmenter(draws), draws)

    def normalise(self, images: Tensor) -> Tensor:
        """uint8 images [B, 3, H, W] from anywhere, as the encoder takes them, without randomness."""
        plain = normalise(images.to(self.device), self.splits.mean, self.splits.std)
        return plain.contiguous(memory_format=self.memory_format)

    def autocast(self) -> AbstractContextManager[Any]:
        """The precision of the forward passes."""
        return autocast(self.device, self.precision)

    def play(self, half: Callable[["Run", Argument], Result], argument: Argument) -> Result:
        """half(run, argument), or its replay as a CUDA graph, which the clock sees as one part."""
        if self.graph is None:
            return half(self, argument)
        clock, self.clock = self.clock, Clock(torch.device("cpu"))  # a graph would keep the events of another
        try:
            result: Result = self.graph(half, self, argument)
        finally:
            self.clock = clock
        self.clock.lap(half.__name__)
        return result

    def state_dict(self) -> dict[str, Any]:
        """All that a continued run needs to end in the same bits."""
        return {
            "config": flatten(self.config),
            "data": self.splits.fingerprint,
            "step": self.step,
            "epoch": self.epoch,
            "evaluated": self.evaluated,
            "seconds": self.seconds,
            "method": self.method.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "generators": self.generators.state_dict(),
            "torch_generators": _torch_generators(self.device),
            "batches": self.batches.state_dict(),
            "meter": self.meter.state_dict(),
            "metrics_bytes": self.folder.metrics.position(),
        }

    def save(self) -> Path:
        """Write a checkpoint."""
        self.saved_at = time.monotonic()
        return checkpoint.save(self.folder.checkpoints, self.state_dict())

    def obey_signal(self) -> None:
        """Save and raise Stopped if a signal asked for it."""
        if self.stop:
            self.save()
            raise Stopped(self.stop.number)

    def load_method(self, state: dict[str, Any], path: Path) -> None:
        """Weights, statistics and queues of a checkpoint read from `path`.

        Raises:
            CheckpointError: of another architecture.
        """
        wanted, found = self.method.state_dict().keys(), state["method"].keys()
        missing, unexpected = [key for key in wanted if key not in found], [key for key in found if key not in wanted]
        checkpoint.check_keys(missing, unexpected, path)
        try:
            self.method.load_state_dict(state["method"])
        except RuntimeError as error:  # same names, other shapes
            raise CheckpointError(f"{path} is of another architecture: {error}") from error

    def load(self, path: Path) -> None:
        """Continue from a checkpoint; metrics written after it are forgotten.

        Raises:
            CheckpointError: unreadable, or of another configuration, data set or architecture.
        """
        state = checkpoint.load(path)
        if unlike := differences(state["config"], flatten(self.config)):
            raise CheckpointError(f"{path} belongs to another configuration:\n  " + "\n  ".join(unlike))
        if state["data"] != self.splits.fingerprint:
            raise CheckpointError(
                f"{path} was trained on other images: saved {state['data']}, found {self.splits.fingerprint}."
            )
        self.load_method(state, path)
        load_optimizer(self.optimizer, state["optimizer"])
        self.generators.load_state_dict(state["generators"])
        _set_torch_generators(state["torch_generators"], self.device)
        self.batches.load_state_dict(state["batches"])
        self.meter.load_state_dict(state["meter"], self.device)
        self.step, self.epoch, self.evaluated = state["step"], state["epoch"], state["evaluated"]
        self.seconds = state["seconds"]
        self.folder.metrics.truncate(state["metrics_bytes"])


def autocast(device: torch.device, precision: str) -> AbstractContextManager[Any]:
    """The precision of forward passes on `device`: fp32 or bf16."""
    # No cache: a weight cast for the keys, without gradient, would be reused for the queries.
    return torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16", cache_enabled=False)


def build(
    config: RunConfig[Any], splits: Splits, folder: RunFolder, console: Console, stop: StopRequest, device: torch.device
) -> Run:
    """A fresh run, at step 0; every random number from here on follows from `config.seed`."""
    if device.type == "cuda" and device.index is not None:
        torch.cuda.set_device(device)  # for events, and a graph's generators, which are told of no device
    torch.manual_seed(config.seed)  # for a method from elsewhere that draws without a generator
    generators = Generators(config.seed, device)
    memory_format = machine.pick_memory_format(config.train.memory_format)
    make_encoder = partial(build_encoder, config.model, generators["weights"])
    precision = machine.pick_precision(config.train.precision, device)
    with autocast(device, precision):  # which decides the dtype of queues
        method: Method = methods.load(config.method_name)(config.method, make_encoder, generators)
    method = method.to(memory_format=memory_format).train()  # type: ignore[call-overload]
    compiled, why_compiled = machine.pick_compile(config.train.compile, device)
    graphed, why_graphed = machine.pick_graph(config.train.graph, device)
    for encoder in (module for module in method.modules() if compiled and isinstance(module, Encoder)):
        encoder.compile_training()
    if config.train.batch_size > len(splits.train):
        wanted, there = config.train.batch_size, len(splits.train)
        raise ConfigError(f"--train.batch_size must be at most the {there} training images; got {wanted}.")
    return Run(
        config=config,
        splits=splits,
        folder=folder,
        console=console,
        stop=stop,
        device=device,
        precision=precision,
        generators=generators,
        method=method,
        optimizer=build_optimizer(config.optim, method.parameters()),
        batches=Batches(splits.train.images.to(device), config.train.batch_size, generators["order"]),
        memory_format=memory_format,
        progress=torch.zeros((), dtype=torch.float64, device=device),
        graph=StepGraph(method.parameters(), CudaRecorder(device, generators.streams)) if graphed else None,
        choices=[why_compiled, why_graphed],
        clock=Clock(device),
        task=console.task(config.method_name, config.train.epochs * (len(splits.train) // config.train.batch_size)),
    )


def _torch_generators(device: torch.device) -> dict[str, Tensor]:
    states = {"cpu": torch.get_rng_state()}
    if device.type == "cuda":
        states["cuda"] = torch.cuda.get_rng_state(device)
    return states


def _set_torch_generators(states: dict[str, Tensor], device: torch.device) -> None:
    torch.set_rng_state(states["cpu"])
    if "cuda" in states and device.type == "cuda":
        torch.cuda.set_rng_state(states["cuda"], device)
