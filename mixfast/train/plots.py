"""The pictures of a run folder."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mixfast import drawing
from mixfast.drawing import Box, Column, figure

Records = list[dict[str, Any]]
# Kinds of top-1 accuracy, by the vector that is the positive: start of the record's name, name in the legend, dashes.
_POSITIVES = (
    ("top1_other_", "positive of another image", "--"),
    ("top1_fresh_", "positive with fresh patches", ":"),
    ("top1_", "positive", "-"),
)


def loss_curve(path: Path, runs: dict[str, Records], chance: float | None) -> None:
    """The epochs' means of the loss terms and of their weighted mean, one panel per run, and the chance level."""
    page, axes = figure(5.6 * len(runs), 3.6, 1, len(runs))
    for axis, (name, records) in zip(axes[0], runs.items(), strict=True):
        means = [record for record in records if record["kind"] == "epoch"]
        terms = term_names(means)
        labels = []
        for number, term in enumerate((*terms, *(["mean_term"] if len(terms) > 1 else []))):
            style, title = drawing.curve(number), term.replace("_", " ")
            if term == "mean_term":
                style, title = {"color": drawing.BLACK, "linewidth": 2}, "weighted mean"
            axis.plot([r["epoch"] for r in means], [r[term] for r in means], label=title, **style)
            if means:
                labels.append((means[-1][term], title, style["color"]))
        if chance is not None:
            labels.append(drawing.level(axis, chance, f"chance level: {chance:.2f}"))
        axis.set(title=name, ylabel="mean loss of the epoch" + (", nats" if chance is not None else ""))
        drawing.whole_epochs(axis)
        drawing.label_ends(axis, labels)
    drawing.save(page, path, svg=True)


def term_names(means: Records) -> list[str]:
    """The names of the loss terms in records of epochs or steps."""
    facts = {"kind", "step", "epoch", "lr", "loss", "total_weight", "mean_term", "lam", "images_per_s"}
    return [name for name in (means[0] if means else {}) if name not in facts and not name.startswith("time")]


def knn_curve(path: Path, runs: dict[str, Records], baselines: Records) -> None:
    """kNN accuracy on z and h against the completed share of each training; baselines are horizontal lines.

    All runs start from the same weights, so each curve begins with the untrained network's scores.
    """
    page, axes = figure(7, 4)
    axis = axes[0][0]
    labels = []
    for number, (name, records) in enumerate(runs.items()):
        untrained = [{**record, "epoch": 0} for record in baselines if record["name"] == "untrained"]
        scores = untrained + [record for record in records if record["kind"] == "eval"]
        epochs = max([1, *(record["epoch"] for record in scores)])
        style = drawing.curve(number)
        for key, dashes in (("knn_z", "-"), ("knn_h", "--")):
            completed = [100 * r["epoch"] / epochs for r in scores]
            axis.plot(completed, [r[key] for r in scores], **{**style, "linestyle": dashes})
            if scores:
                labels.append((scores[-1][key], f"{name}, {key.removeprefix('knn_')}", style["color"]))
    for dashes, record in zip((":", "-."), baselines, strict=False):
        best = max(record[key] for key in ("knn_z", "knn_h") if key in record)
        labels.append(drawing.level(axis, best, f"{record['name']}: {best:.1f}", dashes))
    axis.set(xlabel="completed share of the training, %", ylabel="weighted kNN accuracy, %", xlim=(0, 102))
    axis.set_title("solid: z (head's output); dashed: h (pooled features)", fontsize=9)
    drawing.label_ends(axis, labels)
    drawing.save(page, path, svg=True)


