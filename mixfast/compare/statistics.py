"""Means over seeds, differences paired over the seeds that two groups share, and rank correlations."""

import itertools
import math
import statistics
from collections.abc import Sequence

from mixfast.compare.gather import Group, Section
from mixfast.scoring.paired import Difference, difference

KEYS = ("knn_z", "knn_h")


def scores(group: Group, key: str, best: bool = False) -> dict[int, float]:
    """Scores of the finished runs by seed: of the last epoch, or the largest, which is chosen on the test images."""
    by_seed = {}
    for member in group.finished:
        values = member.result.best if best else member.result.last
        if key in values:
            by_seed[member.config.seed] = values[key]
    return by_seed


def baselines(section: Section) -> dict[str, dict[str, dict[int, float]]]:
    """Scores by baseline, key and seed; if several runs scored a baseline with the same seed, the first counts.

    Runs that began with different weights of --init have different untrained networks.
    """
    several = len({member.config.init for member in section.members}) > 1
    rows: dict[str, dict[str, dict[int, float]]] = {}
    for member in section.members:
        for record in member.records:
            if record["kind"] == "baseline":
                name = record["name"]
                if several and name == "untrained":
                    name = f"untrained ({member.config.init or 'drawn'})"
                row = rows.setdefault(name, {})
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


def spearman(first: Sequence[float], second: Sequence[float]) -> float | None:
    """Correlation of the ranks of paired values, with mean ranks of equal values; None if all of a side are equal."""
    first_ranks, second_ranks = (
        [sum(compared < value for compared in side) + sum(compared == value for compared in side) / 2 for value in side]
        for side in (first, second)
    )
    return (
        None
        if len(set(first_ranks)) < 2 or len(set(second_ranks)) < 2
        else statistics.correlation(first_ranks, second_ranks)
    )


def kendall(first: Sequence[float], second: Sequence[float]) -> float | None:
    """Kendall's tau-b of paired values; None if all values of a side are equal."""
    signs = [
        ((a > b) - (a < b), (c > d) - (c < d))
        for (a, c), (b, d) in itertools.combinations(zip(first, second, strict=True), 2)
    ]
    ordered = [sum(pair[side] != 0 for pair in signs) for side in (0, 1)]
    return (
        sum(first_sign * second_sign for first_sign, second_sign in signs) / math.sqrt(math.prod(ordered))
        if all(ordered)
        else None
    )
