"""The tables of a comparison, in Markdown."""

import statistics
from collections import Counter
from collections.abc import Iterable, Sequence

from mixfast.compare.gather import Group, Section, differing
from mixfast.compare.published import TABLE
from mixfast.compare.statistics import KEYS, baselines, scores, spread
from mixfast.compare.verdict import above, changed, rows
from mixfast.run.console import duration
from mixfast.run.monitor import candidates

_MARKS = "abcdefg"


def markdown(head: Sequence[str], body: Iterable[Sequence[str]]) -> str:
    """A table; words left, everything else right."""
    aligned = ["---", *("--:" for _ in head[1:])]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (head, aligned, *body))


def cell(values: Iterable[float], form: str = ".1f") -> str:
    """ "71.3", "70.1 ± 1.2" for several, "-" for none."""
    found = spread(list(values))
    if found is None:
        return "-"
    return f"{found.mean:{form}}" + ("" if found.std is None else f" ± {found.std:{form}}")


def _scores(group: Group | None) -> list[str]:
    if group is None:
        return ["*not run*", "", "", "", ""]
    if not group.finished:
        return ["*unfinished*", "", "", "", ""]
    cells = [cell(scores(group, key, best).values()) for best in (False, True) for key in KEYS]
    return [*cells, str(len(group.finished))]


def table_1(section: Section) -> str:
    """The paper's rows in its order, then ours beyond them, then the baselines."""
    head = ["", "runs", "paper", "kNN on z", "kNN on h", "max z", "max h", "seeds"]
    body, shown = [], set()
    for mark, (published, group) in zip(_MARKS, rows(section), strict=True):
        shown.add(group.name if group else "")
        name = f"`{group.name}`" if group else ""
        body.append([published.row, name, f"{published.score:.2f} <sup>{mark}</sup>", *_scores(group)])
    for group in section.groups:
        if group.name not in shown:
            body.append(["ours", f"`{group.name}`", "", *_scores(group)])
    for name, found in baselines(section).items():
        seeds = max(map(len, found.values()))
        body.append([name, "", "", *(cell(found.get(key, {}).values()) for key in KEYS), "", "", str(seeds)])
    return markdown(head, body)


def remarks() -> str:
    """On the origin of the paper's numbers, by the marks of `table_1`."""
    return "\n".join(f"- <sup>{mark}</sup> {row.row}: {row.remark}" for mark, row in zip(_MARKS, TABLE, strict=True))


def cost(section: Section) -> str:
    """What each group took."""
    head = ["", "epochs", "encoder passes of a step, moco = 1", "in all, in epochs of moco", "training", "images/s"]
    body = []
    for group in section.groups:
        done = group.finished
        seconds = statistics.fmean(one.result.seconds for one in done) if done else None
        rate = cell((one.result.images_per_s for one in done), ".0f")
        time = "-" if seconds is None else duration(seconds)
        epochs = group.config.train.epochs
        body.append([f"`{group.name}`", str(epochs), f"{group.cost:.2f}", f"{group.total:g}", time, rate])
    return markdown(head, body)


def to_base(base: Group, groups: Sequence[Group]) -> str:
    """What the others of some groups are above `base`, paired over seeds; "" if none has a seed in common."""
    both = {key: above(base, groups, key) for key in KEYS}
    body = []
    for name, first in both["knn_h"].items():
        cells = []
        for gap in (first, both["knn_z"].get(name)):
            interval = "-" if gap is None or gap.low is None else f"{gap.low:+.1f} to {gap.high:+.1f}"
            cells += ["-" if gap is None else f"{gap.mean:+.1f}", interval]
        body.append([f"`{name}`", *cells, str(first.n)])
    head = [f"minus `{base.name}`", "h", "95 % interval", "z", "95 % interval", "seeds"]
    return markdown(head, body) if body else ""


_HEALTH = (
    ("std_z", "std of z", ".2f"),
    ("effective_rank_h", "effective rank of h", ".1f"),
    ("alignment", "alignment", ".2f"),
    ("uniformity", "uniformity", ".2f"),
    ("queue_age", "queue age, steps", ".0f"),
)


def _last(group: Group, key: str) -> list[float]:
    found = [record[key] for one in group.finished if (record := one.last("diagnostics")) and key in record]
    values = [float(value) for value in found]
    return values[:1] if key == "queue_age" else values  # the same for every seed


def health(section: Section) -> str:
    """The last diagnostics, means over seeds; "" if no finished run has any."""
    groups = [group for group in section.groups if _last(group, "std_z")]
    body = [[f"`{g.name}`", *(cell(_last(g, key), form) for key, _, form in _HEALTH)] for g in groups]
    return markdown(["", *(title for _, title, _ in _HEALTH)], body) if body else ""


def positives(section: Section) -> str:
    """What the terms with queues find, and find without the image; "" without any."""
    body = []
    for group in section.groups:
        records = [record for one in group.finished if (record := one.last("diagnostics"))]
        terms = [key.removeprefix("found_") for key in (records[0] if records else ()) if key.startswith("found_")]
        among = candidates(group.config)
        chance = f"{100 / among:.3f}" if among else "-"
        for term in terms:
            shares = [[100 * value for value in _last(group, f"{kind}_{term}")] for kind in ("found", "shortcut")]
            words = [cell(shares[0]), cell(shares[1], ".2f")]
            body.append([f"`{group.name}`", term.replace("_", " "), *words, chance])
    return markdown(["", "term", "found, %", "another image's, %", "by chance, %"], body) if body else ""


def options(section: Section) -> str:
    """The options in which the recipes differ, and the method's own that are not defaults."""
    unlike = differing(section)
    keys = next(iter(unlike.values()), {})
    usual = {key: Counter(repr(values[key]) for values in unlike.values()).most_common(1)[0][0] for key in keys}
    lines = [f"- where nothing else is said: {', '.join(f'{key} = {value}' for key, value in usual.items())}"]
    for group in section.groups:
        values = {key: repr(value) for key, value in unlike[group.name].items() if repr(value) != usual[key]}
        values |= {f"method.{key}": repr(value) for key, value in changed(group).items()}
        if values:
            lines.append(f"- `{group.name}`: {', '.join(f'{key} = {value}' for key, value in values.items())}")
    return "\n".join(lines[not usual :]) or "none."


def unfinished(section: Section) -> list[str]:
    """A sentence for each run that does not count."""
    ending = "it is in the curves, and in nothing else."
    return [
        f"`{one.label}` is not finished (epoch {one.result.epochs} of {one.config.train.epochs}): {ending}"
        for one in section.members
        if not one.finished
    ]
