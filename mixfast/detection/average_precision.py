"""Average precision of detections in two conventions, which are never mixed up: COCO's and that of VOC 2007.

         precision at        thresholds of IoU    a detection is matched to
coco     101 recalls         .50, .55 ... .95     the free object that it covers best; ignored objects last
voc07    11 recalls          .50, .55 ... .95     the object that it covers best; another one's match there is false

COCO: Lin et al. 2014, as pycocotools 2 computes it: detections with the highest scores of each class and image,
matched in the order of their scores at IoU >= threshold; an object marked as a crowd takes any number of
detections by their share inside it. VOC 2007: Everingham et al. 2010, matched at IoU > threshold; the mean over ten
thresholds is the "AP" of MoCo's tables. In both, what matches an ignored object is neither right nor wrong.
Everything is computed in float64.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor

from mixfast.scoring.boxes import iou

IOUS = tuple(0.5 + (0.95 - 0.5) / 9 * step for step in range(10))  # the numbers of numpy.linspace, bit by bit
SIZES = {"small": (0.0, 32.0**2), "medium": (32.0**2, 96.0**2), "large": (96.0**2, 1e10)}  # pixels of area
MAX_DETECTIONS = 100  # of a class and image: COCO
_CELLS = 1024  # classes of images that are matched at once


class Truth(NamedTuple):
    """The objects of N images, up to M each."""

    boxes: Tensor  # float [N, M, 4]
    labels: Tensor  # int64 [N, M]; -1 for no object
    ignored: Tensor  # bool [N, M]: a detection there does not count (difficult, crowd)
    crowd: Tensor  # bool [N, M]: a group of objects; it is ignored as well
    areas: Tensor  # float [N, M] in pixels, for COCO's sizes


class Detections(NamedTuple):
    """What a detector found in N images, up to D boxes each."""

    boxes: Tensor  # float [N, D, 4]
    labels: Tensor  # int64 [N, D]; -1 for no detection
    scores: Tensor  # float [N, D]
    areas: Tensor  # float [N, D] in pixels, for COCO's sizes


def coco(truth: Truth, found: Detections, classes: int, max_detections: int = MAX_DETECTIONS) -> Tensor:
    """COCO's AP by class, size and threshold.

    Args:
        truth: of N images.
        found: in the same images.
        classes: C; labels are below it.
        max_detections: of each class and image, those with the highest scores.

    Returns:
        float64 [C, 4, 10] in [0, 1]: objects of all sizes, then `SIZES`; thresholds `IOUS`. NaN where a class has no
        object of a size.
    """
    ranges = torch.tensor([(0.0, 1e10), *SIZES.values()], dtype=torch.float64)
    objects = _flat(truth.labels, classes)
    outside = _outside(truth.areas.double(), ranges)
    left_out = (truth.ignored | truth.crowd) | outside  # [A, N, M]
    counts = torch.stack([_count(truth.labels, ~part & (truth.labels >= 0), classes) for part in left_out], dim=1)
    best = _flat(found.labels, classes, found.scores)
    best = _Flat(*(values[best.rank < max_detections] for values in best))
    matched, ignored = _match(truth, found, objects, best, left_out)
    far = _outside(found.areas.double(), ranges)[:, best.image, best.slot]  # [A, n]
    ignored |= ~matched & far[:, None]
    labels, scores = best.cell % classes, found.scores[best.image, best.slot]
    table = torch.full((classes, len(ranges), len(IOUS)), math.nan, dtype=torch.float64)
    recalls = torch.arange(101, dtype=torch.float64) * 0.01
    for label in (counts[:, 0] > 0).nonzero().flatten().tolist():
        mine = (labels == label).nonzero().flatten()
        mine = mine[scores[mine].argsort(descending=True, stable=True)]
        right, counted = matched[..., mine] & ~ignored[..., mine], ~ignored[..., mine]
        present = counts[label]
        area = _area(right, counted, present[:, None, None].clamp(min=1), recalls)
        table[label] = torch.where(present[:, None] > 0, area, math.nan)
    return table


def voc07(truth: Truth, found: Detections, classes: int) -> Tensor:
    """The 11-point AP of VOC 2007 by class and threshold: float64 [C, 10] in [0, 1], NaN for a class without objects.

    Boxes are half-open; their areas are those of VOC's inclusive pixels with its "+ 1". Scores are not rounded.
    """
    counts = _count(truth.labels, (truth.labels >= 0) & ~truth.ignored, classes)
    image, slot = (found.labels >= 0).nonzero(as_tuple=True)
    scores = found.scores[image, slot]
    order = scores.argsort(descending=True, stable=True)
    image, slot, labels = image[order], slot[order], found.labels[image[order], slot[order]]
    overlap = iou(found.boxes[image, slot].double()[:, None], truth.boxes[image].double())  # [n, M]
    overlap = torch.where(truth.labels[image] == labels[:, None], overlap, -1.0)
    if overlap.shape[1] == 0:
        overlap = overlap.new_full((len(overlap), 1), -1.0)
        truth = truth._replace(ignored=truth.ignored.new_zeros(len(truth.ignored), 1))
    covered, which = overlap.max(dim=1)
    hit = covered > torch.tensor(IOUS, dtype=torch.float64)[:, None]  # [T, n]
    ignored = hit & truth.ignored[image, which]
    key = image * overlap.shape[1] + which  # of the object
    number = torch.arange(len(key)).expand_as(hit)
    first = torch.full((len(IOUS), len(found.labels) * overlap.shape[1]), len(key))
    first.scatter_reduce_(1, key.expand_as(hit), torch.where(hit, number, len(key)), "amin")
    right = hit & ~ignored & (first.gather(1, key.expand_as(hit)) == number)
    table = torch.full((classes, len(IOUS)), math.nan, dtype=torch.float64)
    recalls = torch.arange(11, dtype=torch.float64) * 0.1
    for label in (counts > 0).nonzero().flatten().tolist():
        mine = labels == label
        table[label] = _area(right[:, mine], ~ignored[:, mine], counts[label], recalls)
    return table


def summary(table: Tensor) -> dict[str, float]:
    """Percentages from `coco`'s table: {"ap", "ap50", "ap75", "ap_small", "ap_medium", "ap_large"}; NaN for no object.

    Classes without objects do not count.
    """
    every = table[:, 0]
    scores = {"ap": every, "ap50": every[:, 0], "ap75": every[:, 5]}
    scores |= {f"ap_{name}": table[:, number] for number, name in enumerate(SIZES, 1)}
    return {name: 100 * values.nanmean().item() for name, values in scores.items()}


def voc07_summary(table: Tensor) -> dict[str, float]:
    """Percentages from `voc07`'s table: {"voc07_ap", "voc07_ap50", "voc07_ap75"}."""
    scores = {"voc07_ap": table, "voc07_ap50": table[:, 0], "voc07_ap75": table[:, 5]}
    return {name: 100 * values.nanmean().item() for name, values in scores.items()}


