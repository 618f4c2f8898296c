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
_NUMBERS = 2**24  # detections times sets of images that are counted at once


class Truth(NamedTuple):
    """The objects of N images, up to M each."""

    boxes: Tensor  # float [N, M, 4]
    labels: Tensor  # int64 [N, M]; -1 for no object
    ignored: Tensor  # bool [N, M]: a detection there does not count (difficult, crowd)
    crowd: Tensor  # bool [N, M]: a group of objects; it is ignored as well
    areas: Tensor  # float [N, M] in pixels, for COCO's sizes


class Detections(NamedTuple):
    """The detections of a detector in N images, up to D boxes each."""

    boxes: Tensor  # float [N, D, 4]
    labels: Tensor  # int64 [N, D]; -1 for no detection
    scores: Tensor  # float [N, D]
    areas: Tensor  # float [N, D] in pixels, for COCO's sizes


class Matches(NamedTuple):
    """The outcome of n detections in N images, by falling score, for A sizes of objects and T thresholds."""

    image: Tensor  # int64 [n]
    label: Tensor  # int64 [n]
    right: Tensor  # bool [A, T, n]
    counted: Tensor  # bool [A, T, n]: right or wrong; others are neither
    objects: Tensor  # int64 [N, C, A]: that could be found
    recalls: Tensor  # float64: at which precision is read


def coco(truth: Truth, found: Detections, classes: int, max_detections: int = MAX_DETECTIONS) -> Tensor:
    """COCO's AP by class, size and threshold: float64 [C, 4, 10] in [0, 1]; arguments as in `coco_matches`.

    Objects of all sizes, then `SIZES`; thresholds `IOUS`. NaN where a class has no object of a size.
    """
    return weighted(coco_matches(truth, found, classes, max_detections))[0]


def coco_matches(truth: Truth, found: Detections, classes: int, max_detections: int = MAX_DETECTIONS) -> Matches:
    """COCO's matches, for objects of all sizes and then of each of `SIZES`.

    Args:
        truth: of N images.
        found: in the same images.
        classes: C; labels are below it.
        max_detections: of each class and image, those with the highest scores.
    """
    ranges = torch.tensor([(0.0, 1e10), *SIZES.values()], dtype=torch.float64)
    left_out = (truth.ignored | truth.crowd) | _outside(truth.areas.double(), ranges)  # [A, N, M]
    best = _flat(found.labels, classes, found.scores)
    best = _Flat(*(values[best.rank < max_detections] for values in best))
    matched, ignored = _match(truth, found, _flat(truth.labels, classes), best, left_out)
    far = _outside(found.areas.double(), ranges)[:, best.image, best.slot]  # [A, n]
    ignored |= ~matched & far[:, None]
    order = found.scores[best.image, best.slot].argsort(descending=True, stable=True)
    right, counted = (matched & ~ignored)[..., order], ~ignored[..., order]
    recalls = torch.arange(101, dtype=torch.float64) * 0.01
    objects = torch.stack([_count(truth.labels, ~part, classes) for part in left_out], dim=2)
    return Matches(best.image[order], best.cell[order] % classes, right, counted, objects, recalls)


def voc07(truth: Truth, found: Detections, classes: int) -> Tensor:
    """The 11-point AP of VOC 2007 by class and threshold: float64 [C, 10] in [0, 1], NaN for a class without objects.

    Boxes are half-open; their areas are those of VOC's inclusive pixels with its "+ 1". Scores are not rounded.
    """
    return weighted(voc07_matches(truth, found, classes))[0, :, 0]


def voc07_matches(truth: Truth, found: Detections, classes: int) -> Matches:
    """The matches of VOC 2007, for objects of all sizes; arguments as in `coco_matches`."""
    image, slot = (found.labels >= 0).nonzero(as_tuple=True)
    scores = found.scores[image, slot]
    order = scores.argsort(descending=True, stable=True)
    image, slot, labels = image[order], slot[order], found.labels[image[order], slot[order]]
    overlap = iou(found.boxes[image, slot].double()[:, None], truth.boxes[image].double())  # [n, M]
    overlap = torch.where(truth.labels[image] == labels[:, None], overlap, -1.0)
    left_out = truth.ignored
    if overlap.shape[1] == 0:
        overlap = overlap.new_full((len(overlap), 1), -1.0)
        left_out = left_out.new_zeros(len(left_out), 1)
    covered, which = overlap.max(dim=1)
    hit = covered > torch.tensor(IOUS, dtype=torch.float64)[:, None]  # [T, n]
    ignored = hit & left_out[image, which]
    key = image * overlap.shape[1] + which  # of the object
    number = torch.arange(len(key)).expand_as(hit)
    first = torch.full((len(IOUS), len(found.labels) * overlap.shape[1]), len(key))
    first.scatter_reduce_(1, key.expand_as(hit), torch.where(hit, number, len(key)), "amin")
    right = hit & ~ignored & (first.gather(1, key.expand_as(hit)) == number)
    recalls = torch.arange(11, dtype=torch.float64) * 0.1
    objects = _count(truth.labels, ~truth.ignored, classes)[..., None]
    return Matches(image, labels, right[None], ~ignored[None], objects, recalls)


