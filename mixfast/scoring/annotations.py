"""Photographs with boxes in the two standard formats: Pascal VOC (one XML file per image) and COCO (one JSON file).

Images are stretched to squares, and their boxes with them, so that they can form batches.
"""

import json
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from mixfast.data.decoder import open_image
from mixfast.errors import DataError
from mixfast.rng import Generators
from mixfast.scoring.boxes import Objects


class Marked(NamedTuple):
    """An object in a photograph, in pixels of the file."""

    box: tuple[float, float, float, float]  # half-open
    name: str  # of its class; "" if classes are not read
    ignored: bool = False  # difficult, or a crowd
    crowd: bool = False
    area: float | None = None  # of the object in pixels; None: use the box's
    mask: Any = None  # polygons or runs as in COCO's file; None if masks are not read


class Photograph(NamedTuple):
    """An image file with its objects."""

    path: Path
    objects: list[Marked]


class Annotated(NamedTuple):
    """One image file and the boxes of its objects, in pixels of the file."""

    path: Path
    boxes: list[tuple[float, float, float, float]]  # half-open


def read_voc(root: Path, split: str | None = None, difficult: bool = True) -> list[Annotated]:
    """The boxes of a folder with Annotations/*.xml and JPEGImages/, such as VOCdevkit/VOC2007.

    Args:
        root: the folder.
        split: of the images that ImageSets/Main/<split>.txt lists; None: of all annotations.
        difficult: whether objects marked as difficult count.

    Raises:
        DataError: a folder or file that is missing or of another format.
    """
    photographs = voc_photographs(root, None if split is None else voc_list(root, split), named=False)
    return [
        Annotated(path, [item.box for item in objects if difficult or not item.ignored])
        for path, objects in photographs
    ]


def read_coco(file: Path, images: Path) -> list[Annotated]:
    """The boxes of the images that a COCO instances file lists; groups of objects ("iscrowd") are omitted.

    Args:
        file: such as annotations/instances_val2017.json.
        images: folder that holds the files named in it.

    Raises:
        DataError: the file is missing or of another format.
    """
    photographs = coco_photographs(file, images, named=False)
    return [Annotated(path, [item.box for item in objects if not item.crowd]) for path, objects in photographs]


def voc_photographs(root: Path, stems: Iterable[str] | None = None, named: bool = True) -> list[Photograph]:
    """The photographs of a folder with Annotations/*.xml and JPEGImages/, such as VOCdevkit/VOC2007.

    VOC counts pixels from 1 and includes the last one; boxes here start one lower and end where VOC's end.

    Args:
        root: the folder.
        stems: of the files' names; None: all that have annotations.
        named: whether every object must have a class.

    Raises:
        DataError: a folder or file that is missing or of another format.
    """
    folder = root / "Annotations"
    chosen = sorted(path.stem for path in folder.glob("*.xml")) if stems is None else list(stems)
    if not chosen:
        raise DataError(f"{folder}: no annotation. Expected ROOT/Annotations/*.xml beside ROOT/JPEGImages/*.jpg.")
    return [_voc_file(folder / f"{stem}.xml", root / "JPEGImages", named) for stem in chosen]


def voc_list(root: Path, split: str) -> list[str]:
    """The stems of the images that ImageSets/Main/<split>.txt lists.

    Raises:
        DataError: there is no such split, or it is empty.
    """
    file = root / "ImageSets" / "Main" / f"{split}.txt"
    if not file.is_file():
        splits = sorted(path.stem for path in file.parent.glob("*.txt"))
        raise DataError(f"{file} is not there; splits found: {', '.join(splits[:8]) or 'none'}.")
    stems = [line.split()[0] for line in file.read_text(encoding="utf-8").splitlines() if line.strip()]
    if not stems:
        raise DataError(f"{file} lists no image.")
    return stems


