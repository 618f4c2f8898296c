"""Pictures that the evaluations draw: grids of images and maps, clouds of embeddings.

matplotlib without its global state, drawn to files only.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

if TYPE_CHECKING:
    from matplotlib.figure import Figure

GAP = 2  # cells of the grid are this many pixels of the images apart
_POINTS = 5000  # of a cloud, at most


def figure(width: float, height: float, rows: int = 1, columns: int = 1) -> "tuple[Figure, Any]":
    """A figure of the given size in inches, and its axes."""
    from matplotlib.figure import Figure

    page = Figure(figsize=(width, height), dpi=110, layout="constrained")
    return page, page.subplots(rows, columns, squeeze=False)


@dataclass(frozen=True)
class Column:
    """One column of a grid: n images, or n maps, with boxes."""

    title: str
    pictures: Tensor  # uint8 [n, 3, H, W], or float [n, H, W] in [0, 1], drawn in viridis
    boxes: Tensor | None = None  # [n, M, 4]; those without area are left out
    colour: str = "red"  # of the boxes
    under: Tensor | None = None  # uint8 [n, 3, H, W], shown through a map


def colours(column: Column) -> Tensor:
    """float32 [n, 3, H, W] in [0, 1]: what a column's cells look like."""
    from matplotlib import colormaps

    if column.pictures.ndim == 4:
        return column.pictures.cpu().float() / 255
    painted = torch.from_numpy(colormaps["viridis"](column.pictures.cpu().numpy())[..., :3]).float().permute(0, 3, 1, 2)
    return painted if column.under is None else 0.55 * painted + 0.45 * column.under.cpu().float() / 255


def map_grid(path: Path, columns: Sequence[Column], rows: Sequence[str] = (), title: str = "") -> None:
    """Columns side by side, an image per row; all have the same n, H and W.

    Args:
        path: of the PNG.
        columns: left to right.
        rows: a name for each row, or none.
        title: above everything.
    """
    from matplotlib.patches import Rectangle

    count = len(columns[0].pictures)
    height, width = (side + GAP for side in columns[0].pictures.shape[-2:])
    inch = 1.25
    page, axes = figure(inch * len(columns) + 0.6 * bool(rows), inch * count * height / width + 0.5)
    axis = axes[0][0]
    sheet = torch.ones(3, height * count - GAP, width * len(columns) - GAP)
    for number, column in enumerate(columns):
        left = number * width
        axis.text(left + (width - GAP) / 2, -0.03 * width, column.title, fontsize=8, ha="center", va="bottom")
        for row, cell in enumerate(colours(column)):
            top = row * height
            sheet[:, top : top + height - GAP, left : left + width - GAP] = cell
            for x0, y0, x1, y1 in [] if column.boxes is None else column.boxes[row].tolist():
                if x1 > x0 and y1 > y0:  # imshow puts the centre of pixel (0, 0) at the origin
                    corner = (left + x0 - 0.5, top + y0 - 0.5)
                    frame = Rectangle(corner, x1 - x0, y1 - y0, fill=False, edgecolor=column.colour, linewidth=1.2)
                    axis.add_patch(frame)
    for row, name in enumerate(rows):
        axis.text(-0.05 * width, (row + 0.5) * height, name, fontsize=7, ha="right", va="center", rotation=90)
    axis.imshow(sheet.permute(1, 2, 0).numpy(), interpolation="nearest")
    axis.axis("off")
    if title:
        page.suptitle(title, fontsize=8)
    page.savefig(path)


def scatter(
    path: Path, planes: dict[str, tuple[Tensor, tuple[float, float]]], labels: Tensor, class_names: Sequence[str]
) -> None:
    """A cloud per panel, coloured by class where classes are known; at most 5,000 points each, evenly taken.

    Args:
        path: of the PNG.
        planes: title: (coordinates [N, 2], share of the variance on each axis).
        labels: int64 [N]; -1 for no class.
        class_names: by label.
    """
    page, axes = figure(4.6 * len(planes) + 1.4, 4.4, 1, len(planes))
    for axis, (title, (points, shares)) in zip(axes[0], planes.items(), strict=True):
        step = -(-len(points) // _POINTS)
        points, classes = points[::step].cpu(), labels[::step]
        for number, label in enumerate(classes.unique().tolist()):
            mine = points[classes == label]
            name = class_names[label] if 0 <= label < len(class_names) else "no class"
            shown = name if number < 20 else None
            axis.plot(*mine.T.numpy(), "o", ms=2, alpha=0.6, color=f"C{number % 10}", label=shown)
        words = [f"component {i + 1}: {100 * share:.0f} % of the variance" for i, share in enumerate(shares)]
        axis.set(title=title, xlabel=words[0], ylabel=words[1])
    axes[0][-1].legend(fontsize=7, markerscale=3, bbox_to_anchor=(1.02, 1), loc="upper left", frameon=False)
    page.savefig(path)