def weighted(matches: Matches, weights: Tensor | None = None) -> Tensor:
    """AP of sets of images in which image i is there weights[r, i] times, by class, size and threshold.

    It is that of a list with copies of images side by side: boxes are matched within an image, so nothing is matched
    again. (Detections of an image with equal class and score are taken together, copy by copy they would alternate.)

    Args:
        matches: of N images.
        weights: float32 [R, N] of whole numbers; none: every image once.

    Returns:
        float64 [R, C, A, T] in [0, 1]; NaN where a set has no object.
    """
    images, classes, sizes = matches.objects.shape
    weights = torch.ones(1, images) if weights is None else weights
    if (count := max(1, _NUMBERS // max(1, len(matches.image)))) < len(weights):
        return torch.cat([weighted(matches, part) for part in weights.split(count)])
    present = (weights.double() @ matches.objects.double().flatten(1)).view(-1, classes, sizes)
    columns = weights.T.contiguous()
    table = torch.zeros(len(weights), classes, sizes, matches.right.shape[1], dtype=torch.float64)
    table[present == 0] = math.nan
    for label in matches.objects.sum(dim=(0, 2)).nonzero().flatten().tolist():
        mine = (matches.label == label).nonzero().flatten()
        times = columns[matches.image[mine]]  # [n, R]; sums of whole numbers are exact in float32, below 2^24
        for size in range(sizes):
            for threshold in range(table.shape[3]):
                right, counted = (part[size, threshold, mine] for part in (matches.right, matches.counted))
                # Recall grows at right detections, and precision falls between them: the others are only counted.
                hits = times[right].cumsum(0)
                before = torch.where(counted, right.cumsum(0) - right.long(), len(hits))  # right ones, or the last row
                number = times.new_zeros(len(hits) + 1, len(weights)).index_add_(0, before, times).cumsum(0)[:-1]
                objects = present[:, label, size]
                area = _area(hits.double(), number.double(), objects.clamp(min=1), matches.recalls)
                table[:, label, size, threshold] = torch.where(objects > 0, area, math.nan)
    return table


def summary(table: Tensor) -> dict[str, float]:
    """Percentages from `coco`'s table: {"ap", "ap50", "ap75", "ap_small", "ap_medium", "ap_large"}; NaN for no object.

    Classes without objects do not count.
    """
    return {name: values.item() for name, values in percentages(table).items()}


def voc07_summary(table: Tensor) -> dict[str, float]:
    """Percentages from `voc07`'s table: {"voc07_ap", "voc07_ap50", "voc07_ap75"}."""
    return {f"voc07_{name}": values.item() for name, values in percentages(table[:, None]).items()}


def percentages(table: Tensor) -> dict[str, Tensor]:
    """The scores of `summary` for several tables [..., C, A, T]: [...] by name, without the three sizes if A = 1."""
    every = table[..., 0, :]
    scores = {"ap": every, "ap50": every[..., :1], "ap75": every[..., 5:6]}
    scores |= {f"ap_{name}": values for name, values in zip(SIZES, table.unbind(-2)[1:], strict=False)}
    return {name: 100 * values.nanmean(dim=(-2, -1)) for name, values in scores.items()}


class _Flat(NamedTuple):
    """All boxes in one row, sorted by image and class; within a class by score, or in the given order without one."""

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
    """int64 [N, C]: the number of objects in labels [N, M] where `which` is true, by image and class."""
    image, slot = (which & (labels >= 0)).nonzero(as_tuple=True)
    return torch.bincount(image * classes + labels[image, slot], minlength=len(labels) * classes).view(-1, classes)


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


def _area(hits: Tensor, number: Tensor, objects: Tensor, recalls: Tensor) -> Tensor:
    """float64 [R]: mean over `recalls` of the best precision at that recall or a higher one; 0 beyond the last recall.

    Args:
        hits, number: float64 [K, R]: right ones, and right and wrong ones, down to each right detection.
        objects: float64 [R], that could be found.
        recalls: float64, in order.
    """
    if len(hits) == 0:
        return torch.zeros_like(objects)
    best = (hits / number.clamp(min=1)).flip(0).cummax(0).values.flip(0)
    reached = torch.searchsorted(recalls, hits / objects, right=True)  # how many of them
    return (best * reached.diff(dim=0, prepend=torch.zeros_like(reached[:1]))).sum(0) / len(recalls)
