"""Scores of maps against the boxes of objects: a number per image, or a curve over thresholds (docs/localisation.md).

Maps are [N, H, W], at least 0, at the size of the images; their largest value may be anything. Boxes are [N, M, 4] as
in boxes.py. Results are shares, not percent.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from mixfast.scoring.boxes import distance, inside, iou, present
from mixfast.scoring.labelling import connected_components, label_components

THRESHOLDS = 50  # shares 0, 0.02, ... 0.98 of a map's maximum
DELTAS = (0.3, 0.5, 0.7)  # smallest intersections over union of a correct box, in MaxBoxAccV2
BINS = 1000  # bins of a map's values, for PxAP
HITS_AT = (1, 3, 5)  # numbers of peaks k of hit@k
_PEAK_RADIUS = 1 / 8  # as a share of the longer side: no two peaks are closer than this


class Pointing(NamedTuple):
    """Result of the pointing game by image, bool [N] each."""

    hit: Tensor  # all pixels with the maximum are on an object
    tie: Tensor  # some pixels with the maximum are on an object, others are not


class BoxCurves(NamedTuple):
    """float32 [N, T] each: the best IoU with any object, by threshold."""

    largest: Tensor  # of the box around the largest component (MaxBoxAcc, CorLoc)
    any: Tensor  # of the boxes around all components (MaxBoxAccV2)


class PixelCounts(NamedTuple):
    """float32 [N, BINS] each: the number of pixels with a value in each bin, from low to high."""

    on: Tensor  # pixels on the object
    off: Tensor  # pixels off the object


def pointing(maps: Tensor, boxes: Tensor, tolerance: float = 0.0) -> Pointing:
    """The pointing game (Zhang et al. 2016), for maps without a class: a maximum on any object is a hit.

    Args:
        maps: [N, H, W].
        boxes: [N, M, 4].
        tolerance: pixels by which a maximum may miss the object; 15 on full-size photographs in the literature.
    """
    highest = maps == maps.amax(dim=(1, 2), keepdim=True)
    on_object = (distance(boxes, (maps.shape[1], maps.shape[2])) <= tolerance).any(dim=1)
    is_hit = (~highest | on_object).all(dim=2).all(dim=1)
    return Pointing(is_hit, ~is_hit & (highest & on_object).any(dim=2).any(dim=1))


def energy(maps: Tensor, boxes: Tensor) -> Tensor:
    """Energy-based pointing (Score-CAM, Wang et al. 2020): share of a map's sum that is on objects, float32 [N].

    A map that is 0 everywhere counts as uniform: its score is the objects' share of the area.

    Args:
        maps: [N, H, W], at least 0.
        boxes: [N, M, 4] as (x0, y0, x1, y1) in pixels; those without area do not count.
    """
    on_object = inside(boxes, (maps.shape[1], maps.shape[2])).any(dim=1)
    maps = torch.where(maps.sum(dim=(1, 2), keepdim=True) > 0, maps, torch.ones_like(maps))
    return (maps * on_object).sum(dim=(1, 2)) / maps.sum(dim=(1, 2))


def box_curves(maps: Tensor, boxes: Tensor, thresholds: int = THRESHOLDS) -> BoxCurves:
    """IoU of the boxes around {map >= share of its maximum} with the objects (Choe et al. 2020), by threshold.

    Pixels that touch at a corner are connected. Of components of equal area the first in reading order counts.

    Args:
        maps: [N, H, W].
        boxes: [N, M, 4].
        thresholds: T; the shares are 0, 1/T, ... (T-1)/T.
    """
    count, height, width = maps.shape
    shares = torch.arange(thresholds, dtype=torch.float32, device=maps.device) / thresholds
    levels = maps.amax(dim=(1, 2), keepdim=True) * shares[:, None, None, None]  # [T, N, 1, 1]
    components = connected_components((maps >= levels).view(-1, height, width))
    best = iou(components.box[:, None].float(), boxes[components.mask % count]).amax(dim=1)
    curve = torch.zeros(thresholds * count, dtype=torch.float32, device=maps.device)
    anywhere = curve.scatter_reduce(0, components.mask, best, "amax")
    # The largest key of a mask is that of its largest component, the first of equal ones: area, then order in the list.
    order = len(components.area) - torch.arange(len(components.area), device=maps.device)
    key = components.area * (len(components.area) + 1) + order
    largest_key = key.new_zeros(thresholds * count).scatter_reduce(0, components.mask, key, "amax")
    chosen = key == largest_key[components.mask]
    largest = curve.scatter(0, components.mask[chosen], best[chosen])
    return BoxCurves(*(c.view(thresholds, count).T.contiguous() for c in (largest, anywhere)))


def pixel_counts(maps: Tensor, masks: Tensor, bins: int = BINS) -> PixelCounts:
    """Histograms of the map's values, as shares of its maximum, on and off the object.

    Args:
        maps: [N, H, W], at least 0.
        masks: bool [N, H, W].
        bins: number of bins, of equal width over [0, 1]; the last one holds the maximum.
    """
    top = maps.amax(dim=(1, 2), keepdim=True)
    shares = torch.where(top > 0, maps / top, 1.0)
    bin_index = (shares * bins).long().clamp(max=bins - 1).flatten(1)
    counts = torch.zeros(len(maps), bins, dtype=torch.float32, device=maps.device)
    on = masks.flatten(1).float()
    return PixelCounts(counts.scatter_add(1, bin_index, on), counts.scatter_add(1, bin_index, 1 - on))


def average_precision(on: Tensor, off: Tensor) -> Tensor:
    """PxAP (Choe et al. 2020): area under precision over recall of pixels, all thresholds, [...].

    Args:
        on, off: pixels per bin of value, [..., BINS], of one image or summed over images (PxAP pools all pixels).
    """
    true_positives, false_positives = on.flip(-1).cumsum(-1), off.flip(-1).cumsum(-1)
    precision = true_positives / (true_positives + false_positives).clamp(min=1)
    recall = true_positives / true_positives[..., -1:].clamp(min=1)
    return (precision * recall.diff(prepend=torch.zeros_like(recall[..., :1]))).sum(-1)


def object_hits(maps: Tensor, boxes: Tensor, ks: tuple[int, ...] = HITS_AT) -> Tensor:
    """Share of an image's objects that its k highest peaks point at, float32 [N, len(ks)].

    A peak is a connected set of pixels with the largest remaining value. It hits every object that it touches, unless
    it touches the background. Then its pixels are removed, and all within an eighth of the longer side around its first
    pixel. Of equal peaks those on the background come first, so that k = 1 is the pointing game for one object.

    Args:
        maps: [N, H, W].
        boxes: [N, M, 4] as (x0, y0, x1, y1) in pixels; those without area do not count.
        ks: numbers of peaks.
    """
    height, width = maps.shape[1:]
    masks = inside(boxes, (height, width))  # [N, M, H, W]
    background = ~masks.any(dim=1)
    hit = torch.zeros(boxes.shape[:2], dtype=torch.bool, device=maps.device)
    remaining = maps.clone()
    row, column = torch.arange(height, device=maps.device)[:, None], torch.arange(width, device=maps.device)
    shares = []
    for peak in range(1, max(ks) + 1):
        top = remaining.amax(dim=(1, 2), keepdim=True)
        highest = (remaining == top) & (top > -torch.inf)
        first_pixel = (highest.to(torch.uint8) + (highest & background)).flatten(1).max(dim=1).indices
        parts = label_components(highest)
        peak_pixels = parts == parts.flatten(1).gather(1, first_pixel[:, None])[:, :, None]
        peak_pixels &= highest
        valid = ~(peak_pixels & background).flatten(1).any(dim=1)
        hit |= (masks & peak_pixels[:, None]).flatten(2).any(dim=2) & valid[:, None]
        y, x = (first_pixel // width)[:, None, None], (first_pixel % width)[:, None, None]
        distances = torch.hypot((row - y).float(), (column - x).float())
        remaining = remaining.masked_fill(peak_pixels | (distances <= _PEAK_RADIUS * max(height, width)), -torch.inf)
        if peak in ks:
            shares.append(hit.sum(1) / present(boxes).sum(1).clamp(min=1))
    return torch.stack(shares, dim=1)
