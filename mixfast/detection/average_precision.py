"""Average precision of detections in two conventions, which are never mixed up: COCO's and that of VOC 2007.

         precision at        thresholds of IoU    a detection is matched to
coco     101 recalls         .50, .55 ... .95     the unmatched object with the highest IoU; ignored objects last
voc07    11 recalls          .50, .55 ... .95     the object with the highest IoU; false if it was matched before

COCO: Lin et al. 2014, as pycocotools 2 computes it: detections with the highest scores of each class and image,
matched in the order of their scores at IoU >= threshold; an object marked as a crowd takes any number of
detections by their share inside it. VOC 2007: Everingham et al. 2010, matched at IoU > threshold; the mean over ten
thresholds is the "AP" of MoCo's tables. In both, a match of an ignored object is neither a true nor a false positive.
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
_CELLS = 1024  # pairs of image and class that are matched at once
_NUMBERS = 2**24  # detections times sets of images that are counted at once


class Truth(NamedTuple):
    """The objects of N images, up to M each."""

    boxes: Tensor  # float [N, M, 4]
    labels: Tensor  # int64 [N, M]; -1 for no object
    ignored: Tensor  # bool [N, M]: a detection of it does not count (difficult, crowd)
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
    true_positive: Tensor  # bool [A, T, n]
    counted: Tensor  # bool [A, T, n]: true or false positive; the others are ignored
    objects: Tensor  # int64 [N, C, A]: number of objects that are not ignored
    recalls: Tensor  # float64: at which precision is read


def coco(truth: Truth, detections: Detections, classes: int, max_detections: int = MAX_DETECTIONS) -> Tensor:
    """COCO's AP by class, size and threshold: float64 [C, 4, 10] in [0, 1]; arguments as in `coco_matches`.

    Objects of all sizes, then `SIZES`; thresholds `IOUS`. NaN where a class has no object of a size.
    """
    return weighted(coco_matches(truth, detections, classes, max_detections))[0]


def coco_matches(truth: Truth, detections: Detections, classes: int, max_detections: int = MAX_DETECTIONS) -> Matches:
    """COCO's matches, for objects of all sizes and then of each of `SIZES`.

    Args:
        truth: of N images.
        detections: in the same images.
        classes: C; labels are below it.
        max_detections: of each class and image; those with the highest scores are used.
    """
    ranges = torch.tensor([(0.0, 1e10), *SIZES.values()], dtype=torch.float64)
    ignored_objects = (truth.ignored | truth.crowd) | _outside(truth.areas.double(), ranges)  # [A, N, M]
    candidates = _flat(detections.labels, classes, detections.scores)
    candidates = _Flat(*(values[candidates.rank < max_detections] for values in candidates))
    matched, ignored = _match(truth, detections, _flat(truth.labels, classes), candidates, ignored_objects)
    out_of_range = _outside(detections.areas.double(), ranges)[:, candidates.image, candidates.slot]  # [A, n]
    ignored |= ~matched & out_of_range[:, None]
    order = detections.scores[candidates.image, candidates.slot].argsort(descending=True, stable=True)
    true_positive, counted = (matched & ~ignored)[..., order], ~ignored[..., order]
    recalls = torch.arange(101, dtype=torch.float64) * 0.01
    objects = torch.stack([_count(truth.labels, ~part, classes) for part in ignored_objects], dim=2)
    return Matches(candidates.image[order], candidates.cell[order] % classes, true_positive, counted, objects, recalls)


def voc07(truth: Truth, detections: Detections, classes: int) -> Tensor:
    """The 11-point AP of VOC 2007 by class and threshold: float64 [C, 10] in [0, 1], NaN for a class without objects.

    Boxes are half-open; their areas are those of VOC's inclusive pixels with its "+ 1". Scores are not rounded.
    """
    return weighted(voc07_matches(truth, detections, classes))[0, :, 0]


def voc07_matches(truth: Truth, detections: Detections, classes: int) -> Matches:
    """The matches of VOC 2007, for objects of all sizes; arguments as in `coco_matches`."""
    image, slot = (detections.labels >= 0).nonzero(as_tuple=True)
    scores = detections.scores[image, slot]
    order = scores.argsort(descending=True, stable=True)
    image, slot, labels = image[order], slot[order], detections.labels[image[order], slot[order]]
    overlap = iou(detections.boxes[image, slot].double()[:, None], truth.boxes[image].double())  # [n, M]
    overlap = torch.where(truth.labels[image] == labels[:, None], overlap, -1.0)
    ignored_objects = truth.ignored
    if overlap.shape[1] == 0:
        overlap = overlap.new_full((len(overlap), 1), -1.0)
        ignored_objects = ignored_objects.new_zeros(len(ignored_objects), 1)
    best_overlap, object_slot = overlap.max(dim=1)
    hit = best_overlap > torch.tensor(IOUS, dtype=torch.float64)[:, None]  # [T, n]
    ignored = hit & ignored_objects[image, object_slot]
    key = image * overlap.shape[1] + object_slot  # of the object
    number = torch.arange(len(key)).expand_as(hit)
    first_match = torch.full((len(IOUS), len(detections.labels) * overlap.shape[1]), len(key))
    first_match.scatter_reduce_(1, key.expand_as(hit), torch.where(hit, number, len(key)), "amin")
    true_positive = hit & ~ignored & (first_match.gather(1, key.expand_as(hit)) == number)
    recalls = torch.arange(11, dtype=torch.float64) * 0.1
    objects = _count(truth.labels, ~truth.ignored, classes)[..., None]
    return Matches(image, labels, true_positive[None], ~ignored[None], objects, recalls)


def weighted(matches: Matches, weights: Tensor | None = None) -> Tensor:
    """AP of sets of images in which image i is there weights[r, i] times, by class, size and threshold.

    It is the AP of a data set with copies of images: boxes are matched within an image, so the matches stay valid.
    (Equal scores are ordered detection by detection; in a list of copies they would alternate, copy by copy.)

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
    table = torch.zeros(len(weights), classes, sizes, matches.true_positive.shape[1], dtype=torch.float64)
    table[present == 0] = math.nan
    for label in matches.objects.sum(dim=(0, 2)).nonzero().flatten().tolist():
        of_class = (matches.label == label).nonzero().flatten()
        copies = columns[matches.image[of_class]]  # [n, R]; sums of whole numbers are exact in float32, below 2^24
        for size in range(sizes):
            for threshold in range(table.shape[3]):
                true_positive = matches.true_positive[size, threshold, of_class]
                counted = matches.counted[size, threshold, of_class]
                # Precision is read at true positives, where recall grows; of false positives only the number matters.
                hits = copies[true_positive].cumsum(0)
                # of each detection: number of true positives before it; of an ignored one the last row, which is cut
                before = torch.where(counted, true_positive.cumsum(0) - true_positive.long(), len(hits))
                number = copies.new_zeros(len(hits) + 1, len(weights)).index_add_(0, before, copies).cumsum(0)[:-1]
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
    all_sizes = table[..., 0, :]
    scores = {"ap": all_sizes, "ap50": all_sizes[..., :1], "ap75": all_sizes[..., 5:6]}
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


