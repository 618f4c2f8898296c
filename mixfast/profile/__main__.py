"""The cost of a training step by part, compared with the bare encoder passes (docs/profile.md).

usage: python -m mixfast.profile [preset ...] [modifier ...] [--section.key value ...]
                                 [--all] [--shape NAME] [--seconds S] [--busy] [--out DIR]

Presets, modifiers and --section.key are those of python -m mixfast.train; without a preset, demo.

--all          every preset for small images, one after the other; several may be named instead
--shape NAME   small     ResNet-18 of width 16, stem cifar_s2, 32 px, batch 64
                         (default on a CPU, but for demo)
               cifar     ResNet-18 of width 64, 32 px, batch 512
               imagenet  ResNet-50, 224 px, batch 256, 65,536 keys
               preset    as the preset says (default on a GPU, and of demo)
               A --section.key that is given wins over the shape.
--seconds S    of measuring one preset (default 20)
--busy         processor seconds of this process, on one thread: for a machine that others use too
--out DIR      folder of profile.json and profile.png (default runs/profile-NNNN)

Images are noise, the learning rate is 0, nothing else is written.
"""

import json
import multiprocessing
import sys
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from mixfast.config.arguments import matching_name
from mixfast.config.options import RunConfig, flatten
from mixfast.config.presets import DEFAULT, presets
from mixfast.errors import ConfigError
from mixfast.models.config import RESNET, RESNET_OPTIONS
from mixfast.profile import measure, memory, output
from mixfast.ranges import NotNegative, check_ranges
from mixfast.run import machine, processes
from mixfast.run.command import run
from mixfast.run.folder import results_folder
from mixfast.train import cli
from mixfast.train.launch import settle_precision

SHAPES: dict[str, dict[str, Any]] = {
    "small": {"model.depth": 18, "model.width": 16, "model.stem": "cifar_s2", "data.size": 32, "train.batch_size": 64},
    "cifar": {"model.depth": 18, "model.width": 64, "model.stem": "cifar", "data.size": 32, "train.batch_size": 512},
    "imagenet": {
        **{"model.depth": 50, "model.width": 64, "model.stem": "imagenet", "data.size": 224, "train.batch_size": 256},
        "method.queue_size": 65536,
    },
    "preset": {},
}


Peaks = tuple[int, dict[str, int]] | None


@dataclass
class Request:
    """A parsed command line."""

    everything: bool = False
    shape: str | None = None
    seconds: NotNegative = 20.0
    busy: bool = False
    names: list[str] = field(default_factory=list)  # of presets
    arguments: list[str] = field(default_factory=list)  # all others, which mixfast.train parses

    def presets(self) -> list[str]:
        """The preset of each profile; "" for the default."""
        everything = [name for name, preset in presets().items() if preset.values["data.kind"] != "folder"]
        return everything if self.everything else self.names or [""]


def understand(arguments: list[str]) -> Request:
    """Parse the arguments of the command line.

    Raises:
        ConfigError: a missing or impossible value, or presets together with --all.
    """
    request, remaining = Request(), iter(arguments)
    for argument in remaining:
        key, equals, value = argument.partition("=")
        if key in ("--all", "--busy"):
            setattr(request, "everything" if key == "--all" else "busy", True)
        elif key in ("--shape", "--seconds"):
            value = value if equals else next(remaining, "")
            try:
                setattr(request, key[2:], float(value) if key == "--seconds" else value)
            except ValueError:
                raise ConfigError(f"--seconds must be a number; got {value!r}.") from None
        elif not request.arguments and (name := matching_name(argument, presets())):
            request.names.append(name)
        else:
            request.arguments.append(argument)
    check_ranges(request)
    if request.shape is not None and request.shape not in SHAPES:
        raise ConfigError(f"--shape must be one of {', '.join(SHAPES)}; got {request.shape!r}.")
    if request.everything and request.names:
        raise ConfigError(f"--all profiles every preset; omit {request.names[0]} or --all.")
    return request


