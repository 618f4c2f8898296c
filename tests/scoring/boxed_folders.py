"""Tiny folders in the VOC and COCO formats, of pictures with one red object each."""

import json
from pathlib import Path

from PIL import Image

VOC = """<annotation><filename>{name}.png</filename><object><name>dog</name><bndbox><xmin>{x0}</xmin><ymin>{y0}</ymin>
<xmax>{x1}</xmax><ymax>{y1}</ymax></bndbox></object></annotation>"""


def make(root: Path, count: int = 8) -> tuple[Path, Path, Path]:
    """Returns (VOC root, COCO instances file, folder of the COCO images); both show the same pictures."""
    for folder in ("voc/Annotations", "voc/JPEGImages"):
        (root / folder).mkdir(parents=True)
    images, boxes = [], []
    for number in range(count):
        x0, y0 = 2 + 2 * number, 3 + number
        picture = Image.new("RGB", (40, 30), (0, 0, 200))
        picture.paste((220, 20, 20), (x0, y0, x0 + 14, y0 + 12))
        picture.save(root / "voc" / "JPEGImages" / f"{number}.png")
        text = VOC.format(name=number, x0=x0 + 1, y0=y0 + 1, x1=x0 + 14, y1=y0 + 12)
        (root / "voc" / "Annotations" / f"{number}.xml").write_text(text)
        images.append({"id": number, "file_name": f"{number}.png"})
        boxes.append({"image_id": number, "bbox": [x0, y0, 14, 12], "category_id": 1})
    file = root / "instances.json"
    file.write_text(json.dumps({"images": images, "annotations": boxes}))
    return root / "voc", file, root / "voc" / "JPEGImages"
