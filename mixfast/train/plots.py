"""The pictures of a run folder."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from mixfast.evaluate.pictures import GAP, figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Records = list[dict[str, Any]]
BOX_COLOURS = ("red", "blue", "cyan", "yellow", "magenta", "orange") * 8


def loss_curve(path: Path, runs: dict[str, Records], chance: float | None) -> None:
    """The epochs' means of the loss terms and of their weighted mean, one panel per run, and the chance level."""
    page, axes = figure(5.2 * len(runs), 3.6, 1, len(runs))
    for axis, (name, records) in zip(axes[0], runs.items(), strict=True):
        means = [record for record in records if record["kind"] == "epoch"]
        terms = term_names(means)
        for term in (*terms, *(["mean_term"] if len(terms) > 1 else [])):
            style: dict[str, Any] = {"color": "black", "label": "weighted mean"} if term == "mean_term" else {}
            style = {"label": term.replace("_", " "), "marker": "o", "ms": 3, **style}
            axis.plot([r["epoch"] for r in means], [r[term] for r in means], **style)
        if chance is not None:
            axis.axhline(chance, color="grey", linestyle=":", label=f"chance level: {chance:.2f}")
        axis.set(title=name, xlabel="epoch", ylabel="loss, mean of the epoch")
        axis.legend(fontsize=7)
    page.savefig(path)


def term_names(means: Records) -> list[str]:
    """The loss terms in records of epochs or steps: every mean that is neither a sum nor a fact about the run."""
    facts = {"kind", "step", "epoch", "lr", "loss", "total_weight", "mean_term", "lam", "images_per_s"}
    return [name for name in (means[0] if means else {}) if name not in facts and not name.startswith("time")]


def knn_curve(path: Path, runs: dict[str, Records], baselines: Records) -> None:
    """kNN accuracy on z and h against the share of each training that is done; baselines are horizontal lines.

    All runs start from the same weights, so the untrained network's scores are where each curve begins.
    """
    page, axes = figure(6.4, 4)
    axis = axes[0][0]
    for colour, (name, records) in zip(("C0", "C1", "C2", "C3", "C4", "C5") * 4, runs.items(), strict=False):
        untrained = [{**record, "epoch": 0} for record in baselines if record["name"] == "untrained"]
        scores = untrained + [record for record in records if record["kind"] == "eval"]
        epochs = max([1, *(record["epoch"] for record in scores)])
        for key, style in (("knn_z", "-o"), ("knn_h", "--s")):
            label = f"{name}, {key.removeprefix('knn_')}"
            done = [100 * r["epoch"] / epochs for r in scores]
            axis.plot(done, [r[key] for r in scores], style, color=colour, ms=3, label=label)
    for style, record in zip((":", "-."), baselines, strict=False):
        best = max(record[key] for key in ("knn_z", "knn_h") if key in record)
        axis.axhline(best, color="grey", linestyle=style, label=f"{record['name']}: {best:.1f}")
    axis.set(xlabel="share of the training, %", ylabel="weighted kNN, %", xlim=(0, 102))
    axis.legend(fontsize=7)
    page.savefig(path)


def diagnostics(path: Path, runs: dict[str, Records]) -> None:
    """A row per run: effective rank; alignment and uniformity; top-1 accuracy of the loss terms."""
    page, axes = figure(12, 3.2 * len(runs), len(runs), 3)
    for row, (name, records) in zip(axes, runs.items(), strict=True):
        found = [record for record in records if record["kind"] == "diagnostics"]
        epochs = [record["epoch"] for record in found]
        panels = (("effective_rank_h",), ("alignment", "uniformity"), _accuracies(found))
        for axis, keys in zip(row, panels, strict=True):
            for key in keys:
                style = "--x" if key.startswith("top1_other_") else ":o" if key.startswith("top1_fresh_") else "-o"
                axis.plot(epochs, [record[key] for record in found], style, ms=4, label=key.replace("_", " "))
            axis.set(title=name, xlabel="epoch")
            if keys:
                axis.legend(fontsize=7)
    page.savefig(path)


def _accuracies(found: Records) -> tuple[str, ...]:
    return tuple(name for name in (found[0] if found else {}) if name.startswith("top1_"))


def time_by_part(path: Path, runs: dict[str, dict[str, float]]) -> None:
    """One stacked bar per run: seconds by part."""
    page, axes = figure(7, 1.4 + 0.5 * len(runs))
    axis = axes[0][0]
    parts = list(dict.fromkeys(part for seconds in runs.values() for part in seconds))
    left = [0.0] * len(runs)
    for part in parts:
        widths = [seconds.get(part, 0.0) for seconds in runs.values()]
        axis.barh(list(runs), widths, left=left, label=part)
        left = [begin + width for begin, width in zip(left, widths, strict=True)]
    axis.invert_yaxis()
    axis.set(xlabel="seconds")
    page.legend(fontsize=7, ncols=5, loc="outside lower center")
    page.savefig(path)


def view_grid(
    path: Path, images: Tensor, views: dict[str, Tensor], mean: Sequence[float], std: Sequence[float]
) -> None:
    """Columns of images: the sources, then every view; a view's boxes are drawn into it.

    Args:
        images: uint8 [B, 3, H, W].
        views: what `Method.views` returned; 4-D entries are drawn, "boxes_NAME" [B, 4] or [B, M, 4] are the boxes
            (x0, y0, x1, y1) of NAME: the first of an image in red, each of the others in a colour of its own.
        mean, std: of the normalisation, undone here.
    """
    scale, offset = (torch.tensor(values).view(1, 3, 1, 1) for values in (std, mean))
    columns = {"image": images.float() / 255}
    for name, view in views.items():
        if view.ndim == 4:
            columns[name] = (view.detach().float().cpu() * scale + offset).clamp(0, 1)
    height, width = (side + GAP for side in next(iter(columns.values())).shape[2:])
    # One picture: an axis for every cell would take seconds to draw.
    sheet = torch.ones(3, height * len(images), width * len(columns))
    page, axes = figure(1.1 * len(columns), 1.1 * len(images) * height / width + 0.3)
    axis = axes[0][0]
    for column, (name, pictures) in enumerate(columns.items()):
        axis.text((column + 0.5) * width, -2, name.replace("_", " "), fontsize=8, ha="center", va="bottom")
        for row, picture in enumerate(pictures):
            top, left = row * height, column * width
            sheet[:, top : top + height - GAP, left : left + width - GAP] = picture
            if (boxes := views.get(f"boxes_{name}")) is not None:
                for colour, box in zip(BOX_COLOURS, boxes[row].reshape(-1, 4).tolist(), strict=False):
                    _draw_box(axis, box, left, top, colour)
    axis.imshow(sheet.permute(1, 2, 0).numpy(), interpolation="nearest")
    axis.axis("off")
    page.savefig(path)


def _draw_box(axis: "Axes", box: list[int], left: int, top: int, colour: str) -> None:
    from matplotlib.patches import Rectangle

    x0, y0, x1, y1 = box
    # imshow puts the centre of pixel (0, 0) at the origin.
    corner = (left + x0 - 0.5, top + y0 - 0.5)
    axis.add_patch(Rectangle(corner, x1 - x0, y1 - y0, fill=False, edgecolor=colour, linewidth=1, antialiased=False))