def configured(request: Request, preset: str) -> cli.Invocation:
    """The training command to be profiled for a preset, with the sizes of the requested shape."""
    arguments = [preset, *request.arguments] if preset else request.arguments
    invocation = cli.parse(arguments)
    on_cpu = machine.pick_device(invocation.config.train.device).type == "cpu"
    default_shape = "preset" if invocation.preset == DEFAULT or not on_cpu else "small"
    fixed = {key for key, origin in invocation.origins.items() if origin == "command line"}
    options = flatten(invocation.config)
    if invocation.config.model.backbone != RESNET:
        fixed |= {f"model.{name}" for name in RESNET_OPTIONS}  # the shapes' sizes are a ResNet's
    sizes = {
        key: value
        for key, value in SHAPES[request.shape or default_shape].items()
        if key in options and key not in fixed
    }
    return cli.parse([*arguments, *(argument for key, value in sizes.items() for argument in (f"--{key}", str(value)))])


def memory_of(config: RunConfig[Any], device: torch.device) -> Peaks:
    """Memory of a preset: bytes between steps, and the peak of each part; None if the machine does not report it."""
    with tempfile.TemporaryDirectory() as folder:
        return measure.peak_bytes(measure.prepare(config, device, Path(folder))) if memory.measurable(device) else None


def profile(invocation: cli.Invocation, request: Request, device: torch.device, peaks: Peaks) -> output.Record:
    """Measure a preset."""
    config = invocation.config
    with tempfile.TemporaryDirectory() as folder:
        run = measure.prepare(config, device, Path(folder))
        timing = measure.time_run(run, request.seconds, request.busy)
        return output.to_record(invocation.preset, run, timing, peaks, measure.evaluation_seconds(run, request.busy))


def launch(arguments: list[str]) -> None:
    """Run the profiles of a command line."""
    if {"--help", "-h"} & set(arguments):
        print((__doc__ or "").rstrip())
        return
    processes.refuse_several_processes()
    request = understand(arguments)
    invocations = [configured(request, preset) for preset in request.presets()]
    first = invocations[0]
    device = machine.pick_device(first.config.train.device)
    if request.busy and device.type != "cpu":
        raise ConfigError(f"--busy counts the processor's seconds, not those of {device}. Add --train.device cpu.")
    threads = machine.set_threads(1 if request.busy else first.config.train.threads)
    machine.set_determinism(first.config.train.deterministic)
    with results_folder(first.out, "profile") as path:
        measure_all(invocations, request, device, threads, path)


def measure_all(
    invocations: list[cli.Invocation], request: Request, device: torch.device, threads: int, path: Path
) -> None:
    """Profile one invocation after the other; print the tables and write the files into the folder `path`."""
    facts = machine.environment(device, clock="processor" if request.busy else "wall")
    environment = {key: value for key, value in facts.items() if key not in ("argv", "platform", "backends")}
    print(f"torch {torch.__version__}   {device} ({threads} threads)   kernels: {machine.kernels(device)}")
    invocations = [settle_precision(invocation, invocation.config, device) for invocation in invocations]
    # Before timing, which keeps freed memory.
    peaks = [memory_of(invocation.config, device) for invocation in invocations]
    machine.keep_freed_memory()
    records: list[output.Record] = []
    for invocation, peak in zip(invocations, peaks, strict=True):
        records.append(profile(invocation, request, device, peak))
        print("\n" + output.table(records[-1]), flush=True)
        text = json.dumps({"environment": environment, "profiles": records}, indent=1)
        (path / "profile.json").write_text(text + "\n")
    output.draw(path / "profile.png", records)
    if len(records) > 1:
        print("\n" + output.markdown(records))
    print(f"\nwrote {path / 'profile.json'} and {path / 'profile.png'}")


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    return run(arguments, launch)


if __name__ == "__main__":
    multiprocessing.set_forkserver_preload(["mixfast.profile.__main__"])  # imported once, and shared by all workers
    sys.exit(main())
