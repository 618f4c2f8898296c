"""Curves of a section: kNN against encoder cost, loss terms by method."""

import textwrap
from pathlib import Path
from typing import Any

from mixfast import drawing
from mixfast.compare.gather import Group, Member, Section
from mixfast.compare.statistics import KEYS, baselines, ranked
from mixfast.drawing import figure
from mixfast.run.monitor import chance_loss
from mixfast.train.plots import term_names

_COLUMNS = 4  # of panels


def knn(path: Path, section: Section) -> bool:
    """kNN on z and h against encoder passes: the mean of each group, in a band from its lowest to its highest seed.

    A curve begins at cost 0 with the untrained network. Returns whether there was anything to draw.
    """
    order = [*ranked(section), *(group for group in section.groups if group not in ranked(section))]
    order = [group for group in order if any(member.last("eval") for member in group.members)]
    if not order:
        return False
    page, axes = figure(11, 4.4, 1, 2)
    baseline_scores = baselines(section)
    for axis, key in zip(axes[0], KEYS, strict=True):
        start = baseline_scores.get("untrained", {}).get(key, {})
        for number, group in enumerate(order):
            style = drawing.curve(number)
            points = _points(group, key, start)
            costs = sorted(points)
            values = [points[cost] for cost in costs]
            label = group.name if axis is axes[0][0] else None
            means = [sum(seed_scores) / len(seed_scores) for seed_scores in values]
            axis.plot(costs, means, label=label, **style)
            low, high = ([end(value) for value in values] for end in (min, max))
            axis.fill_between(costs, low, high, color=style["color"], alpha=0.12, linewidth=0)
        labels = []
        for dashes, name in zip((":", "-."), baseline_scores, strict=False):
            if scores := list(baseline_scores[name].get(key, {}).values()):
                labels.append(drawing.level(axis, sum(scores) / len(scores), name, dashes))
        title = f"kNN on {key.removeprefix('knn_')}"
        axis.set(title=title, xlabel="encoder passes, in epochs of MoCo", ylabel="weighted kNN accuracy, %")
        axis.set_xlim(0, None)
        drawing.label_ends(axis, labels)
    columns = max(1, min(5, 160 // (14 + max(len(group.name) for group in order))))  # that fit into the width
    drawing.legend_below(page, columns)
    drawing.save(page, path, svg=True)
    return True


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
    """A panel per group: mean terms of each epoch, the first run strong and other seeds faint, and the chance level."""
    columns = min(_COLUMNS, len(section.groups))
    rows = -(-len(section.groups) // columns)
    page, axes = figure(3.6 * columns, 2.7 * rows, rows, columns)
    for axis, group in zip(axes.flat, section.groups, strict=False):
        first, *_ = [_terms(axis, member, 0.3 if number else 1.0) for number, member in enumerate(group.members)]
        chance = chance_loss(group.config)
        if chance is not None:
            first.append(drawing.level(axis, chance, f"chance: {chance:.1f}"))
        axis.set_title(textwrap.fill(group.name, 36), fontsize=8)
        axis.tick_params(labelsize=7)
        drawing.whole_epochs(axis)
        axis.set_xlabel("")
        drawing.label_ends(axis, first)
    for axis in axes.flat[len(section.groups) :]:
        axis.axis("off")
    page.supxlabel("epoch", fontsize=8)
    page.supylabel("mean loss of a term in the epoch", fontsize=8)
    drawing.save(page, path, svg=True)


def _terms(axis: Any, member: Member, alpha: float) -> list[tuple[float, str, str]]:
    """Draw the terms of a run; returns the labels of their ends."""
    means = [record for record in member.records if record["kind"] == "epoch"]
    labels = []
    for number, term in enumerate(term_names(means)):
        style = {**drawing.curve(number), "ms": 2, "linewidth": 1.2, "alpha": alpha}
        axis.plot([r["epoch"] for r in means], [r[term] for r in means], **style)
        labels.append((means[-1][term], term.replace("_", " "), style["color"]))
    return labels
