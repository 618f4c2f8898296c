"""Photographs with boxes, classes, and marks of what does not count, from Pascal VOC's and COCO's files.

Images are stretched to squares and their boxes with them, which changes no intersection over union. Boxes of VOC become
half-open as in `mixfast.scoring.annotations`. What cannot be used is left out and counted, never corrected in silence.
"""

import json
import xml.etree.ElementTree as ElementTree
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from mixfast.detection.images import LabelledImages
from mixfast.errors import DataError
from mixfast.rng import Generators
from mixfast.scoring.annotations import stretched


class Marked(NamedTuple):
    """An object in a photograph, in pixels of the file."""

    box: tuple[float, float, float, float]  # half-open
    name: str  # of its class
    ignored: bool = False  # difficult, or a crowd
    crowd: bool = False
    area: float | None = None  # None: the box's


class Photograph(NamedTuple):
    """An image file with its objects."""

    path: Path
    objects: list[Marked]


def read_voc(root: Path, names: Iterable[str] | None = None) -> list[Photograph]:
    """The photographs of a folder with Annotations/*.xml and JPEGImages/, such as VOCdevkit/VOC2007.

    Args:
        root: the folder.
        names: of the images; None: all that have annotations.

    Raises:
        DataError: a folder or file that is missing or of another format.
    """
    folder = root / "Annotations"
    stems = sorted(path.stem for path in folder.glob("*.xml")) if names is None else list(names)
    if not stems:
        raise DataError(f"{folder}: no annotation. Expected {root}/Annotations/*.xml beside {root}/JPEGImages/*.jpg.")
    return [_voc_file(folder / f"{stem}.xml", root / "JPEGImages") for stem in stems]


def voc_list(root: Path, name: str) -> list[str]:
    """The images that ImageSets/Main/<name>.txt lists.

    Raises:
        DataError: there is no such list, or it is empty.
    """
    file = root / "ImageSets" / "Main" / f"{name}.txt"
    if not file.is_file():
        known = sorted(path.stem for path in file.parent.glob("*.txt"))
        raise DataError(f"{file} is not there; lists found: {', '.join(known[:8]) or 'none'}.")
    stems = [line.split()[0] for line in file.read_text(encoding="utf-8").splitlines() if line.strip()]
    if not stems:
        raise DataError(f"{file} lists no image.")
    return stems


def _voc_file(path: Path, images: Path) -> Photograph:
    try:
        tree = ElementTree.parse(path).getroot()
        objects = []
        for item in tree.iter("object"):
            x0, y0, x1, y1 = (float(item.findtext(f"bndbox/{key}", "")) for key in ("xmin", "ymin", "xmax", "ymax"))
            name = item.findtext("name", "").strip()
            if not name:
                raise ValueError("an object without a name")
            objects.append(Marked((x0 - 1, y0 - 1, x1, y1), name, item.findtext("difficult", "0").strip() == "1"))
    except (OSError, ElementTree.ParseError, ValueError) as error:
        raise DataError(f"{path} cannot be read as a VOC annotation: {error}.") from error
    return Photograph(images / tree.findtext("filename", f"{path.stem}.jpg"), objects)


def read_coco(file: Path, images: Path) -> list[Photograph]:
    """The photographs that a COCO instances file lists.

    Args:
        file: such as annotations/instances_val2017.json.
        images: folder that holds the files named in it.

    Raises:
        DataError: the file is missing or of another format.
    """
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
        names = {item["id"]: str(item["name"]) for item in content["categories"]}
        by_id = {item["id"]: Photograph(images / item["file_name"], []) for item in content["images"]}
        for item in content["annotations"]:
            x, y, width, height = (float(value) for value in item["bbox"])
            crowd = bool(item.get("iscrowd", 0))
            area = float(item["area"]) if "area" in item else None
            marked = Marked((x, y, x + width, y + height), names[item["category_id"]], crowd, crowd, area)
            by_id[item["image_id"]].objects.append(marked)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"{file} cannot be read as COCO instances: {type(error).__name__} {error}.") from error
    if not by_id:
        raise DataError(f"{file} lists no image.")
    return list(by_id.values())