class _Flat(NamedTuple):
    """Boxes in a row: by image and class, those of a class in the order of their scores, or else as they stand."""

    cell: Tensor  # image * classes + class
    image: Tensor
    slot: Tensor
    rank: Tensor  # within the cell


def _flat(labels: Tensor, classes: int, scores: Tensor | None = None) -> _Flat:
    image, slot = (labels >= 0).nonzero(as_tuple=True)
    if scores is not None:
        order = scores[image, slot].argsort(descending=True, stable=True)
        image, slot = image[order], slot[order]
    cell, order = torch.sort(image * classes + labels[image, slot], stable=True)
    rank = torch.arange(len(cell)) - torch.searchsorted(cell, cell)
    return _Flat(cell, image[order], slot[order], rank)


def _count(labels: Tensor, which: Tensor, classes: int) -> Tensor:
    return torch.bincount(labels[which], minlength=classes)


def _outside(areas: Tensor, ranges: Tensor) -> Tensor:
    """bool [A, ...]: areas [...] that are not within each of ranges [A, 2], ends included."""
    low, high = ranges.view(-1, 2, *[1] * areas.dim()).unbind(1)
    return (areas < low) | (areas > high)


def _match(truth: Truth, found: Detections, objects: _Flat, best: _Flat, left_out: Tensor) -> tuple[Tensor, Tensor]:
    """Which detections match an object, and which of them an ignored one: bool [A, T, n]."""
    shape = (len(left_out), len(IOUS), len(best.cell))
    matched, ignored = torch.zeros(shape, dtype=torch.bool), torch.zeros(shape, dtype=torch.bool)
    cells, counts = best.cell.unique_consecutive(return_counts=True)
    starts = counts.cumsum(0) - counts
    first, last = (torch.searchsorted(objects.cell, cells, right=right) for right in (False, True))
    order = counts.argsort(descending=True, stable=True)
    order = order[(last > first)[order]]  # where there is an object
    for part in order.split(_CELLS) if len(order) else ():
        columns, slots = torch.arange(int(counts[part[0]])), torch.arange(int((last - first)[part].max()))
        index, there = _rows(starts[part], counts[part], columns)  # of detections [c, D]
        which, real = _rows(first[part], (last - first)[part], slots)  # of objects [c, G]
        image, slot = objects.image[which], objects.slot[which]
        crowd = truth.crowd[image, slot]
        boxes = found.boxes[best.image[index], best.slot[index]].double()[:, :, None]
        theirs = truth.boxes[image, slot].double()[:, None]
        overlap = torch.where(crowd[:, None], _share(boxes, theirs), iou(boxes, theirs))
        overlap = torch.where(real[:, None], overlap, -1.0)
        hits, left = _match_cells(overlap, counts[part], crowd, left_out[:, image, slot])
        matched[:, :, index[there]] = hits.transpose(1, 2)[:, :, there]
        ignored[:, :, index[there]] = left.transpose(1, 2)[:, :, there]
    return matched, ignored