def _count(labels: Tensor, selected: Tensor, classes: int) -> Tensor:
    """int64 [N, C]: the number of objects in labels [N, M] where `selected` is true, by image and class."""
    image, slot = (selected & (labels >= 0)).nonzero(as_tuple=True)
    return torch.bincount(image * classes + labels[image, slot], minlength=len(labels) * classes).view(-1, classes)


def _outside(areas: Tensor, ranges: Tensor) -> Tensor:
    """bool [A, ...]: areas [...] that are not within each of ranges [A, 2], ends included."""
    low, high = ranges.view(-1, 2, *[1] * areas.dim()).unbind(1)
    return (areas < low) | (areas > high)


def _match(
    truth: Truth, detections: Detections, objects: _Flat, candidates: _Flat, ignored_objects: Tensor
) -> tuple[Tensor, Tensor]:
    """Which of the candidates match an object, and which of them an ignored object: bool [A, T, n] both."""
    shape = (len(ignored_objects), len(IOUS), len(candidates.cell))
    matched, ignored = torch.zeros(shape, dtype=torch.bool), torch.zeros(shape, dtype=torch.bool)
    cells, counts = candidates.cell.unique_consecutive(return_counts=True)
    starts = counts.cumsum(0) - counts
    first, end = (torch.searchsorted(objects.cell, cells, right=right) for right in (False, True))  # of each cell
    order = counts.argsort(descending=True, stable=True)
    order = order[(end > first)[order]]  # cells with objects
    for part in order.split(_CELLS) if len(order) else ():
        columns, slots = torch.arange(int(counts[part[0]])), torch.arange(int((end - first)[part].max()))
        index, is_detection = _rows(starts[part], counts[part], columns)  # of detections [c, D]
        object_index, is_object = _rows(first[part], (end - first)[part], slots)  # of objects [c, G]
        image, slot = objects.image[object_index], objects.slot[object_index]
        crowd = truth.crowd[image, slot]
        boxes = detections.boxes[candidates.image[index], candidates.slot[index]].double()[:, :, None]
        object_boxes = truth.boxes[image, slot].double()[:, None]
        overlap = torch.where(crowd[:, None], _share(boxes, object_boxes), iou(boxes, object_boxes))
        overlap = torch.where(is_object[:, None], overlap, -1.0)
        hits, ignored_hits = _match_cells(overlap, counts[part], crowd, ignored_objects[:, image, slot])
        matched[:, :, index[is_detection]] = hits.transpose(1, 2)[:, :, is_detection]
        ignored[:, :, index[is_detection]] = ignored_hits.transpose(1, 2)[:, :, is_detection]
    return matched, ignored


