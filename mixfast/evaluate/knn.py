"""evaluate knn: weighted nearest neighbours on frozen features."""

from dataclasses import dataclass
from functools import partial

from mixfast.evaluate.runs import (
    Loaded,
    LoadedRun,
    PrintLine,
    ScoreTable,
    ScoringOptions,
    load_runs,
    need_labels,
    record_scores,
)
from mixfast.ranges import Count, Positive
from mixfast.run.monitor import bank_size, score, score_pixels


@dataclass(frozen=True)
class Knn(ScoringOptions):
    """Weighted kNN on z and h of a run's checkpoint."""

    k: Count | None = None  # neighbours; none: the run's own
    temperature: Positive | None = None  # none: the run's own
    baselines: bool = False  # also score raw pixels and the untrained network


def knn(options: Knn, loaded: Loaded | None = None, print_line: PrintLine = print) -> dict[str, dict[str, float]]:
    """Print the scores, append them to evaluations.jsonl in the run folders, and return them (percent, by row)."""
    changes = {"eval.k": options.k, "eval.temperature": options.temperature}
    runs = load_runs(options, {key: value for key, value in changes.items() if value is not None}, loaded, print_line)
    need_labels(runs, "kNN")
    board = ScoreTable()
    for run in runs:
        setup, rows = run.setup, {}
        if options.baselines:
            rows["raw pixels"] = board.score("raw pixels", run.origin, partial(score_pixels, setup))
            rows["untrained"] = board.score("untrained", run.origin, partial(_untrained, run))
        rows[run.name] = board.score(run.name, str(run.checkpoint), partial(score, setup, setup.method.encoder))
        k, temperature = min(setup.config.eval.k, bank_size(setup)), setup.config.eval.temperature
        print_line(f"{run.checkpoint}: epoch {run.epoch}, step {run.step}; k = {k}, temperature {temperature}")
        record_scores(run, "knn", {"k": k, "temperature": temperature}, rows)
    print_line(board.table())
    return board.rows


def _untrained(run: LoadedRun) -> dict[str, float]:
    return score(run.setup, run.untrained().encoder)