def diagnostics(path: Path, runs: dict[str, Records]) -> None:
    """A row per run: effective rank, alignment, uniformity, top-1 accuracy of the loss terms."""
    page, axes = figure(14, 2.9 * len(runs), len(runs), 4)
    panels = (
        ("effective_rank_h", "effective rank of h"),
        ("alignment", "alignment (squared distance)"),
        ("uniformity", "uniformity (natural logarithm)"),
    )
    for row, (name, records) in zip(axes, runs.items(), strict=True):
        measured = [record for record in records if record["kind"] == "diagnostics"]
        epochs = [record["epoch"] for record in measured]
        for axis, (key, title) in zip(row, panels, strict=False):
            axis.plot(epochs, [record[key] for record in measured], **drawing.curve(0))
            axis.set(title=name, ylabel=title)
            drawing.whole_epochs(axis)
        row[0].set_ylim(0, 1.08 * row[0].get_ylim()[1])  # else noise looks like a trend
        _accuracies(row[3], name, measured)
    drawing.save(page, path, svg=True)


def _accuracies(axis: Any, name: str, measured: Records) -> None:
    """Top-1 accuracies by epoch: a colour and marker per loss term, dashes by whose vector is the positive."""
    from matplotlib.lines import Line2D

    terms: list[str] = []
    kinds: dict[str, str] = {}
    for key in (key for key in (measured[0] if measured else {}) if key.startswith("top1_")):
        start, kind, dashes = next(entry for entry in _POSITIVES if key.startswith(entry[0]))
        kinds[kind] = dashes
        if (term := key.removeprefix(start)) not in terms:
            terms.append(term)
        style = {**drawing.curve(terms.index(term)), "linestyle": dashes}
        axis.plot([record["epoch"] for record in measured], [100 * record[key] for record in measured], **style)
    axis.set(title=name, ylabel="top-1 accuracy, %", ylim=(-3, 103))
    drawing.whole_epochs(axis)
    handles = [
        Line2D([], [], **{**drawing.curve(number), "linestyle": "", "label": term.replace("_", " ")})
        for number, term in enumerate(terms)
    ]
    handles += [Line2D([], [], color=drawing.BLACK, linestyle=kinds[kind], label=kind) for kind in sorted(kinds)]
    if handles:
        drawing.legend_beside(axis, handles)


def time_by_part(path: Path, runs: dict[str, dict[str, float]]) -> None:
    """One stacked bar per run: seconds by part."""
    page, axes = figure(7, 1.4 + 0.5 * len(runs))
    axis = axes[0][0]
    parts = list(dict.fromkeys(part for seconds in runs.values() for part in seconds))
    left = [0.0] * len(runs)
    for number, part in enumerate(parts):
        widths = [seconds.get(part, 0.0) for seconds in runs.values()]
        axis.barh(list(runs), widths, left=left, label=part, **drawing.area(number))
        left = [start + width for start, width in zip(left, widths, strict=True)]
    axis.invert_yaxis()
    axis.set(xlabel="wall time, seconds")
    drawing.legend_below(page, 5)
    drawing.save(page, path)


def view_grid(
    path: Path, images: Tensor, views: dict[str, Tensor], mean: Sequence[float], std: Sequence[float]
) -> None:
    """Columns of images: the sources, then every view; a view's boxes are drawn into it.

    Args:
        path: of the PNG.
        images: uint8 [B, 3, H, W].
        views: what `Method.views` returned; 4-D entries are drawn, "boxes_NAME" [B, 4] or [B, M, 4] are the boxes
            (x0, y0, x1, y1) of NAME; box m of an image has the same colour in every view.
        mean, std: of the normalisation, undone here.
    """
    scale, offset = (torch.tensor(values).view(1, 3, 1, 1) for values in (std, mean))
    columns = [Column("image", images.float() / 255)]
    for name, view in views.items():
        if view.ndim == 4:
            rows = views[f"boxes_{name}"].reshape(len(view), -1, 4).tolist() if f"boxes_{name}" in views else []
            boxes = [
                [Box(box, drawing.BOXES[number % len(drawing.BOXES)]) for number, box in enumerate(row)] for row in rows
            ]
            cells = (view.detach().float().cpu() * scale + offset).clamp(0, 1)
            columns.append(Column(name.replace("_", " "), cells, boxes))
    drawing.image_grid(path, columns)
