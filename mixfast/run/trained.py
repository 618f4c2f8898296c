"""The result of a training, for Python."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mixfast.data import Splits
from mixfast.models import Backbone
from mixfast.run.state import Run


@dataclass(frozen=True)
class Result:
    """The result of `mixfast.fit`: plain data, and a network that is independent of the training."""

    encoder: Backbone  # the trained backbone, as `mixfast.export.load_backbone` returns it: on the CPU, in eval mode
    scores: dict[str, float]  # of the last evaluation: "knn_z" and "knn_h" in percent; {} without classes
    baselines: dict[str, dict[str, float]]  # the same scores for "raw pixels" and for the "untrained" network
    history: list[dict[str, Any]]  # by epoch: epoch, step, lr, loss and its terms; scores and diagnostics where due
    folder: Path  # of the run: report, checkpoints, export, metrics
    data: Splits = field(repr=False)  # the images, as they were trained on


def result_of(run: Run, encoder: Backbone) -> Result:
    """The result of a finished run, from the records in its folder."""
    records = run.folder.metrics.read()
    kinds = ("epoch", "eval", "diagnostics")
    chosen = sorted((record for record in records if record["kind"] in kinds), key=lambda r: kinds.index(r["kind"]))
    epochs: dict[int, dict[str, Any]] = {record["epoch"]: {} for record in chosen if record["kind"] == "epoch"}
    for record in chosen:
        if record["epoch"] in epochs:
            epochs[record["epoch"]] |= {key: value for key, value in record.items() if not isinstance(value, str)}
    scores = [_scores(record) for record in records if record["kind"] == "eval"]
    return Result(
        encoder=encoder,
        scores=scores[-1] if scores else {},
        baselines={record["name"]: _scores(record) for record in records if record["kind"] == "baseline"},
        history=list(epochs.values()),
        folder=run.folder.path,
        data=run.splits,
    )


def _scores(record: dict[str, Any]) -> dict[str, float]:
    return {key: record[key] for key in ("knn_z", "knn_h") if key in record}
