"""The log of a run: running means, which stay on the device until they are printed, and the metrics files.

Every record is one JSON object on a line of metrics.jsonl. Fields whose name begins with `time_` or `images_per_s`
depend on the machine; all others are the same bits in a resumed run as in an uninterrupted one.
"""

import csv
import json
import os
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mixfast.errors import CheckpointError
from mixfast.run.loggers import Loggers
from mixfast.spans import span


class Meter:
    """Means of named scalars: over the steps since the last record, summed on the device, and over an epoch."""

    def __init__(self) -> None:
        self._sums: dict[str, Tensor] = {}
        self.count = 0
        self._epoch_sums: dict[str, float] = {}  # over the steps of the epoch up to the last call of `means`
        self._epoch_count = 0

    @span("logging")
    def add(self, values: dict[str, Tensor]) -> None:
        """Add one step's scalars; no copy to the host."""
        for name, value in values.items():
            value = value.detach().float()
            self._sums[name] = self._sums[name] + value if name in self._sums else value
        self.count += 1

    def means(self) -> dict[str, float]:
        """The means over the steps since the last call, as numbers; {} without a step. Waits for the device."""
        if not self.count:
            return {}
        values = (torch.stack(list(self._sums.values())) / self.count).tolist()
        means = dict(zip(self._sums, values, strict=True))
        for name, mean in means.items():
            self._epoch_sums[name] = self._epoch_sums.get(name, 0.0) + mean * self.count
        self._epoch_count += self.count
        self._sums, self.count = {}, 0
        return means

    def epoch_means(self) -> dict[str, float]:
        """The means over the epoch's steps up to the last call of `means`; {} without a step. Starts a new epoch."""
        means = {name: total / self._epoch_count for name, total in self._epoch_sums.items()}
        self._epoch_sums, self._epoch_count = {}, 0
        return means

    def state_dict(self) -> dict[str, Any]:
        epoch = {"epoch_count": self._epoch_count, "epoch_sums": dict(self._epoch_sums)}
        return {"count": self.count, "sums": dict(self._sums), **epoch}

    def load_state_dict(self, state: dict[str, Any], device: torch.device) -> None:
        self.count = state["count"]
        self._sums = {name: value.to(device) for name, value in state["sums"].items()}
        self._epoch_count, self._epoch_sums = state["epoch_count"], dict(state["epoch_sums"])


def read_lines(path: Path) -> list[dict[str, Any]]:
    """The records of a file with a JSON object on each line, oldest first; [] if there is no file.

    Raises:
        CheckpointError: a line is not a JSON object; the message gives its number.
    """
    if not path.exists():
        return []
    records = []
    for number, line in enumerate(path.read_bytes().splitlines(), 1):
        try:
            records.append(json.loads(line))
            is_record = isinstance(records[-1], dict)
        except (ValueError, RecursionError):
            is_record = False
        if not is_record:
            raise CheckpointError(f"{path}, line {number}: {line[:60]!r} is not a record; repair or delete the line.")
    return records


class Metrics:
    """metrics.jsonl and metrics.csv of a run folder."""

    def __init__(self, folder: Path):
        self.path = folder / "metrics.jsonl"
        self._csv = folder / "metrics.csv"
        self.loggers = Loggers()

    def write(self, record: dict[str, Any]) -> None:
        """Append one record to metrics.jsonl, and pass it to the loggers; survives a kill of the process."""
        with open(self.path, "a", encoding="utf-8") as file:
            file.write(json.dumps(record) + "\n")
        self.loggers.record(record)

    def position(self) -> int:
        """Bytes written so far; a checkpoint stores this number."""
        return self.path.stat().st_size if self.path.exists() else 0

    def truncate(self, position: int) -> None:
        """Delete the records after the first `position` bytes, which a checkpoint stores."""
        if self.position() > position:
            os.truncate(self.path, position)

    def read(self) -> list[dict[str, Any]]:
        """All records, oldest first.

        Raises:
            CheckpointError: a line is not a JSON object; the message gives its number.
        """
        return read_lines(self.path)

    def write_csv(self) -> None:
        """Write the records as a table, metrics.csv; a cell is empty where a record has no such field."""
        records = self.read()
        columns = list(dict.fromkeys(name for record in records for name in record))
        fresh = self._csv.with_suffix(".csv.tmp")
        with open(fresh, "w", newline="", encoding="utf-8") as file:
            table = csv.DictWriter(file, columns)
            table.writeheader()
            table.writerows(records)
        os.replace(fresh, self._csv)
