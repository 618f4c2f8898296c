"""Tiny folders in the VOC and COCO formats: a red square and a blue one in each picture of 60 x 40 pixels."""

import json
from itertools import groupby
from pathlib import Path
from typing import Any

from PIL import Image

_SIDE = 12
_COLOURS = {"red": (220, 20, 20), "blue": (20, 20, 220)}
_OBJECT = """<object><name>{name}</name><difficult>{difficult}</difficult><bndbox><xmin>{x0}</xmin><ymin>{y0}</ymin>
<xmax>{x1}</xmax><ymax>{y1}</ymax></bndbox></object>"""


def _objects(number: int) -> list[tuple[str, int, int, bool]]:
    """(class, x0, y0, whether it does not count) of a picture; every fourth blue one does not."""
    return [("red", number % 10, number % 28, False), ("blue", 24 + number % 20, (4 + number) % 28, number % 4 == 3)]


def _picture(path: Path, number: int) -> None:
    image = Image.new("RGB", (60, 40), (90, 120, 90))
    for name, x0, y0, _ in _objects(number):
        image.paste(_COLOURS[name], (x0, y0, x0 + _SIDE, y0 + _SIDE))
    image.save(path)


def voc(root: Path, count: int) -> Path:
    """A folder like VOC2007; three quarters of the pictures are listed as trainval, the others as test."""
    place = root / "voc"
    for folder in ("Annotations", "JPEGImages", "ImageSets/Main"):
        (place / folder).mkdir(parents=True)
    for number in range(count):
        _picture(place / "JPEGImages" / f"{number}.png", number)
        text = f"<annotation><filename>{number}.png</filename>"
        for name, x0, y0, difficult in _objects(number):
            corners = {"x0": x0 + 1, "y0": y0 + 1, "x1": x0 + _SIDE, "y1": y0 + _SIDE}
            text += _OBJECT.format(name=name, difficult=int(difficult), **corners)
        (place / "Annotations" / f"{number}.xml").write_text(text + "</annotation>")
    cut = 3 * count // 4
    for name, numbers in (("trainval", range(cut)), ("test", range(cut, count))):
        lines = [f"{number} 1\n" for number in numbers]
        (place / "ImageSets" / "Main" / f"{name}.txt").write_text("".join(lines))
    return place


def _segmentation(name: str, x0: int, y0: int) -> Any:
    """Of a red square two polygons, its halves; of a blue one runs, column by column."""
    x1, y1 = x0 + _SIDE, y0 + _SIDE
    if name == "red":
        middle = x0 + _SIDE // 2
        return [[x0, y0, middle, y0, middle, y1, x0, y1], [middle, y0, x1, y0, x1, y1, middle, y1]]
    shown = [x0 <= x < x1 and y0 <= y < y1 for x in range(60) for y in range(40)]
    counts = [len(list(run)) for _, run in groupby(shown)]
    return {"size": [40, 60], "counts": counts if not shown[0] else [0, *counts]}


def coco(root: Path, count: int) -> tuple[Path, Path]:
    """(folder of images, instances file) of the same pictures; what does not count is a crowd, and areas are 100."""
    place = root / "coco"
    place.mkdir()
    annotations = []
    for number in range(count):
        _picture(place / f"{number}.png", number)
        for name, x0, y0, crowd in _objects(number):
            about = {"image_id": number, "category_id": 7 if name == "red" else 3, "iscrowd": int(crowd), "area": 100}
            about |= {"bbox": [x0, y0, _SIDE, _SIDE], "segmentation": _segmentation(name, x0, y0)}
            annotations.append({**about, "id": len(annotations) + 1})
    content = {
        "images": [{"id": number, "file_name": f"{number}.png"} for number in range(count)],
        "categories": [{"id": 7, "name": "red"}, {"id": 3, "name": "blue"}],
        "annotations": annotations,
    }
    file = root / "instances.json"
    file.write_text(json.dumps(content))
    return place, file
