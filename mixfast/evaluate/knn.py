"""evaluate knn: weighted nearest neighbours on frozen features."""

from dataclasses import dataclass
from functools import partial

from mixfast.evaluate.runs import Board, Common, Opened, keep, need_labels, open_runs
from mixfast.run.monitor import bank_size, score, score_pixels


@dataclass(frozen=True)
class Knn(Common):
    """Weighted kNN on z and h of a run's checkpoint."""

    k: int | None = None  # neighbours; none: the run's own
    temperature: float | None = None  # none: the run's own
    baselines: bool = False  # also score raw pixels and the untrained network


def knn(options: Knn) -> None:
    """Print the scores, and append them to evaluations.jsonl in the run folders."""
    given = {"eval.k": options.k, "eval.temperature": options.temperature}
    opened = open_runs(options, {key: value for key, value in given.items() if value is not None})
    need_labels(opened, "kNN")
    board = Board()
    for one in opened:
        run, rows = one.run, {}
        if options.baselines:
            rows["raw pixels"] = board.score("raw pixels", one.origin, partial(score_pixels, run))
            rows["untrained"] = board.score("untrained", one.origin, partial(_untrained, one))
        rows[one.name] = board.score(one.name, str(one.checkpoint), partial(score, run, run.method.encoder))
        k, temperature = min(run.config.eval.k, bank_size(run)), run.config.eval.temperature
        print(f"{one.checkpoint}: epoch {one.epoch}, step {one.step}; k = {k}, temperature {temperature}")
        keep(one, "knn", {"k": k, "temperature": temperature}, rows)
    print(board.table())


def _untrained(one: Opened) -> dict[str, float]:
    return score(one.run, one.untrained().encoder)
