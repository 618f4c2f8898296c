"""Masks of objects as runs of pixels, by pycocotools: read from COCO's files, decoded, encoded, and scored.

Runs are texts in pycocotools' compressed form; they do not say the height and width of their photograph.
"""

import io
from collections.abc import Sequence
from contextlib import redirect_stdout
from typing import Any, NamedTuple

import torch
from torch import Tensor

from mixfast.errors import PlatformError

_LEAST_NUMBERS = 6  # of a polygon: three corners
_NAMES = ("ap", "ap50", "ap75", "ap_small", "ap_medium", "ap_large")  # the first of COCOeval.stats


class Masked(NamedTuple):
    """Objects of a photograph, or what was found in it."""

    height: int
    width: int
    runs: list[str]
    labels: list[int]  # from 0
    crowd: Sequence[bool] = ()  # of objects
    areas: Sequence[float] = ()  # of objects, in pixels
    scores: Sequence[float] = ()  # of what was found


def need_pycocotools(what: str) -> None:
    """Raise a PlatformError that names `what`, an option, unless pycocotools can be imported."""
    try:
        import pycocotools.mask  # noqa: F401
    except (ImportError, ValueError) as error:  # ValueError: built for another numpy
        raise PlatformError(
            f"{what} trains and scores masks, for which it needs pycocotools, which cannot be imported ({error}). Run: "
            "pip install pycocotools"
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
            polygons = [polygon for polygon in segmentation if len(polygon) >= _LEAST_NUMBERS]
            if not polygons:
                raise ValueError("no polygon of three corners or more")
            found = mask.merge(mask.frPyObjects(polygons, height, width))
        else:
            if list(segmentation["size"]) != [height, width]:
                raise ValueError(f"runs of {segmentation['size']} pixels for an image of {[height, width]}")
            plain = isinstance(segmentation["counts"], list)
            found = mask.frPyObjects(segmentation, height, width) if plain else segmentation
            mask.decode(found)  # it says if there are too many runs, or too few
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"neither polygons nor runs ({type(error).__name__} {error})") from error
    counts = found["counts"]
    return counts if isinstance(counts, str) else counts.decode("ascii")


def decoded(runs: Sequence[str], height: int, width: int) -> Tensor:
    """uint8 [n, H, W], 1 where an object is."""
    from pycocotools import mask

    if not runs:
        return torch.zeros(0, height, width, dtype=torch.uint8)
    whole = mask.decode([{"size": [height, width], "counts": counts} for counts in runs])
    return torch.from_numpy(whole).permute(2, 0, 1).contiguous()


def encoded(masks: Tensor) -> list[str]:
    """The runs of masks [n, H, W]."""
    import numpy as np
    from pycocotools import mask

    columns = np.asfortranarray(masks.to("cpu", torch.uint8).permute(1, 2, 0).numpy())
    return [found["counts"].decode("ascii") for found in mask.encode(columns)] if len(masks) else []


def mask_scores(truth: Sequence[Masked], found: Sequence[Masked], classes: Sequence[int]) -> dict[str, float]:
    """COCO's AP of masks in percent, from pycocotools: {"mask_ap", "mask_ap50" ...}; NaN where there is no object.

    Args:
        truth: the objects of N photographs.
        found: in the same photographs, with scores.
        classes: numbers of those that count.
    """
    from pycocotools.cocoeval import COCOeval

    with redirect_stdout(io.StringIO()):
        evaluation = COCOeval(_listed(truth), _listed(found), "segm")
        evaluation.params.catIds = sorted(classes)
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    stats = zip(_NAMES, evaluation.stats, strict=False)
    return {f"mask_{name}": 100 * float(value) if value >= 0 else float("nan") for name, value in stats}


def _listed(photographs: Sequence[Masked]) -> Any:
    """pycocotools' object of a set of annotations."""
    from pycocotools.coco import COCO

    annotations: list[dict[str, Any]] = []
    for image, some in enumerate(photographs, 1):
        for place, counts in enumerate(some.runs):
            about: dict[str, Any] = {"id": len(annotations) + 1, "image_id": image, "category_id": some.labels[place]}
            runs = {"size": [some.height, some.width], "counts": counts}
            if some.scores:
                about |= {"score": some.scores[place], "iscrowd": 0, "area": _area(runs)}
            else:
                about |= {"iscrowd": int(some.crowd[place]), "area": some.areas[place]}
            annotations.append({**about, "segmentation": runs})
    listed = COCO()
    listed.dataset = {
        "images": [
            {"id": image, "height": some.height, "width": some.width} for image, some in enumerate(photographs, 1)
        ],
        "categories": [{"id": label} for label in sorted({label for some in photographs for label in some.labels})],
        "annotations": annotations,
    }
    listed.createIndex()
    return listed


def _area(runs: dict[str, Any]) -> float:
    from pycocotools import mask

    return float(mask.area(runs))
