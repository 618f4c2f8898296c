"""Runs for the evaluations: loading them, naming and grouping them, and recording their scores."""

import copy
import dataclasses
import json
import shutil
import statistics
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import tyro

from mixfast import initial_weights
from mixfast.config.options import FREE_ON_RESUME, RunConfig, flatten
from mixfast.config.presets import recipe_name
from mixfast.data import Splits
from mixfast.errors import CheckpointError, ConfigError
from mixfast.models import Encoder
from mixfast.run.folder import RunFolder, now
from mixfast.run.monitor import scorable
from mixfast.run.reopen import MachineOptions, data_key, load_run
from mixfast.run.setup import Setup
from mixfast.scoring.baselines import calibrated
from mixfast.scoring.maps import Network
from mixfast.world import current

SCHEMA = 1  # version of a line of evaluations.jsonl
Loaded = Mapping[str, Splits]  # data sets by `data_key`
PrintLine = Callable[[str], None]


@dataclass(frozen=True)
class ScoringOptions(MachineOptions):
    """Options of every sub-command that scores runs."""

    # folders of runs, or checkpoints of runs
    runs: Annotated[tuple[Path, ...], tyro.conf.Positional, tyro.conf.arg(metavar="RUN...", help_behavior_hint="")]


def scoring_options(runs: tuple[Path, ...], like: MachineOptions) -> ScoringOptions:
    """The options that score some runs on the machine of another command."""
    names = [item.name for item in dataclasses.fields(MachineOptions)]
    return ScoringOptions(runs, **{name: getattr(like, name) for name in names})


@dataclass
class LoadedRun:
    """A run's set-up with the weights of one of its checkpoints."""

    checkpoint: Path
    folder: RunFolder
    setup: Setup
    epoch: int
    step: int
    drawn: Encoder  # with the random weights drawn from the seed
    recipe: str  # preset or method that it was trained by: `mixfast.config.presets.recipe_name`
    name: str = ""  # of its group: runs that differ only in their seed have the same name

    @property
    def trained(self) -> Network:
        """The trained encoder."""
        return Network(self.setup.method.encoder, self.setup.normalise)

    @property
    def start(self) -> str:
        """The architecture and the weights of --init: equal for runs whose first weights differ only by the seed."""
        config = self.setup.config
        return f"{config.model} {config.init}".rstrip()

    @property
    def origin(self) -> str:
        """Everything that decides the untrained network: it is the same for runs with equal origins."""
        config = self.setup.config
        return f"{self.start} {config.seed} {data_key(config)}"

    @property
    def fresh(self) -> Encoder:
        """A copy of the encoder with the weights that the run began with, random or those of --init.

        Raises:
            CheckpointError: the weights of --init are missing from the folder.
        """
        encoder = copy.deepcopy(self.drawn)
        if self.setup.config.init:
            initial_weights.reopen(self.folder.path).load_into(encoder.backbone)
        return encoder

    @property
    def architecture(self) -> str:
        """The backbone's options, and the strides and channels of its stages."""
        backbone = self.setup.method.encoder.backbone
        options = ", ".join(f"{name} {value}" for name, value in self.setup.config.model.architecture.items())
        strides, channels = (" ".join(map(str, numbers)) for numbers in (backbone.strides, backbone.channels))
        return f"{options}, strides {strides}, channels {channels}"

    def untrained(self) -> Network:
        """The encoder before training, with BatchNorm statistics of the run's training images."""
        setup = self.setup
        encoder = calibrated(self.fresh, setup.train_images, setup.normalise, setup.config.eval.batch_size)
        assert isinstance(encoder, Encoder)
        return Network(encoder, setup.normalise)


def load_runs(
    options: ScoringOptions,
    changes: dict[str, Any] | None = None,
    loaded: Loaded | None = None,
    print_line: PrintLine = print,
) -> list[LoadedRun]:
    """Load the runs that `options` lists, and give them names; data that several runs share is loaded once.

    Args:
        options: of the command.
        changes: new values of configuration options, by dotted key.
        loaded: data sets that are loaded already, by `data_key`.
        print_line: prints a line.

    Raises:
        ConfigError: no run is given.
    """
    if not options.runs:
        raise ConfigError("give at least one RUN: the folder of a run, or one of its checkpoints.")
    shared = dict(loaded or {})
    load = partial(_load, options=options, changes=changes or {}, shared=shared, print_line=print_line)
    runs = [current().in_turn(partial(load, path)) for path in options.runs]
    names = group_names([run.recipe for run in runs], [run.setup.config for run in runs])
    for run, name in zip(runs, names, strict=True):
        run.name = name
    return runs


def _load(
    path: Path, options: ScoringOptions, changes: dict[str, Any], shared: dict[str, Splits], print_line: PrintLine
) -> LoadedRun:
    file, state, setup = load_run(path, options, changes, shared, print_line)
    drawn = copy.deepcopy(setup.method.encoder)
    setup.load_method(state, file)
    folder = RunFolder.open(path)
    config, preset, _ = folder.read_config(options.trust)
    return LoadedRun(file, folder, setup, state["epoch"], state["step"], drawn, recipe_name(config, preset))


def group_names(recipes: Sequence[str], configs: Sequence[RunConfig[Any]]) -> list[str]:
    """A name for each run: its recipe, and the options, except the seed, in which runs of that recipe differ."""
    flat = [{k: v for k, v in flatten(config).items() if not _is_ignored(k)} for config in configs]
    names = []
    for name, values in zip(recipes, flat, strict=True):
        same_recipe = [other_values for recipe, other_values in zip(recipes, flat, strict=True) if recipe == name]
        differing = [key for key in values if any(other_values.get(key) != values[key] for other_values in same_recipe)]
        settings = [f"{key.rpartition('.')[2]}={values[key]}" for key in differing]
        names.append(" ".join([name, *settings]))
    return names