def _voc_file(path: Path, images: Path, named: bool) -> Photograph:
    try:
        tree = ElementTree.parse(path).getroot()
        objects = []
        for item in tree.iter("object"):
            x0, y0, x1, y1 = (float(item.findtext(f"bndbox/{key}", "")) for key in ("xmin", "ymin", "xmax", "ymax"))
            name = item.findtext("name", "").strip()
            if named and not name:
                raise ValueError("an object without a name")
            objects.append(Marked((x0 - 1, y0 - 1, x1, y1), name, item.findtext("difficult", "0").strip() == "1"))
    except (OSError, ElementTree.ParseError, ValueError) as error:
        raise DataError(f"{path} cannot be read as a VOC annotation: {error}.") from error
    return Photograph(images / tree.findtext("filename", f"{path.stem}.jpg"), objects)


def coco_photographs(file: Path, images: Path, named: bool = True, masks: bool = False) -> list[Photograph]:
    """The photographs that a COCO instances file lists.

    Args:
        file: such as annotations/instances_val2017.json.
        images: folder that holds the files named in it.
        named: whether every object must have a class.
        masks: whether every object must have a mask.

    Raises:
        DataError: the file is missing or of another format.
    """
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
        names = {item["id"]: str(item["name"]) for item in content["categories"]} if named else {}
        by_id = {item["id"]: Photograph(images / item["file_name"], []) for item in content["images"]}
        for item in content["annotations"]:
            x, y, width, height = (float(value) for value in item["bbox"])
            crowd = bool(item.get("iscrowd", 0))
            area = float(item["area"]) if "area" in item else None
            name = names[item["category_id"]] if named else ""
            mask = item["segmentation"] if masks else None
            box = (x, y, x + width, y + height)
            by_id[item["image_id"]].objects.append(Marked(box, name, crowd, crowd, area, mask))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"{file} cannot be read as COCO instances: {type(error).__name__} {error}.") from error
    if not by_id:
        raise DataError(f"{file} lists no image.")
    return list(by_id.values())


def split_off(
    entries: Sequence[Annotated], first: int, second: int, seed: int
) -> tuple[list[Annotated], list[Annotated]]:
    """Two disjoint random parts of the entries with objects: at most `first` images, and at most `second` others.

    The order follows from `seed`. With fewer than `first + second` images, both parts shrink in proportion.

    Raises:
        DataError: fewer than two images with objects.
    """
    entries = sorted((entry for entry in entries if entry.boxes), key=lambda entry: entry.path)
    if len(entries) < 2:
        raise DataError(
            f"annotations: at least 2 images with objects are needed, one to choose the map on and one to score; "
            f"got {len(entries)}. Use another split or folder."
        )
    order = torch.randperm(len(entries), generator=Generators(seed)["annotations"]).tolist()
    share = min(1.0, len(entries) / (first + second))
    cut = min(max(1, int(first * share)), len(entries) - 1)
    return [entries[i] for i in order[:cut]], [entries[i] for i in order[cut : cut + second]]


def load_annotated(entries: Sequence[Annotated], size: int, name: str) -> Objects:
    """Decode the images of `entries` and resize them, with their boxes, to `size` x `size`; `name` is the set's title.

    Raises:
        DataError: an image is missing or unreadable.
    """
    images = torch.empty(len(entries), 3, size, size, dtype=torch.uint8)
    boxes = torch.zeros(len(entries), max((len(entry.boxes) for entry in entries), default=0), 4)
    for i, entry in enumerate(entries):
        images[i], (height, width) = stretched(entry.path, size)
        if entry.boxes:
            scale = torch.tensor([size / width, size / height] * 2)
            boxes[i, : len(entry.boxes)] = torch.tensor(entry.boxes) * scale
    return Objects(images, boxes, torch.full((len(entries),), -1), name)


def stretched(path: Path, size: int) -> tuple[Tensor, tuple[int, int]]:
    """An image file stretched to uint8 [3, size, size], and its original (height, width).

    A rotation noted in the file is not applied, as boxes refer to the stored pixels.

    Raises:
        DataError: the file is missing or unreadable.
    """
    import numpy as np
    from PIL import Image

    try:
        with open_image(path, size) as (_, image, (width, height)):
            small = image.convert("RGB").resize((size, size), Image.Resampling.BILINEAR)
    except Exception as error:  # Pillow raises whatever a broken file leads it to
        raise DataError(f"{path} cannot be read as an image: {error}.") from error
    return torch.from_numpy(np.array(small)).permute(2, 0, 1), (height, width)