def _rows(starts: Tensor, counts: Tensor, columns: Tensor) -> tuple[Tensor, Tensor]:
    """Consecutive indices from `starts` as rows of a table, and which of them are within `counts`."""
    valid = columns < counts[:, None]
    return torch.where(valid, starts[:, None] + columns, 0), valid


def _share(boxes: Tensor, around: Tensor) -> Tensor:
    """Share of the area of `boxes` that is inside boxes `around`."""
    common = torch.minimum(boxes[..., 2:], around[..., 2:]) - torch.maximum(boxes[..., :2], around[..., :2])
    area = (boxes[..., 2:] - boxes[..., :2]).clamp(min=0).prod(-1)
    return torch.where(area > 0, common.clamp(min=0).prod(-1) / area, 0.0)


def _match_cells(overlap: Tensor, counts: Tensor, crowd: Tensor, ignored_objects: Tensor) -> tuple[Tensor, Tensor]:
    """Match the detections of c cells one rank after the other.

    Args:
        overlap: float64 [c, D, G], -1 where there is no object; cells with more detections come first.
        counts: int64 [c], detections.
        crowd: bool [c, G].
        ignored_objects: bool [A, c, G].

    Returns:
        matched, ignored: bool [A, c, T, D].
    """
    least = torch.tensor(IOUS, dtype=torch.float64).clamp(max=1 - 1e-10)[:, None]
    cells, ranks, slots = overlap.shape
    occupied = torch.zeros(len(ignored_objects), cells, len(IOUS), slots, dtype=torch.bool)
    matched = torch.zeros(len(ignored_objects), cells, len(IOUS), ranks, dtype=torch.bool)
    ignored = matched.clone()
    for rank in range(ranks):
        n = int((counts > rank).sum())
        overlaps = overlap[:n, rank, None]  # [n, 1, G]
        free = (overlaps >= least) & (~occupied[:, :n] | crowd[:n, None])  # [A, n, T, G]
        is_ignored = ignored_objects[:, :n, None]
        counted = free & ~is_ignored
        free = torch.where(counted.any(-1, keepdim=True), counted, free)
        # The last of several objects with equal overlap, as in pycocotools.
        choice = slots - 1 - torch.where(free, overlaps, -1.0).flip(-1).argmax(-1, keepdim=True)
        hit = free.any(-1)
        matched[:, :n, :, rank] = hit
        ignored[:, :n, :, rank] = hit & is_ignored.expand_as(free).gather(-1, choice)[..., 0]
        occupied[:, :n] |= torch.zeros_like(free).scatter_(-1, choice, hit[..., None])
    return matched, ignored


def _area(hits: Tensor, number: Tensor, objects: Tensor, recalls: Tensor) -> Tensor:
    """float64 [R]: mean over `recalls` of the best precision at that recall or a higher one; 0 beyond the last recall.

    Args:
        hits, number: float64 [K, R]: the number of true positives, and of all positives, up to each true positive.
        objects: float64 [R], number of objects.
        recalls: float64, in order.
    """
    if len(hits) == 0:
        return torch.zeros_like(objects)
    best = (hits / number.clamp(min=1)).flip(0).cummax(0).values.flip(0)
    reached = torch.searchsorted(recalls, hits / objects, right=True)  # number of recalls reached
    return (best * reached.diff(dim=0, prepend=torch.zeros_like(reached[:1]))).sum(0) / len(recalls)
