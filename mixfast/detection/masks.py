"""Masks of objects in run-length encoding, by pycocotools: read from COCO's files, decoded, encoded, and scored.

Runs are strings in pycocotools' compressed form; they do not contain the height and width of their photograph.
"""

import io
from collections.abc import Sequence
from contextlib import redirect_stdout
from typing import Any, NamedTuple

import torch
from torch import Tensor

from mixfast.errors import PlatformError

_MIN_NUMBERS = 6  # of a polygon: three corners
_NAMES = ("ap", "ap50", "ap75", "ap_small", "ap_medium", "ap_large")  # the first of COCOeval.stats


class Masked(NamedTuple):
    """The objects of a photograph, or the detections in it."""

    height: int
    width: int
    runs: list[str]
    labels: list[int]  # from 0
    crowd: Sequence[bool] = ()  # of objects
    areas: Sequence[float] = ()  # of objects, in pixels
    scores: Sequence[float] = ()  # of detections


def need_pycocotools(option: str) -> None:
    """Raise a PlatformError that names `option`, unless pycocotools can be imported."""
    try:
        import pycocotools.mask  # noqa: F401
    except (ImportError, ValueError) as error:  # ValueError: built for another numpy
        raise PlatformError(
            f"{option} trains and scores masks, for which it needs pycocotools, which cannot be imported ({error}). "
            "Run: pip install pycocotools"
        ) from error


def runs_of(segmentation: Any, height: int, width: int) -> str:
    """The runs of a mask as a COCO file has it.

    Args:
        segmentation: a list of polygons [x0, y0, x1, y1 ...], which together are the object, or an object with runs,
            compressed or not, and their size.
        height, width: of the photograph.

    Raises:
        ValueError: it is none of these, or of another size.
    """
    from pycocotools import mask

    try:
        if isinstance(segmentation, list):
            polygons = [polygon for polygon in segmentation if len(polygon) >= _MIN_NUMBERS]
            if not polygons:
                raise ValueError("no polygon of three corners or more")
            encoding = mask.merge(mask.frPyObjects(polygons, height, width))
        else:
            if list(segmentation["size"]) != [height, width]:
                raise ValueError(f"runs of {segmentation['size']} pixels for an image of {[height, width]}")
            uncompressed = isinstance(segmentation["counts"], list)
            encoding = mask.frPyObjects(segmentation, height, width) if uncompressed else segmentation
            mask.decode(encoding)  # raises an error if there are too many runs, or too few
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"neither polygons nor runs ({type(error).__name__} {error})") from error
    counts = encoding["counts"]
    return counts if isinstance(counts, str) else counts.decode("ascii")


def decoded(runs: Sequence[str], height: int, width: int) -> Tensor:
    """uint8 [n, H, W], 1 where an object is."""
    from pycocotools import mask

    if not runs:
        return torch.zeros(0, height, width, dtype=torch.uint8)
    pixels = mask.decode([{"size": [height, width], "counts": counts} for counts in runs])
    return torch.from_numpy(pixels).permute(2, 0, 1).contiguous()


def encoded(masks: Tensor) -> list[str]:
    """The runs of masks [n, H, W]."""
    import numpy as np
    from pycocotools import mask

    columns = np.asfortranarray(masks.to("cpu", torch.uint8).permute(1, 2, 0).numpy())
    return [encoding["counts"].decode("ascii") for encoding in mask.encode(columns)] if len(masks) else []


def mask_scores(truth: Sequence[Masked], detections: Sequence[Masked], classes: Sequence[int]) -> dict[str, float]:
    """COCO's AP of masks in percent, from pycocotools: {"mask_ap", "mask_ap50" ...}; NaN where there is no object.

    Args:
        truth: the objects of N photographs.
        detections: in the same photographs, with scores.
        classes: numbers of the classes that are scored.
    """
    from pycocotools.cocoeval import COCOeval

    with redirect_stdout(io.StringIO()):
        evaluation = COCOeval(_coco_object(truth), _coco_object(detections), "segm")
        evaluation.params.catIds = sorted(classes)
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    stats = zip(_NAMES, evaluation.stats, strict=False)
    return {f"mask_{name}": 100 * float(value) if value >= 0 else float("nan") for name, value in stats}


def _coco_object(photographs: Sequence[Masked]) -> Any:
    """pycocotools' object of a set of annotations."""
    from pycocotools.coco import COCO

    annotations: list[dict[str, Any]] = []
    for image, photograph in enumerate(photographs, 1):
        for number, counts in enumerate(photograph.runs):
            label = photograph.labels[number]
            annotation: dict[str, Any] = {"id": len(annotations) + 1, "image_id": image, "category_id": label}
            runs = {"size": [photograph.height, photograph.width], "counts": counts}
            if photograph.scores:
                annotation |= {"score": photograph.scores[number], "iscrowd": 0, "area": _area(runs)}
            else:
                annotation |= {"iscrowd": int(photograph.crowd[number]), "area": photograph.areas[number]}
            annotations.append({**annotation, "segmentation": runs})
    coco = COCO()
    coco.dataset = {
        "images": [
            {"id": image, "height": photograph.height, "width": photograph.width}
            for image, photograph in enumerate(photographs, 1)
        ],
        "categories": [{"id": label} for label in sorted({label for entry in photographs for label in entry.labels})],
        "annotations": annotations,
    }
    coco.createIndex()
    return coco


def _area(runs: dict[str, Any]) -> float:
    from pycocotools import mask

    return float(mask.area(runs))
