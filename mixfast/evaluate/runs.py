"""Runs as the evaluations see them: opened, named, grouped by what differs, with the place where results go."""

import copy
import json
import statistics
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import tyro

from mixfast.config.options import FREE_ON_RESUME, RunConfig, flatten, replace, validate
from mixfast.data import Splits, kind_of, load
from mixfast.errors import ConfigError
from mixfast.models import Encoder
from mixfast.run import checkpoint, machine
from mixfast.run.console import Console
from mixfast.run.folder import RunFolder, now
from mixfast.run.monitor import scorable
from mixfast.run.signals import StopRequest
from mixfast.run.state import Run, build
from mixfast.scoring.baselines import calibrated
from mixfast.scoring.maps import Network

RESULTS = "evaluations.jsonl"  # in the run folder: a line per evaluation
SCHEMA = 1  # of a line


@dataclass(frozen=True, kw_only=True)
class Place:
    """Where a sub-command works."""

    data_path: str | None = None  # where the images are now, if they have moved
    device: str = "auto"  # auto, cpu, cuda or cuda:N
    threads: int = 0  # CPU threads; 0: OMP_NUM_THREADS if set, else the CPU quota


@dataclass(frozen=True)
class Common(Place):
    """Options of every sub-command that scores."""

    # folders of runs, or checkpoints of runs
    runs: Annotated[tuple[Path, ...], tyro.conf.Positional, tyro.conf.arg(metavar="RUN...", help_behavior_hint="")]


@dataclass
class Opened:
    """A run with the weights of one checkpoint."""

    checkpoint: Path
    run: Run
    epoch: int
    step: int
    fresh: Encoder  # the encoder before training
    name: str = ""  # of its group: runs that differ in nothing but the seed share one

    @property
    def trained(self) -> Network:
        """The trained encoder."""
        return Network(self.run.method.encoder, self.run.normalise)

    @property
    def origin(self) -> str:
        """What the network before training follows from: runs with one origin share their untrained network."""
        config = self.run.config
        return f"{config.model} {config.seed} {data_key(config)}"

    def untrained(self) -> Network:
        """The encoder before training, with BatchNorm statistics of the run's training images."""
        images, size = self.run.batches.images, self.run.config.eval.batch_size
        encoder = calibrated(self.fresh, images, self.run.normalise, size)
        assert isinstance(encoder, Encoder)
        return Network(encoder, self.run.normalise)


def open_runs(options: Common, changes: dict[str, Any] | None = None) -> list[Opened]:
    """The runs that `options` names, with names; data that several runs share is loaded once.

    Raises:
        ConfigError: no run is given.
    """
    if not options.runs:
        raise ConfigError("give at least one RUN: the folder of a run, or one of its checkpoints.")
    shared: dict[str, Splits] = {}
    opened = [_open(path, options, changes or {}, shared) for path in options.runs]
    for one, name in zip(opened, group_names([one.run.config for one in opened]), strict=True):
        one.name = name
    return opened


def _open(path: Path, options: Common, changes: dict[str, Any], shared: dict[str, Splits]) -> Opened:
    file = checkpoint.find(path)
    state = checkpoint.load(file)
    run = open_run(path, options, changes, shared)
    fresh = copy.deepcopy(run.method.encoder)
    run.load_method(state, file)
    return Opened(file, run, state["epoch"], state["step"], fresh)


def open_run(
    path: Path, options: Place, changes: dict[str, Any] | None = None, shared: dict[str, Splits] | None = None
) -> Run:
    """The run of a folder with fresh weights, on this machine.

    Args:
        path: the folder, or something in its checkpoints/.
        options: device, threads and data_path are read.
        changes: values of other configuration keys.
        shared: data sets by configuration; looked up and added to.
    """
    folder = RunFolder.open(path)
    config, _, _ = folder.read_config()
    moved = {} if options.data_path is None else {"data.path": options.data_path}
    here = {"train.device": options.device, "train.threads": options.threads}
    config = replace(config, {**here, **moved, **(changes or {})})
    validate(config)
    device = machine.pick_device(config.train.device)
    machine.set_threads(config.train.threads)
    machine.set_determinism(config.train.deterministic)
    cache = {} if shared is None else shared
    key = data_key(config)
    if key not in cache:
        cache[key] = load(config.data, config.seed, print, **machine.room(device))
    return build(config, cache[key], folder, Console(), StopRequest(), device)


