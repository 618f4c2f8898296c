"""Scores of a detector's boxes, for the images themselves and for sets of them that a bootstrap draws."""

import torch
from torch import Tensor

from mixfast.detection.average_precision import (
    Detections,
    Matches,
    Truth,
    coco,
    coco_matches,
    percentages,
    summary,
    voc07,
    voc07_matches,
    voc07_summary,
    weighted,
)
from mixfast.detection.images import LabelledImages

_SAME = 0.5  # IoU above which boxes of several classes are one box without a class


def scores(found: Detections, test: LabelledImages) -> dict[str, float]:
    """Percentages: AP, AP50, AP75 and AP by size of COCO, the same without regard to classes, and AP of VOC 2007."""
    truth, classes = test.truth, len(test.class_names)
    table = summary(coco(truth, found, classes)) | voc07_summary(voc07(truth, found, classes))
    unnamed = summary(coco(_located(truth), any_class(found), 1))
    return table | {f"any_class_{name}": value for name, value in unnamed.items()}


def scores_of_draws(found: Detections, truth: Truth, classes: int, draws: Tensor, names: set[str]) -> dict[str, Tensor]:
    """Some of `scores` on sets of the images in which image i is there draws[r, i] times: [R] each, by name.

    Args:
        found: in N images.
        truth: of these images.
        classes: C; labels are below it.
        draws: float32 [R, N].
        names: keys of `scores`.
    """
    named = coco_matches(truth, found, classes)
    table = percentages(weighted(named if "ap_small" in names else _all_sizes(named), draws))
    if any(name.startswith("any_class") for name in names):
        located = _all_sizes(coco_matches(_located(truth), any_class(found), 1))
        table |= {f"any_class_{name}": values for name, values in percentages(weighted(located, draws)).items()}
    if any(name.startswith("voc07") for name in names):
        old = percentages(weighted(voc07_matches(truth, found, classes), draws))
        table |= {f"voc07_{name}": values for name, values in old.items()}
    return {name: values for name, values in table.items() if name in names}


def any_class(found: Detections) -> Detections:
    """The detections as of a single class; of boxes of several classes in one place the one with the highest score."""
    from torchvision.ops import batched_nms

    image, slot = (found.labels >= 0).nonzero(as_tuple=True)
    kept = batched_nms(found.boxes[image, slot], found.scores[image, slot], image, _SAME)
    labels = torch.full_like(found.labels, -1)
    labels[image[kept], slot[kept]] = 0
    return found._replace(labels=labels)


def _located(truth: Truth) -> Truth:
    return truth._replace(labels=truth.labels.clamp(max=0))


def _all_sizes(matches: Matches) -> Matches:
    """Without those for objects of one size."""
    right, counted, objects = matches.right[:1], matches.counted[:1], matches.objects[..., :1]
    return matches._replace(right=right, counted=counted, objects=objects)
