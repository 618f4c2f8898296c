"""Curves of a section: kNN against encoder cost, loss terms by method."""

from pathlib import Path
from typing import Any

from mixfast.compare.gather import Group, Member, Section
from mixfast.compare.statistics import KEYS, baselines, ranked
from mixfast.evaluate.pictures import figure
from mixfast.run.monitor import chance_loss
from mixfast.train.plots import term_names

_COLUMNS = 4  # of panels
_STYLES = ("-", "--", ":")  # after ten groups the colours repeat with the next style


def knn(path: Path, section: Section) -> bool:
    """kNN on z and h against encoder passes: the mean of each group, in a band from its lowest to its highest seed.

    A curve begins at cost 0 with the untrained network. Returns whether there was anything to draw.
    """
    order = [*ranked(section), *(group for group in section.groups if group not in ranked(section))]
    order = [group for group in order if any(member.last("eval") for member in group.members)]
    if not order:
        return False
    page, axes = figure(11, 4.4, 1, 2)
    known = baselines(section)
    for axis, key in zip(axes[0], KEYS, strict=True):
        start = known.get("untrained", {}).get(key, {})
        for number, group in enumerate(order):
            colour, style = f"C{number % 10}", _STYLES[number // 10 % len(_STYLES)]
            points = _points(group, key, start)
            costs = sorted(points)
            values = [points[cost] for cost in costs]
            label = group.name if axis is axes[0][0] else None
            means = [sum(v) / len(v) for v in values]
            axis.plot(costs, means, style, marker="o", ms=3, color=colour, label=label)
            axis.fill_between(costs, [min(v) for v in values], [max(v) for v in values], color=colour, alpha=0.15)
        for style, name in zip((":", "-."), known, strict=False):
            if level := list(known[name].get(key, {}).values()):
                mean = sum(level) / len(level)
                axis.axhline(mean, color="grey", linestyle=style, linewidth=1)
                axis.text(1, mean, f" {name}", fontsize=7, color="grey", va="center", transform=_right(axis))
        title = f"kNN on {key.removeprefix('knn_')}"
        axis.set(title=title, xlabel="encoder passes, in epochs of MoCo", ylabel="weighted kNN, %", xlim=(0, None))
    columns = max(1, min(5, 160 // (12 + max(len(group.name) for group in order))))  # as many as fit the width
    page.legend(fontsize=7, ncols=columns, loc="outside lower center")
    page.savefig(path)
    return True


def _right(axis: Any) -> Any:
    """The transform in which x is a share of the axis and y is in the axis's units."""
    return axis.get_yaxis_transform()


def _points(group: Group, key: str, start: dict[int, float]) -> dict[float, list[float]]:
    """Scores of the seeds by encoder passes; `start`: scores of the untrained network by seed."""
    points: dict[float, list[float]] = {}
    for member in group.members:
        if member.config.seed in start:
            points.setdefault(0.0, []).append(start[member.config.seed])
        for record in member.records:
            if record["kind"] == "eval":
                points.setdefault(record["epoch"] * group.cost, []).append(record[key])
    return points


def losses(path: Path, section: Section) -> None:
    """A panel per group: the epochs' mean terms of its first run, other seeds' fainter, and the chance level."""
    columns = min(_COLUMNS, len(section.groups))
    rows = -(-len(section.groups) // columns)
    page, axes = figure(3.3 * columns, 2.7 * rows, rows, columns)
    for axis, group in zip(axes.flat, section.groups, strict=False):
        for number, member in enumerate(group.members):
            _terms(axis, member, 0.3 if number else 1.0, label=not number)
        chance = chance_loss(group.config)
        if chance is not None:
            axis.axhline(chance, color="grey", linestyle=":", linewidth=1, label=f"chance level: {chance:.1f}")
        axis.set_title(group.name, fontsize=8)
        axis.tick_params(labelsize=7)
        axis.legend(fontsize=6)
    for axis in axes.flat[len(section.groups) :]:
        axis.axis("off")
    page.supxlabel("epoch", fontsize=8)
    page.supylabel("loss of a term, mean of the epoch", fontsize=8)
    page.savefig(path)


def _terms(axis: Any, member: Member, alpha: float, label: bool) -> None:
    means = [record for record in member.records if record["kind"] == "epoch"]
    for number, term in enumerate(term_names(means)):
        name = term.replace("_", " ") if label else None
        points = [r["epoch"] for r in means], [r[term] for r in means]
        axis.plot(*points, marker="o", ms=2, color=f"C{number}", alpha=alpha, linewidth=1.2, label=name)