def split_off(photographs: Sequence[Photograph], most: int) -> tuple[list[Photograph], list[Photograph]]:
    """Training and test photographs: a random quarter, at most `most`, is for the test; always the same ones.

    Raises:
        DataError: fewer than two photographs.
    """
    if len(photographs) < 2:
        raise DataError(
            f"one photograph to train on and one to score are the least; got {len(photographs)}. Give a larger folder."
        )
    ordered = sorted(photographs, key=lambda photograph: photograph.path)
    order = torch.randperm(len(ordered), generator=Generators(0)["detection/test"]).tolist()
    cut = max(1, min(most, len(ordered) // 4))
    return [ordered[i] for i in order[cut:]], [ordered[i] for i in order[:cut]]


class Album:
    """Photographs of one size, decoded when they are asked for and then kept.

    Attributes:
        left_out: how many boxes of the decoded photographs were left out or cut, by reason.
    """

    def __init__(self, photographs: Sequence[Photograph], side: int, class_names: Sequence[str], name: str):
        """
        Args:
            photographs: N of them.
            side: pixels that each is stretched to, both ways.
            class_names: all that occur.
            name: of the data, for tables.
        """
        self.photographs, self.side, self.class_names, self.name = photographs, side, tuple(class_names), name
        self.left_out: Counter[str] = Counter()
        self._decoded: dict[int, tuple[Tensor, list[Marked], float]] = {}

    def take(self, index: Sequence[int]) -> LabelledImages:
        """The photographs at `index` with their boxes.

        Raises:
            DataError: an image is missing or unreadable.
        """
        entries = [self._decode(number) for number in index]
        most = max([1, *(len(objects) for _, objects, _ in entries)])
        shape = (len(entries), most)
        boxes, areas, labels = torch.zeros(*shape, 4), torch.zeros(shape), torch.full(shape, -1)
        ignored, crowd = torch.zeros(shape, dtype=torch.bool), torch.zeros(shape, dtype=torch.bool)
        number_of = {name: number for number, name in enumerate(self.class_names)}
        for row, (_, objects, _) in enumerate(entries):
            for slot, marked in enumerate(objects):
                boxes[row, slot], labels[row, slot] = torch.tensor(marked.box), number_of[marked.name]
                ignored[row, slot], crowd[row, slot] = marked.ignored, marked.crowd
                areas[row, slot] = marked.area or 0.0
        images, scale = torch.stack([image for image, _, _ in entries]), torch.tensor([s for _, _, s in entries])
        return LabelledImages(images, boxes, labels, self.class_names, self.name, ignored, crowd, areas, scale)

    def _decode(self, number: int) -> tuple[Tensor, list[Marked], float]:
        """An image [3, S, S], its usable objects in its pixels, and original pixels per pixel of area."""
        if number not in self._decoded:
            photograph = self.photographs[number]
            image, (height, width) = stretched(photograph.path, self.side)
            objects = [self._placed(marked, width, height) for marked in photograph.objects]
            usable = [marked for marked in objects if marked is not None]
            self._decoded[number] = image, usable, width * height / self.side**2
        return self._decoded[number]

    def _placed(self, marked: Marked, width: int, height: int) -> Marked | None:
        """The object in pixels of the square, or None."""
        x0, y0, x1, y1 = marked.box
        if not (x1 > x0 and y1 > y0):
            self.left_out["boxes left out, empty or inverted"] += 1
            return None
        cut = (max(x0, 0.0), max(y0, 0.0), min(x1, float(width)), min(y1, float(height)))
        if not (cut[2] > cut[0] and cut[3] > cut[1]):
            self.left_out["boxes left out, outside of their image"] += 1
            return None
        self.left_out["boxes cut at the edge of their image"] += cut != marked.box
        area = (cut[2] - cut[0]) * (cut[3] - cut[1]) if marked.area is None else marked.area
        across, down = self.side / width, self.side / height
        return marked._replace(box=(cut[0] * across, cut[1] * down, cut[2] * across, cut[3] * down), area=area)
