"""What a step of training costs by part, beside the encoder passes that it needs (docs/profile.md).

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

from mixfast.config.options import RunConfig, flatten
from mixfast.config.presets import DEFAULT, presets
from mixfast.config.words import same
from mixfast.errors import ConfigError
from mixfast.models.config import RESNET, RESNET_OPTIONS
from mixfast.profile import measure, memory, output
from mixfast.ranges import NotNegative, check_ranges
from mixfast.run import machine
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
    words: list[str] = field(default_factory=list)  # the rest, as mixfast.train understands it

    def presets(self) -> list[str]:
        """Words to put in front of the others, one per profile."""
        everything = [name for name, preset in presets().items() if preset.values["data.kind"] != "folder"]
        return everything if self.everything else self.names or [""]


def understand(words: list[str]) -> Request:
    """The request in `words`.

    Raises:
        ConfigError: a missing or impossible value, or presets beside --all.
    """
    request, rest = Request(), iter(words)
    for word in rest:
        key, equals, value = word.partition("=")
        if key in ("--all", "--busy"):
            setattr(request, "everything" if key == "--all" else "busy", True)
        elif key in ("--shape", "--seconds"):
            value = value if equals else next(rest, "")
            try:
                setattr(request, key[2:], float(value) if key == "--seconds" else value)
            except ValueError:
                raise ConfigError(f"--seconds must be a number; got {value!r}.") from None
        elif not request.words and (name := same(word, presets())):
            request.names.append(name)
        else:
            request.words.append(word)
    check_ranges(request)
    if request.shape is not None and request.shape not in SHAPES:
        raise ConfigError(f"--shape must be one of {', '.join(SHAPES)}; got {request.shape!r}.")
    if request.everything and request.names:
        raise ConfigError(f"--all profiles every preset; omit {request.names[0]} or --all.")
    return request


def configured(request: Request, preset: str) -> cli.Invocation:
    """The training command that one profile is of, its sizes replaced by those of the shape that is asked for."""
    words = [preset, *request.words] if preset else request.words
    asked = cli.parse(words)
    on_cpu = machine.pick_device(asked.config.train.device).type == "cpu"
    own = "preset" if asked.preset == DEFAULT or not on_cpu else "small"
    given = {key for key, origin in asked.origins.items() if origin == "command line"}
    known = flatten(asked.config)
    if asked.config.model.backbone != RESNET:
        given |= {f"model.{name}" for name in RESNET_OPTIONS}  # the shapes' sizes are a ResNet's
    sizes = {key: value for key, value in SHAPES[request.shape or own].items() if key in known and key not in given}
    return cli.parse([*words, *(word for key, value in sizes.items() for word in (f"--{key}", str(value)))])


def memory_of(config: RunConfig[Any], device: torch.device) -> Peaks:
    """The peaks of one preset; None on a machine that does not report them."""
    with tempfile.TemporaryDirectory() as folder:
        return measure.peak_bytes(measure.prepare(config, device, Path(folder))) if memory.measurable(device) else None


def profile(invocation: cli.Invocation, request: Request, device: torch.device, peaks: Peaks) -> output.Record:
    """Measure one preset."""
    config = invocation.config
    with tempfile.TemporaryDirectory() as folder:
        run = measure.prepare(config, device, Path(folder))
        timing = measure.time_run(run, request.seconds, request.busy)
        return output.to_record(invocation.preset, run, timing, peaks, measure.evaluation_seconds(run, request.busy))


def launch(words: list[str]) -> None:
    """Profile what the command line asks for."""
    if {"--help", "-h"} & set(words):
        print((__doc__ or "").rstrip())
        return
    machine.refuse_several_processes()
    request = understand(words)
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
    found = machine.environment(device, clock="processor" if request.busy else "wall")
    environment = {key: value for key, value in found.items() if key not in ("argv", "platform", "backends")}
    print(f"torch {torch.__version__}   {device} ({threads} threads)   kernels: {machine.kernels(device)}")
    invocations = [settle_precision(each, each.config, device) for each in invocations]
    peaks = [memory_of(each.config, device) for each in invocations]  # before, as timing wants freed memory kept
    machine.keep_freed_memory()
    records: list[output.Record] = []
    for each, held in zip(invocations, peaks, strict=True):
        records.append(profile(each, request, device, held))
        print("\n" + output.table(records[-1]), flush=True)
        text = json.dumps({"environment": environment, "profiles": records}, indent=1)
        (path / "profile.json").write_text(text + "\n")
    output.draw(path / "profile.png", records)
    if len(records) > 1:
        print("\n" + output.markdown(records))
    print(f"\nwrote {path / 'profile.json'} and {path / 'profile.png'}")


def main(words: list[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    return run(words, launch)


if __name__ == "__main__":
    multiprocessing.set_forkserver_preload(["mixfast.profile.__main__"])  # what all workers import: once, and shared
    sys.exit(main())
