"""Means over seeds, and differences of values that are paired by their seed."""

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

# Student's t at 97.5 % by degrees of freedom; the last entry is used for more, and is slightly too large for them.
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

    def text(self, form: str = ".1f") -> str:
        """ "71.3", "70.1 ± 1.2" for several values."""
        return f"{self.mean:{form}}" + ("" if self.std is None else f" ± {self.std:{form}}")


@dataclass(frozen=True)
class Difference:
    """Mean difference of paired values with its interval by Student's t."""

    mean: float
    low: float | None  # None for one pair
    high: float | None
    n: int


def spread(values: Sequence[float]) -> Spread | None:
    """Mean and standard deviation of `values`; None if there are none."""
    if not values:
        return None
    return Spread(statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else None, len(values))


def difference(ours: dict[int, float], theirs: dict[int, float]) -> Difference | None:
    """Mean of `ours` minus `theirs`, values by seed, over the seeds in both; None without a common seed."""
    pairs = spread([ours[seed] - theirs[seed] for seed in ours if seed in theirs])
    if pairs is None:
        return None
    if pairs.std is None:
        return Difference(pairs.mean, None, None, 1)
    half = _T[min(pairs.n - 1, len(_T)) - 1] * pairs.std / math.sqrt(pairs.n)
    return Difference(pairs.mean, pairs.mean - half, pairs.mean + half, pairs.n)
