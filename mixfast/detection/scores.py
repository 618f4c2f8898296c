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

_NMS_IOU = 0.5  # IoU above which boxes of several classes are one box without a class


def scores(detections: Detections, test: LabelledImages) -> dict[str, float]:
    """Percentages: COCO's AP, AP50, AP75 and AP by size, all these without the classes too, and VOC 2007's AP."""
    truth, classes = test.truth, len(test.class_names)
    table = summary(coco(truth, detections, classes)) | voc07_summary(voc07(truth, detections, classes))
    without_classes = summary(coco(_located(truth), any_class(detections), 1))
    return table | {f"any_class_{name}": value for name, value in without_classes.items()}


def scores_of_draws(
    detections: Detections, truth: Truth, classes: int, draws: Tensor, names: set[str]
) -> dict[str, Tensor]:
    """Some of `scores` on sets of the images in which image i is there draws[r, i] times: [R] each, by name.

    Args:
        detections: in N images.
        truth: the objects of these images.
        classes: C; labels are below it.
        draws: float32 [R, N].
        names: keys of `scores`.
    """
    matches = coco_matches(truth, detections, classes)
    table = percentages(weighted(matches if "ap_small" in names else _all_sizes(matches), draws))
    if any(name.startswith("any_class") for name in names):
        located = _all_sizes(coco_matches(_located(truth), any_class(detections), 1))
        table |= {f"any_class_{name}": values for name, values in percentages(weighted(located, draws)).items()}
    if any(name.startswith("voc07") for name in names):
        voc = percentages(weighted(voc07_matches(truth, detections, classes), draws))
        table |= {f"voc07_{name}": values for name, values in voc.items()}
    return {name: values for name, values in table.items() if name in names}


def any_class(detections: Detections) -> Detections:
    """The detections as of a single class; of boxes that overlap by more than 0.5 only that with the highest score."""
    from torchvision.ops import batched_nms

    image, slot = (detections.labels >= 0).nonzero(as_tuple=True)
    selected = batched_nms(detections.boxes[image, slot], detections.scores[image, slot], image, _NMS_IOU)
    labels = torch.full_like(detections.labels, -1)
    labels[image[selected], slot[selected]] = 0
    return detections._replace(labels=labels)


def _located(truth: Truth) -> Truth:
    return truth._replace(labels=truth.labels.clamp(max=0))


def _all_sizes(matches: Matches) -> Matches:
    """The matches for objects of all sizes, without those by size."""
    true_positive, counted, objects = matches.true_positive[:1], matches.counted[:1], matches.objects[..., :1]
    return matches._replace(true_positive=true_positive, counted=counted, objects=objects)
