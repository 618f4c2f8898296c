"""The evaluations as Python calls: what `python -m mixfast.evaluate` does, with plain data as the result."""

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

from mixfast.config.arguments import as_arguments, parse
from mixfast.data import Splits, load
from mixfast.errors import ConfigError
from mixfast.evaluate.contestants import Localise
from mixfast.evaluate.detect import Detect
from mixfast.evaluate.detect import detect as run_detect
from mixfast.evaluate.knn import Knn
from mixfast.evaluate.knn import knn as run_knn
from mixfast.evaluate.linear import Linear
from mixfast.evaluate.linear import linear as run_linear
from mixfast.evaluate.localise import localise as run_localise
from mixfast.evaluate.runs import ScoringOptions
from mixfast.run.console import Console
from mixfast.run.folder import RunFolder
from mixfast.run.reopen import data_key
from mixfast.run.torch_state import fresh_torch_state
from mixfast.run.trained import Result

T = TypeVar("T", bound=ScoringOptions)
Trained = Result | str | os.PathLike[str]
Scores = dict[str, dict[str, float]]


def knn(run: Trained, *, trained_on: object = None, quiet: bool = False, **options: Any) -> Scores:
    """Weighted kNN of a run's encoder, as `python -m mixfast.evaluate knn`: {"moco": {"knn_z": 43.1, ...}, ...}.

    Torch's settings are restored at the end, as by `mixfast.fit`. Scores are also recorded in the run's folder.

    Args:
        run: the result of `mixfast.fit`, or the folder of a run, or one of its checkpoints.
        trained_on: the object that `mixfast.fit` was passed as its data, if `run` is a folder.
        quiet: print nothing.
        options: of the command: k, temperature, baselines, device, threads.

    Returns:
        Percent by row and metric: "knn_z" of the head's output, "knn_h" of the pooled features.

    Raises:
        mixfast.errors.UserError: the error with which the command would end.
    """
    return _called(
        Knn, (run,), trained_on, quiet, options, lambda parsed, loaded, console: run_knn(parsed, loaded, console.line)
    )


def linear(run: Trained, *, trained_on: object = None, quiet: bool = False, **options: Any) -> Scores:
    """Linear classifier on a run's frozen encoder, as `python -m mixfast.evaluate linear`.

    Args:
        run, trained_on, quiet: as in `knn`.
        options: those of the command.

    Returns:
        By row, accuracies in percent, "linear_z" and "linear_h", and the chosen learning rates, "lr_z" and "lr_h".
    """
    return _called(
        Linear,
        (run,),
        trained_on,
        quiet,
        options,
        lambda parsed, loaded, console: run_linear(parsed, loaded, console.line),
    )


def localise(*runs: Trained, trained_on: object = None, quiet: bool = False, **options: Any) -> dict[str, Any]:
    """Score runs' attention maps against boxes, as `python -m mixfast.evaluate localise`.

    Args:
        runs, trained_on, quiet: as in `knn`, one or more runs.
        options: those of the command.

    Returns:
        The content of the JSON file: "rows", each with "name", "role" and its "scores" by metric. Under "files" the
        paths of the JSON file and of a picture of maps and boxes.
    """
    return _called(
        Localise,
        runs,
        trained_on,
        quiet,
        options,
        lambda parsed, loaded, console: run_localise(parsed, loaded, console.line),
    )


def detect(*runs: Trained, trained_on: object = None, quiet: bool = False, **options: Any) -> dict[str, Any]:
    """Train and score detectors on runs' networks, as `python -m mixfast.evaluate detect`.

    Args:
        runs, trained_on, quiet: as in `knn`, one or more runs.
        options: those of the command.

    Returns:
        The content of the JSON file: "rows", each with "name", "role" and its scores by seed under "seeds". Under
        "files" the paths of the JSON file, the report, and a picture of predictions.
    """
    if "recipe" in options:
        raise ConfigError("mixfast.detect: a recipe takes hours: python -m mixfast.evaluate detect RUN --recipe NAME.")
    return _called(Detect, runs, trained_on, quiet, options, run_detect)


def _called(
    kind: type[T],
    runs: Sequence[Trained],
    trained_on: object,
    quiet: bool,
    options: dict[str, Any],
    evaluation: Callable[[T, dict[str, Splits], Console], Any],
) -> Any:
    """Parse the options as the command line does, call the evaluation, and return its result."""
    console = Console(quiet=quiet)
    with fresh_torch_state():
        paths = [str(run.folder if isinstance(run, Result) else Path(run)) for run in runs]
        parsed = parse(kind, [*paths, *as_arguments(options)], "python -m mixfast.evaluate")
        loaded: dict[str, Splits] = {}
        for run, path in zip(runs, parsed.runs, strict=True):
            if not isinstance(run, Result) and trained_on is None:
                continue
            config, _, _ = RunFolder.open(path).read_config(parsed.trust)
            if isinstance(run, Result):
                splits = run.data
            else:
                splits = load(config.data, config.seed, console.line, images=trained_on)
            if loaded.setdefault(data_key(config), splits).fingerprint != splits.fingerprint:
                raise ConfigError(f"{path}: the runs were passed different images; evaluate them one by one.")
        return evaluation(parsed, loaded, console)
