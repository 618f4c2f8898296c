"""Who wins, by how much, and whether the seeds carry it: sentences made from the numbers."""

import statistics
from collections.abc import Sequence

from mixfast.compare.gather import Group, Section
from mixfast.compare.published import SETTING, TABLE, Published
from mixfast.compare.statistics import LEVEL, Difference, baselines, difference, scores, spread
from mixfast.config.options import flatten

_EVEN = 1.05  # budgets that differ by less count as equal


def rows(section: Section) -> list[tuple[Published, Group | None]]:
    """For each row of the paper's table our group of that recipe, the one nearest to the method's defaults."""
    found = []
    for published in TABLE:
        mine = [group for group in section.groups if published.method == group.recipe == group.config.method_name]
        mine.sort(key=lambda group: (len(changed(group)), -len(group.finished)))  # stable: else in the order given
        found.append((published, mine[0] if mine else None))
    return found


def changed(group: Group) -> dict[str, object]:
    """The method's options that are not its defaults."""
    config = group.config.method
    defaults = flatten(type(config)())
    return {key: value for key, value in flatten(config).items() if value != defaults[key]}


def reference(section: Section) -> Group | None:
    """Plain MoCo, if it has scores."""
    group = next((group for published, group in rows(section) if published.method == "moco"), None)
    return group if group and scores(group, "knn_h") else None


def ranked(section: Section) -> list[Group]:
    """Groups with scores, best mean kNN on h first."""
    with_scores = [group for group in section.groups if scores(group, "knn_h")]
    return sorted(with_scores, key=lambda group: -statistics.fmean(scores(group, "knn_h").values()))


def above(base: Group, groups: Sequence[Group], key: str) -> dict[str, Difference]:
    """By group, what it is above `base` over the seeds that both have; none without such seeds."""
    gaps = {group.name: difference(scores(group, key), scores(base, key)) for group in groups if group is not base}
    return {name: gap for name, gap in gaps.items() if gap}


def differences(section: Section, key: str) -> dict[str, Difference]:
    """The same above plain MoCo; none without it."""
    base = reference(section)
    return above(base, ranked(section), key) if base else {}


def variants(section: Section) -> list[tuple[Group, list[Group]]]:
    """Of each recipe that was run in several forms, the form nearest to the defaults and the others, best first."""
    found: dict[str, list[Group]] = {}
    for group in ranked(section):
        found.setdefault(group.recipe, []).append(group)
    bases = {recipe: min(groups, key=lambda group: len(changed(group))) for recipe, groups in found.items()}
    return [(bases[recipe], groups) for recipe, groups in found.items() if len(groups) > 1]


def verdict(section: Section) -> list[str]:
    """Paragraphs on the last epoch's kNN on h."""
    order = ranked(section)
    if not order:
        return ["No finished run has scores: either the images have no classes, or the runs are not done."]
    return [*_winner(order), *_against_moco(section), *_approaches(section), *_against_baselines(section, order)]


def _mean(group: Group) -> str:
    found = spread(list(scores(group, "knn_h").values()))
    assert found
    if found.std is None:
        return f"{found.mean:.1f} % (one seed)"
    return f"{found.mean:.1f} ± {found.std:.1f} % ({found.n} seeds)"


def words(gap: Difference) -> str:
    """A difference with its interval: "+1.2 points (95 % interval +0.3 to +2.1, 3 seeds)"."""
    if gap.low is None:
        return f"{gap.mean:+.1f} points (one seed: no interval)"
    return f"{gap.mean:+.1f} points ({LEVEL} % interval {gap.low:+.1f} to {gap.high:+.1f}, {gap.n} seeds)"


