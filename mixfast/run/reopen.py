"""The set-up of a run from its folder: the configuration that it was trained with, on this machine."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mixfast.config.options import RunConfig, replace, validate
from mixfast.data import Splits, kind_of, load
from mixfast.ranges import Cores
from mixfast.run import checkpoint, machine
from mixfast.run.folder import RunFolder
from mixfast.run.restore import check_config, check_fields
from mixfast.run.setup import Setup, set_up
from mixfast.world import alone


@dataclass(frozen=True, kw_only=True)
class MachineOptions:
    """Options about the machine: device, threads, the place of the images, trusted modules."""

    data_path: str | None = None  # new place of the images, if they have moved
    device: str = "auto"  # auto, cpu, cuda or cuda:N
    threads: Cores = 0  # CPU threads; 0: OMP_NUM_THREADS if set, else the CPU quota
    trust: tuple[str, ...] = ()  # modules in or around a run's folder, which the run names, that may be imported


def load_run(
    path: Path,
    options: MachineOptions,
    changes: dict[str, Any] | None = None,
    shared: dict[str, Splits] | None = None,
    print_line: Callable[[str], None] = print,
) -> tuple[Path, dict[str, Any], Setup]:
    """A checkpoint of a run, its content, and the set-up of its folder with fresh weights; arguments as `set_up_run`.

    Raises:
        CheckpointError: the checkpoint is unreadable, or has another configuration than the folder.
    """
    file, state = checkpoint.load_newest(path, print_line)
    setup = set_up_run(path, options, changes, shared, print_line)
    check_fields(state, file)
    check_config(state, setup.config, file)
    return file, state, setup


def set_up_run(
    path: Path,
    options: MachineOptions,
    changes: dict[str, Any] | None = None,
    shared: dict[str, Splits] | None = None,
    print_line: Callable[[str], None] = print,
) -> Setup:
    """The set-up of a run's folder with fresh weights, on this machine.

    Args:
        path: the folder, or a path in its checkpoints/.
        options: device, threads, place of the images, trusted modules.
        changes: new values of other configuration options, by dotted key.
        shared: data sets that are loaded already, by `data_key`; one that is missing is loaded and added.
        print_line: prints a line.
    """
    config, _, _ = RunFolder.open(path).read_config(options.trust)
    moved = {} if options.data_path is None else {"data.path": options.data_path}
    machine_values = {"train.device": options.device, "train.threads": options.threads}
    config = replace(config, {**machine_values, **moved, **(changes or {})})
    with alone():  # nothing is trained: the batch size need not suit the number of processes
        validate(config)
    device = machine.pick_own_device(config.train.device, "--device")
    machine.set_threads(config.train.threads)
    machine.set_determinism(config.train.deterministic)
    cache = {} if shared is None else shared
    key = data_key(config)
    if key not in cache:
        cache[key] = load(config.data, config.seed, print_line, **machine.room(device))
    return set_up(config, cache[key], device)


def data_key(config: RunConfig[Any]) -> str:
    """A text that is equal for runs on the same images; with the seed where it decides the images or their split."""
    return f"{config.data} {'' if kind_of(config.data.kind).torchvision else config.seed}"