def data_key(config: RunConfig[Any]) -> str:
    """Equal for runs on the same images: the seed makes scenes, and holds out images of a folder."""
    return f"{config.data} {'' if kind_of(config.data.kind).torchvision else config.seed}"


def group_names(configs: Sequence[RunConfig[Any]]) -> list[str]:
    """A name for each run: its method, with the options in which runs of that method differ, the seed left out."""
    flat = [{k: v for k, v in flatten(config).items() if not _beside_the_point(k)} for config in configs]
    names = []
    for config, values in zip(configs, flat, strict=True):
        rivals = [other for other in flat if other["method_name"] == values["method_name"]]
        unlike = [key for key in values if any(other.get(key) != values[key] for other in rivals)]
        words = [f"{key.rpartition('.')[2]}={values[key]}" for key in unlike]
        names.append(" ".join([config.method_name, *words]))
    return names


def _beside_the_point(key: str) -> bool:
    """Whether a key leaves the trained weights alone, or is the seed."""
    return key == "seed" or key in FREE_ON_RESUME or key.startswith(("eval.", "train.log_"))


def grouped(opened: Iterable[Opened]) -> dict[str, list[Opened]]:
    """The runs of each name, in the order given."""
    groups: dict[str, list[Opened]] = {}
    for one in opened:
        groups.setdefault(one.name, []).append(one)
    return groups


def need_labels(opened: Iterable[Opened], what: str) -> None:
    """Raise a ConfigError that names the first run whose images lack classes."""
    for one in opened:
        if not scorable(one.run):
            raise ConfigError(
                f"{one.checkpoint}: {what} needs a class for every image, and its data set has images without one."
            )


def keep(one: Opened, command: str, settings: dict[str, Any], scores: dict[str, Any]) -> None:
    """Append a result to the run's `RESULTS`: a JSON object per line, `scores` by row and by metric."""
    facts = {"schema": SCHEMA, "command": command, "time": now(), "checkpoint": one.checkpoint.name}
    line = {**facts, "epoch": one.epoch, "step": one.step, "settings": settings, "scores": scores}
    with open(one.run.folder.path / RESULTS, "a", encoding="utf-8") as file:
        file.write(json.dumps(line) + "\n")


def evaluation_folder(opened: Sequence[Opened], out: Path | None) -> Path:
    """Where files and pictures go: `out`, or evaluation/ of the first run; made if it is not there."""
    folder = out or opened[0].run.folder.path / "evaluation"
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def table(rows: dict[str, dict[str, str]]) -> str:
    """Rows of words as aligned text; columns in the order of the longest row."""
    longest_first = sorted(rows.values(), key=len, reverse=True)
    columns = list(dict.fromkeys(column for cells in longest_first for column in cells))
    widths = [max(len(column), *(len(cells.get(column, "-")) for cells in rows.values())) for column in columns]
    first = max(map(len, rows))
    lines = [("", columns), *((name, [cells.get(column, "-") for column in columns]) for name, cells in rows.items())]
    return "\n".join(
        f"{name:<{first}}" + "".join(f"   {word:>{width}}" for word, width in zip(words, widths, strict=True))
        for name, words in lines
    )


class Board:
    """Scores by row and run; what several runs share is computed once and counts once."""

    def __init__(self) -> None:
        self._rows: dict[str, dict[str, dict[str, float]]] = {}  # row: origin: metric: value

    def score(self, row: str, origin: str, scorer: Callable[[], dict[str, float]]) -> dict[str, float]:
        """The scores of a row for one origin: what `scorer` says, or said when asked first."""
        known = self._rows.setdefault(row, {})
        if origin not in known:
            known[origin] = scorer()
        return known[origin]

    def table(self) -> str:
        """A line per row: "71.3", or "70.1 ± 1.2" for several (mean, standard deviation)."""
        return table({row: _spread(list(scores.values())) for row, scores in self._rows.items()})


def _spread(scores: Sequence[dict[str, float]]) -> dict[str, str]:
    cells = {}
    for key in scores[0]:
        values = [one[key] for one in scores]
        form = "g" if key.startswith("lr") else ".2f"
        spread = f" ± {statistics.stdev(values):{form}}" if len(values) > 1 else ""
        cells[key.replace("_", " ")] = f"{statistics.fmean(values):{form}}{spread}"
    return cells