def _rows(starts: Tensor, counts: Tensor, columns: Tensor) -> tuple[Tensor, Tensor]:
    """Consecutive indices from `starts` as rows of a table, and which of them are within `counts`."""
    there = columns < counts[:, None]
    return torch.where(there, starts[:, None] + columns, 0), there


def _share(boxes: Tensor, around: Tensor) -> Tensor:
    """Share of the area of `boxes` that is inside boxes `around`."""
    common = torch.minimum(boxes[..., 2:], around[..., 2:]) - torch.maximum(boxes[..., :2], around[..., :2])
    area = (boxes[..., 2:] - boxes[..., :2]).clamp(min=0).prod(-1)
    return torch.where(area > 0, common.clamp(min=0).prod(-1) / area, 0.0)


def _match_cells(overlap: Tensor, counts: Tensor, crowd: Tensor, left_out: Tensor) -> tuple[Tensor, Tensor]:
    """Match the detections of c cells one rank after the other.

    Args:
        overlap: float64 [c, D, G], -1 where there is no object; cells with more detections come first.
        counts: int64 [c], detections.
        crowd: bool [c, G].
        left_out: bool [A, c, G].

    Returns:
        matched, ignored: bool [A, c, T, D].
    """
    least = torch.tensor(IOUS, dtype=torch.float64).clamp(max=1 - 1e-10)[:, None]
    cells, ranks, slots = overlap.shape
    taken = torch.zeros(len(left_out), cells, len(IOUS), slots, dtype=torch.bool)
    matched = torch.zeros(len(left_out), cells, len(IOUS), ranks, dtype=torch.bool)
    ignored = matched.clone()
    for rank in range(ranks):
        n = int((counts > rank).sum())
        covered = overlap[:n, rank, None]  # [n, 1, G]
        free = (covered >= least) & (~taken[:, :n] | crowd[:n, None])  # [A, n, T, G]
        apart = left_out[:, :n, None]
        counted = free & ~apart
        free = torch.where(counted.any(-1, keepdim=True), counted, free)
        # Of equal ones the last, as in pycocotools.
        choice = slots - 1 - torch.where(free, covered, -1.0).flip(-1).argmax(-1, keepdim=True)
        hit = free.any(-1)
        matched[:, :n, :, rank] = hit
        ignored[:, :n, :, rank] = hit & apart.expand_as(free).gather(-1, choice)[..., 0]
        taken[:, :n] |= torch.zeros_like(free).scatter_(-1, choice, hit[..., None])
    return matched, ignored


def _area(right: Tensor, counted: Tensor, objects: Tensor, recalls: Tensor) -> Tensor:
    """float64 [...]: mean over `recalls` of the best precision at that recall or a higher one.

    Args:
        right, counted: bool [..., n], detections in the order of their scores; `right` ones count.
        objects: number that could be found, broadcast with [..., n].
        recalls: float64 [R].
    """
    hits, number = right.double().cumsum(-1), counted.double().cumsum(-1)
    precision = (hits / number.clamp(min=1)).flip(-1).cummax(-1).values.flip(-1) if right.shape[-1] else hits
    reached = torch.searchsorted((hits / objects).contiguous(), recalls.expand(*hits.shape[:-1], -1).contiguous())
    best = torch.cat([precision, precision.new_zeros(*precision.shape[:-1], 1)], dim=-1).gather(-1, reached)
    return best.mean(-1)
