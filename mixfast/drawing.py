"""The style of all pictures: colours that colour-blind readers can distinguish, line styles, labels, image grids.

Colours are those of Okabe and Ito (Color Universal Design, 2008). Curves also differ in dashes and markers, areas in
hatches, boxes in dashes. matplotlib is used without its global state and draws to files only.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from textwrap import fill
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

BLUE, VERMILION, GREEN, PURPLE = "#0072B2", "#D55E00", "#009E73", "#CC79A7"
ORANGE, SKY, YELLOW, BLACK, GREY = "#E69F00", "#56B4E9", "#F0E442", "#000000", "#767676"
LINES = (BLUE, VERMILION, GREEN, PURPLE, ORANGE, SKY, BLACK)  # yellow is too pale on white
BOXES = (VERMILION, SKY, YELLOW, PURPLE, GREEN, ORANGE)  # on photographs, where black is lost
_DASHES = ("-", "--", "-.", ":")
_MARKERS = ("o", "s", "^", "D", "v", "P", "X")
_HATCHES = ("", "////", "....", "xxxx")
_SMALL = 7  # points, of labels and legends
_GAP = 2  # pixels of the images between the cells of a grid
_CELL = 1.25  # inches, width of a cell
_TITLE = 17  # characters of a title that fit above a cell


def figure(width: float, height: float, rows: int = 1, columns: int = 1) -> "tuple[Figure, Any]":
    """A figure of the given size in inches, and its axes as an array [rows, columns]."""
    from matplotlib.figure import Figure

    page = Figure(figsize=(width, height), dpi=110, layout="constrained")
    return page, page.subplots(rows, columns, squeeze=False)


def save(page: "Figure", path: Path, svg: bool = False) -> None:
    """Write a figure as the PNG `path`; with `svg` also as an SVG of the same name."""
    page.savefig(path)
    if svg:
        page.savefig(path.with_suffix(".svg"), metadata={"Date": None})


def curve(number: int) -> dict[str, Any]:
    """Colour, dashes and marker of curve `number` of a plot; no two of 49 curves have the same colour and marker."""
    count = len(LINES)
    marker = _MARKERS[(number + number // count) % count]
    return {"color": LINES[number % count], "linestyle": _DASHES[number % len(_DASHES)], "marker": marker, "ms": 3.5}


def area(number: int) -> dict[str, Any]:
    """Colour and hatch of bar segment `number`; 28 segments differ in at least one of them."""
    colours = (BLUE, ORANGE, GREEN, VERMILION, SKY, PURPLE, YELLOW)
    hatch = _HATCHES[number // len(colours) % len(_HATCHES)]
    return {"facecolor": colours[number % len(colours)], "hatch": hatch, "edgecolor": "white", "linewidth": 0.4}


def whole_epochs(axis: "Axes") -> None:
    """Name the x axis "epoch", with ticks at whole epochs only."""
    from matplotlib.ticker import MaxNLocator

    axis.set_xlabel("epoch")
    axis.xaxis.set_major_locator(MaxNLocator(integer=True))


def level(axis: "Axes", value: float, name: str, dashes: str = ":") -> tuple[float, str, str]:
    """Draw a grey horizontal line; returns its label for `label_ends`."""
    axis.axhline(value, color=GREY, linestyle=dashes, linewidth=1, label=name)
    return value, name, GREY


def label_ends(axis: "Axes", labels: Sequence[tuple[float, str, str]]) -> None:
    """Write names of curves right of the axes, at the height where each curve ends, without overlap.

    Args:
        axis: everything is drawn on it and its limits are final.
        labels: for each curve (y of its end in data units, name, colour).
    """
    step = 1.3 * _SMALL / 72 * axis.figure.dpi / axis.bbox.height  # a line of text, as a share of the axis
    axis.set_ylim(axis.get_ylim())
    to_share = axis.transData + axis.transAxes.inverted()
    ends = sorted((float(to_share.transform((axis.get_xlim()[1], y))[1]), name, colour) for y, name, colour in labels)
    heights = _spread([share for share, _, _ in ends], step)
    for (share, name, colour), height in zip(ends, heights, strict=True):
        style: dict[str, Any] = {"fontsize": _SMALL, "color": colour, "va": "center", "annotation_clip": False}
        pointer = {"arrowstyle": "-", "color": colour, "linewidth": 0.6, "relpos": (0, 0.5), "shrinkA": 1}
        points: dict[str, Any] = {"xy": (1, share), "xytext": (1.04, height), "xycoords": "axes fraction"}
        axis.annotate(name, **points, arrowprops=pointer, **style)


def _spread(heights: Sequence[float], step: float) -> list[float]:
    """Ascending heights in [0, 1]; those that are too close move apart, about their mean, to distances of `step`."""
    clusters: list[list[float]] = []

    def lowest(cluster: list[float]) -> float:
        span = step * (len(cluster) - 1)
        return max(min(sum(cluster) / len(cluster) - span / 2, 1 - span), 0.0)

    for height in heights:
        clusters.append([height])
        while len(clusters) > 1 and lowest(clusters[-1]) < lowest(clusters[-2]) + step * len(clusters[-2]):
            last = clusters.pop()
            clusters[-1] += last
    return [lowest(cluster) + step * index for cluster in clusters for index in range(len(cluster))]


def legend_beside(axis: "Axes", handles: Sequence[Any] | None = None) -> None:
    """A legend right of the axes."""
    position: dict[str, Any] = {"loc": "upper left", "bbox_to_anchor": (1.02, 1), "borderaxespad": 0, "frameon": False}
    axis.legend(**position, fontsize=_SMALL, handlelength=3, **({} if handles is None else {"handles": list(handles)}))


def legend_below(page: "Figure", columns: int, handles: Sequence[Any] | None = None) -> None:
    """A legend below all axes of a figure."""
    chosen = {} if handles is None else {"handles": list(handles)}
    page.legend(fontsize=_SMALL, ncols=columns, handlelength=3, frameon=False, loc="outside lower center", **chosen)


class Box(NamedTuple):
    """A frame that is drawn over an image."""

    corners: Sequence[float]  # x0, y0, x1, y1 in pixels of the image
    colour: str
    dashes: str = "-"


def framed(boxes: Tensor, colour: str = VERMILION) -> list[list[Box]]:
    """Boxes [n, M, 4] of n images, all in one colour."""
    return [[Box(corners, colour) for corners in row] for row in boxes.tolist()]


@dataclass(frozen=True)
class Column:
    """One column of a grid."""

    title: str
    cells: Tensor  # float32 [n, 3, H, W] in [0, 1], top to bottom
    boxes: Sequence[Sequence[Box]] = ()  # of each cell


def heat(maps: Tensor, images: Tensor | None = None) -> Tensor:
    """Colour maps with viridis; returns float32 [n, 3, H, W].

    Args:
        maps: float [n, H, W] in [0, 1].
        images: uint8 [n, 3, H, W], blended with the maps; None: only the maps.
    """
    from matplotlib import colormaps

    painted = torch.from_numpy(colormaps["viridis"](maps.cpu().numpy())[..., :3]).float().permute(0, 3, 1, 2)
    return painted if images is None else 0.55 * painted + 0.45 * images.cpu().float() / 255


def image_grid(path: Path, columns: Sequence[Column], rows: Sequence[str] = (), title: str = "") -> None:
    """Write a PNG with columns of images side by side; all columns have the same n, H and W.

    Args:
        path: where the PNG is written.
        columns: the columns, left to right.
        rows: a name for each row, or empty.
        title: a line above all columns.
    """
    count = len(columns[0].cells)
    height, width = (side + _GAP for side in columns[0].cells.shape[-2:])
    titles = ["\n".join(fill(line, _TITLE) for line in column.title.splitlines()) for column in columns]
    lines = max(text.count("\n") + 1 for text in titles)
    # All cells share one axis: matplotlib takes seconds to draw an axis for every cell.
    page, axes = figure(
        _CELL * len(columns) + 0.3 * bool(rows), _CELL * count * height / width + 0.15 * lines + 0.25 * bool(title)
    )
    axis = axes[0][0]
    sheet = torch.ones(3, height * count - _GAP, width * len(columns) - _GAP)
    for number, (column, text) in enumerate(zip(columns, titles, strict=True)):
        left = number * width
        axis.text(left + (width - _GAP) / 2, -0.04 * width, text, fontsize=_SMALL, ha="center", va="bottom")
        for row, cell in enumerate(column.cells):
            top = row * height
            sheet[:, top : top + height - _GAP, left : left + width - _GAP] = cell
            for box in column.boxes[row] if column.boxes else ():
                _draw_box(axis, box, left, top)
    for row, name in enumerate(rows):
        middle = row * height + (height - _GAP) / 2
        axis.text(-0.06 * width, middle, name, fontsize=_SMALL, ha="right", va="center", rotation=90)
    axis.imshow(sheet.permute(1, 2, 0).numpy(), interpolation="nearest")
    axis.axis("off")
    if title:
        page.suptitle(title, fontsize=8)
    save(page, path)


def _draw_box(axis: "Axes", box: Box, left: int, top: int) -> None:
    """Draw a box in its colour over a wider black one; a box without area is omitted."""
    from matplotlib.patches import Rectangle

    x0, y0, x1, y1 = box.corners
    if x1 <= x0 or y1 <= y0:
        return
    corner = (left + x0 - 0.5, top + y0 - 0.5)  # imshow puts the centre of pixel (0, 0) at the origin
    for colour, dashes, line_width in ((BLACK, "-", 2.4), (box.colour, box.dashes, 1.4)):
        style: dict[str, Any] = {"edgecolor": colour, "linestyle": dashes, "linewidth": line_width}
        axis.add_patch(Rectangle(corner, x1 - x0, y1 - y0, fill=False, antialiased=False, **style))
