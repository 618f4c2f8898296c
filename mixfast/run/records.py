"""The metrics of a run, read from its folder: scores, and seconds by part."""

from dataclasses import dataclass
from typing import Any

from mixfast.errors import CheckpointError
from mixfast.run.log import Metrics

Records = list[dict[str, Any]]

_TEXTS = ("kind", "name")  # fields that are strings; all others are numbers
# By kind, the fields that tables and curves read.
_FIELDS = {"train": ("loss", "images_per_s", "time"), "eval": ("knn_z", "knn_h"), "baseline": ("name", "knn_h")}


def read(metrics: Metrics) -> Records:
    """The records of a run, checked for the fields that tables and curves read.

    Raises:
        CheckpointError: a line is not a record, or a field is missing or has another type; the message names it.
    """
    records = metrics.read()
    for number, record in enumerate(records, 1):
        invalid = [key for key, value in record.items() if not isinstance(value, str if key in _TEXTS else int | float)]
        needed = ("kind", "step", "epoch", *_FIELDS.get(str(record.get("kind")), ()))
        invalid += [key for key in needed if key not in record]
        if not invalid and record["kind"] == "train" and not record["epoch"] >= 1:
            invalid = ["epoch"]
        if invalid:
            listing = ", ".join(f"{key} {record.get(key, 'missing')!r:.40}" for key in invalid)
            raise CheckpointError(f"{metrics.path}, line {number}: {listing}; repair or delete the line.")
    return records


@dataclass(frozen=True)
class Result:
    """One row of the result table; scores are kNN accuracies in percent."""

    name: str
    last: dict[str, float]  # knn_z and knn_h of the last evaluation
    best: dict[str, float]  # the largest of all evaluations: chosen on the test set, so not the main result
    epochs: int
    seconds: float
    images_per_s: float


def result(name: str, records: Records) -> Result:
    """The row of a run, from its metrics."""
    train = [record for record in records if record["kind"] == "train"]
    scores = [record for record in records if record["kind"] == "eval"]
    keys = [key for key in ("knn_z", "knn_h") if scores]
    seconds = train[-1]["time"] if train else 0.0
    busy = sum(value for record in train for key, value in record.items() if key.startswith("time_"))
    images = sum(r["images_per_s"] * sum(v for k, v in r.items() if k.startswith("time_")) for r in train)
    return Result(
        name,
        last={key: scores[-1][key] for key in keys},
        best={key: max(record[key] for record in scores) for key in keys},
        epochs=train[-1]["epoch"] if train else 0,
        seconds=seconds,
        images_per_s=images / busy if busy else 0.0,
    )


def time_by_part(records: Records) -> dict[str, float]:
    """Seconds by part, summed over a run's records."""
    total: dict[str, float] = {}
    for record in records:
        for key, value in record.items():
            if key.startswith("time_"):
                part = key.removeprefix("time_")
                total[part] = total.get(part, 0.0) + value
    return total
