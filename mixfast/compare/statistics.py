"""Means over seeds, and differences paired over the seeds that two groups share."""

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from mixfast.compare.gather import Group, Section

KEYS = ("knn_z", "knn_h")
LEVEL = 95  # percent
# Student's t at 97.5 % by degrees of freedom; beyond the table its last entry, which is slightly too wide.
_T = (
    12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228, 2.201, 2.179, 2.160, 2.145, 2.131,
    2.120, 2.110, 2.101, 2.093, 2.086, 2.080, 2.074, 2.069, 2.064, 2.060, 2.056, 2.052, 2.048, 2.045, 2.042,
)  # fmt: skip


@dataclass(frozen=True)
class Spread:
    """Mean and standard deviation (n - 1) of some values."""

    mean: float
    std: float | None  # None for one value
    n: int


@dataclass(frozen=True)
class Difference:
    """Mean difference of paired values with its interval by Student's t."""

    mean: float
    low: float | None  # None for one pair
    high: float | None
    n: int

    @property
    def clear(self) -> bool:
        """Whether the interval leaves 0 out; never for one pair."""
        return self.low is not None and self.high is not None and not self.low <= 0 <= self.high


def spread(values: Sequence[float]) -> Spread | None:
    """None for no values."""
    if not values:
        return None
    return Spread(statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else None, len(values))


def difference(ours: dict[int, float], theirs: dict[int, float]) -> Difference | None:
    """Of values by seed, over the seeds that both have; None if there is none."""
    pairs = [ours[seed] - theirs[seed] for seed in ours if seed in theirs]
    found = spread(pairs)
    if found is None:
        return None
    if found.std is None:
        return Difference(found.mean, None, None, 1)
    half = _T[min(found.n - 1, len(_T)) - 1] * found.std / math.sqrt(found.n)
    return Difference(found.mean, found.mean - half, found.mean + half, found.n)


def scores(group: Group, key: str, best: bool = False) -> dict[int, float]:
    """Scores of the finished runs by seed: of the last epoch, or the largest, which is chosen on the test images."""
    found = {}
    for member in group.finished:
        values = member.result.best if best else member.result.last
        if key in values:
            found[member.config.seed] = values[key]
    return found


def baselines(section: Section) -> dict[str, dict[str, dict[int, float]]]:
    """Scores by baseline, key and seed; one that several runs scored with a seed is the same and counts once."""
    found: dict[str, dict[str, dict[int, float]]] = {}
    for member in section.members:
        for record in member.records:
            if record["kind"] == "baseline":
                row = found.setdefault(record["name"], {})
                for key in KEYS:
                    if key in record:
                        row.setdefault(key, {}).setdefault(member.config.seed, record[key])
    return found