def _winner(order: list[Group]) -> list[str]:
    first, *others = order
    lines = [f"**Highest mean: `{first.name}` with {_mean(first)}**, kNN on h after the last epoch."]
    if others:
        gap = difference(scores(first, "knn_h"), scores(others[0], "knn_h"))
        if gap is None:
            lines.append(f"It shares no seed with the next, `{others[0].name}` ({_mean(others[0])}): not compared.")
        else:
            sure = "beyond the spread of the seeds" if gap.clear else "which does not tell the two apart"
            sure = "and one seed cannot say whether that would hold for others" if gap.n == 1 else sure
            lines.append(f"Against the next, `{others[0].name}`: {words(gap)}, {sure}.")
        totals = [group.total for group in order]
        if max(totals) > _EVEN * min(totals):
            lines.append(
                f"Budgets are not equal: from {min(totals):g} to {max(totals):g} times the encoder passes of an epoch "
                "of plain MoCo, see *What it cost*; a difference may be the budget's."
            )
    return [" ".join(lines)]


def _against_moco(section: Section) -> list[str]:
    gaps = differences(section, "knn_h")
    if not gaps:
        return ["There is no plain MoCo with a seed in common, so no difference to it."]
    above = [name for name, gap in gaps.items() if gap.clear and gap.mean > 0]
    below = [name for name, gap in gaps.items() if gap.clear and gap.mean < 0]
    open_ = [name for name, gap in gaps.items() if not gap.clear and gap.n > 1]
    alone = [name for name, gap in gaps.items() if gap.n == 1]
    parts = [("above it", above), ("below it", below), ("not told apart from it", open_), ("one seed only", alone)]
    said = [
        f"{where}: {', '.join(f'`{name}` ({gaps[name].mean:+.1f})' for name in names)}"
        for where, names in parts
        if names
    ]
    return [f"Beside plain MoCo, seed by seed: {'; '.join(said)}."]


def _approaches(section: Section) -> list[str]:
    gaps = differences(section, "knn_h")
    base = next(published for published in TABLE if published.method == "moco")
    lines = []
    for published, group in rows(section):
        if group is None or group.name not in gaps or not published.method.startswith("approach"):
            continue
        gap = gaps[group.name]
        claim = published.score - base.score
        side = "is not told apart from MoCo" if gap.n > 1 else "against MoCo"
        if gap.clear:
            side = "is above MoCo" if gap.mean > 0 else "**loses** to MoCo"
        lines.append(f"{published.row} {side}: {words(gap)}; the paper claims {claim:+.2f} ({SETTING}).")
    return [" ".join(lines)] if lines else []


def _against_baselines(section: Section, order: list[Group]) -> list[str]:
    lines = []
    for name, found in baselines(section).items():
        level = found.get("knn_h", {})
        short = []
        for group in order:
            gap = difference(scores(group, "knn_h"), level)
            if gap and gap.mean <= 0:
                short.append(f"`{group.name}` ({gap.mean:+.1f})")
        if short:
            lines.append(f"Not above {name}: {', '.join(short)}.")
        elif level:
            lines.append(f"Every method is above {name} ({statistics.fmean(level.values()):.1f} %).")
    return [" ".join(lines)] if lines else []


def comparable(section: Section) -> str:
    """Whether the paper's column may be read beside ours."""
    unlike = []
    for group in section.groups:
        data, model, train = group.config.data, group.config.model, group.config.train
        full = data.kind == "cifar10" and data.limit is None and data.test_limit is None and data.size == 32
        whole = model.architecture == {"depth": 18, "width": 64, "stem": "cifar"}
        if not (full and whole and train.epochs == 1000 and train.batch_size == 512):
            unlike.append(group)
    if not unlike:
        return (
            f"The setting is the paper's ({SETTING}). Its scores come from several sources and classifiers, see the "
            "remarks: none of ours is better than one of them for being larger."
        )
    epochs = sorted({group.config.train.epochs for group in section.groups})
    span = f"{epochs[0]} epochs" if len(epochs) == 1 else f"{epochs[0]} to {epochs[-1]} epochs"
    return (
        f"**The paper's numbers are not comparable with ours**: they are for {SETTING}; these runs are "
        f"{section.title}, {span}. They stand here to compare the order of the methods, not the scores. Nor are they "
        "all of one kind: see the remarks."
    )