def _is_ignored(key: str) -> bool:
    """Whether an option does not change the trained weights, or is the seed."""
    return key == "seed" or key in FREE_ON_RESUME


def grouped(runs: Iterable[LoadedRun]) -> dict[str, list[LoadedRun]]:
    """The runs of each name, in the order given."""
    groups: dict[str, list[LoadedRun]] = {}
    for run in runs:
        groups.setdefault(run.name, []).append(run)
    return groups


def need_labels(runs: Iterable[LoadedRun], score_name: str) -> None:
    """Raise a ConfigError that names the first run whose images lack classes."""
    for run in runs:
        if not scorable(run.setup):
            raise ConfigError(
                f"{run.checkpoint}: {score_name} needs a class for every image, and its data set has images without "
                "one."
            )


def record_scores(run: LoadedRun, command: str, settings: dict[str, Any], scores: dict[str, Any]) -> None:
    """Append a line to the run's evaluations.jsonl, a JSON object with `scores` by row and metric.

    Only the first of several processes writes.
    """
    if current().rank:
        return
    facts = {"schema": SCHEMA, "command": command, "time": now(), "checkpoint": run.checkpoint.name}
    line = {**facts, "epoch": run.epoch, "step": run.step, "settings": settings, "scores": scores}
    with open(run.folder.evaluations, "a", encoding="utf-8") as file:
        file.write(json.dumps(line) + "\n")


def read_scores(folder: RunFolder) -> tuple[list[dict[str, Any]], int]:
    """The lines that `record_scores` appended in a run's folder, and the number of damaged lines.

    Raises:
        CheckpointError: the file cannot be read.
    """
    path = folder.evaluations
    try:
        text = path.read_text(encoding="utf-8", errors="replace") if path.exists() else ""
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror}. Move it away, or mend it.") from error
    lines = [_record(line) for line in text.splitlines() if line.strip()]
    return [line for line in lines if line], lines.count({})


def _record(line: str) -> dict[str, Any]:
    """The object of a line; {} if it is not a record of scores."""
    try:
        record = json.loads(line)
    except (ValueError, RecursionError):
        return {}
    required = {"command": str, "epoch": int, "settings": dict, "scores": dict}
    is_record = isinstance(record, dict) and all(isinstance(record.get(key), kind) for key, kind in required.items())
    return record if is_record and record.get("schema") == SCHEMA and record["scores"] else {}


def described(runs: Iterable[LoadedRun]) -> list[dict[str, Any]]:
    """The weights of each run that a result belongs to, for its JSON file."""
    return [
        {
            "path": str(run.checkpoint),
            "name": run.name,
            "seed": run.setup.config.seed,
            "epoch": run.epoch,
            "step": run.step,
        }
        for run in runs
    ]


def evaluation_folder(runs: Sequence[LoadedRun], out: Path | None) -> Path:
    """The folder for files and pictures: `out`, or evaluation/ of the first run; created if it is missing."""
    folder = out or runs[0].folder.path / "evaluation"
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def table(rows: dict[str, dict[str, str]]) -> str:
    """A table as aligned text, from the text of each cell by row and column; columns as in the longest row.

    On a terminal, columns that do not fit into a line follow in a further block.
    """
    longest_first = sorted(rows.values(), key=len, reverse=True)
    columns = list(dict.fromkeys(column for cells in longest_first for column in cells))
    widths = [max(len(column), *(len(cells.get(column, "-")) for cells in rows.values())) for column in columns]
    first = max(map(len, rows))
    lines = [("", columns), *((name, [cells.get(column, "-") for column in columns]) for name, cells in rows.items())]
    room = shutil.get_terminal_size().columns if sys.stdout.isatty() else sys.maxsize
    blocks, start = list[str](), 0
    while start < len(columns):
        end = start + 1
        while end < len(columns) and first + sum(3 + width for width in widths[start : end + 1]) <= room:
            end += 1
        blocks.append(
            "\n".join(
                f"{name:<{first}}" + "".join(f"   {texts[number]:>{widths[number]}}" for number in range(start, end))
                for name, texts in lines
            )
        )
        start = end
    return "\n\n".join(blocks)


class ScoreTable:
    """Scores by row and origin; scores that several runs share are computed once and count once."""

    def __init__(self) -> None:
        self._rows: dict[str, dict[str, dict[str, float]]] = {}  # row: origin: metric: value

    def score(self, row: str, origin: str, scorer: Callable[[], dict[str, float]]) -> dict[str, float]:
        """The scores of a row for an origin; `scorer` is called for the first run of that origin only."""
        scores = self._rows.setdefault(row, {})
        if origin not in scores:
            scores[origin] = scorer()
        return scores[origin]

    @property
    def rows(self) -> dict[str, dict[str, float]]:
        """Means over the origins, by row and metric."""
        rows = {row: list(scores.values()) for row, scores in self._rows.items()}
        return {
            row: {key: statistics.fmean(s[key] for s in values) for key in values[0]} for row, values in rows.items()
        }

    def table(self) -> str:
        """A line per row: "71.3", or "70.1 ± 1.2" for several (mean, standard deviation)."""
        return table({row: _spread(list(scores.values())) for row, scores in self._rows.items()})


def _spread(scores: Sequence[dict[str, float]]) -> dict[str, str]:
    cells = {}
    for key in scores[0]:
        values = [score[key] for score in scores]
        form = "g" if key.startswith("lr") else ".2f"
        spread = f" ± {statistics.stdev(values):{form}}" if len(values) > 1 else ""
        cells[key.replace("_", " ")] = f"{statistics.fmean(values):{form}}{spread}"
    return cells
