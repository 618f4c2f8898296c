"""Means over seeds, and differences paired over the seeds that two groups share."""

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from mixfast.compare.gather import Group, Section

KEYS = ("knn_z", "knn_h")
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


def scores(group: Group, key: str, best: bool = False) -> dict[int, float]:
    """Scores of the finished runs by seed: of the last epoch, or the largest, which is chosen on the test images."""
    by_seed = {}
    for member in group.finished:
        values = member.result.best if best else member.result.last
        if key in values:
            by_seed[member.config.seed] = values[key]
    return by_seed


def baselines(section: Section) -> dict[str, dict[str, dict[int, float]]]:
    """Scores by baseline, key and seed; where several runs scored a baseline with one seed, the first counts."""
    rows: dict[str, dict[str, dict[int, float]]] = {}
    for member in section.members:
        for record in member.records:
            if record["kind"] == "baseline":
                row = rows.setdefault(record["name"], {})
                for key in KEYS:
                    if key in record:
                        row.setdefault(key, {}).setdefault(member.config.seed, record[key])
    return rows


def ranked(section: Section) -> list[Group]:
    """Groups with scores, the highest mean kNN on h first."""
    scored = [group for group in section.groups if scores(group, "knn_h")]
    return sorted(scored, key=lambda group: -statistics.fmean(scores(group, "knn_h").values()))


def plain_moco(section: Section) -> Group | None:
    """The group in the MoCo row of the paper's table, if it has scores."""
    group = section.table_1_groups().get("moco")
    return group if group and scores(group, "knn_h") else None


def differences(base: Group, groups: Sequence[Group], key: str) -> dict[str, Difference]:
    """By name of group, its scores minus those of `base` over the seeds of both; no entry without a common seed."""
    gaps = {group.name: difference(scores(group, key), scores(base, key)) for group in groups if group is not base}
    return {name: gap for name, gap in gaps.items() if gap}


def variants(section: Section) -> list[tuple[Group, list[Group]]]:
    """For each recipe with several groups: the group nearest to the method's defaults, and all groups, best first."""
    by_recipe: dict[str, list[Group]] = {}
    for group in ranked(section):
        by_recipe.setdefault(group.recipe, []).append(group)
    several = [groups for groups in by_recipe.values() if len(groups) > 1]
    return [(min(groups, key=lambda group: len(group.changed_options)), groups) for groups in several]
