"""VOC and COCO files become boxes in pixels, stretched with their images."""

import json
from pathlib import Path

import pytest
import torch
from PIL import Image

from mixfast.errors import DataError
from mixfast.scoring.annotations import Annotated, load_annotated, read_coco, read_voc, split_off, stretched

VOC = """<annotation><filename>{name}.png</filename><size><width>40</width><height>20</height></size>
<object><name>dog</name><difficult>0</difficult><bndbox><xmin>11</xmin><ymin>5</ymin><xmax>30</xmax><ymax>14</ymax>
</bndbox></object>
<object><name>cat</name><difficult>1</difficult><bndbox><xmin>1</xmin><ymin>1</ymin><xmax>4</xmax><ymax>2</ymax>
</bndbox></object></annotation>"""


@pytest.fixture
def voc(tmp_path: Path) -> Path:
    """Four images of 40 x 20 with a red object in columns 10 to 29 and rows 4 to 13, counted from 0."""
    for folder in ("Annotations", "JPEGImages", "ImageSets/Main"):
        (tmp_path / folder).mkdir(parents=True)
    for name in "abcd":
        image = Image.new("RGB", (40, 20), (0, 0, 255))
        image.paste((255, 0, 0), (10, 4, 30, 14))
        image.save(tmp_path / "JPEGImages" / f"{name}.png")
        (tmp_path / "Annotations" / f"{name}.xml").write_text(VOC.format(name=name))
    (tmp_path / "ImageSets" / "Main" / "val.txt").write_text("b 1\nd -1\n")
    return tmp_path


def test_voc_boxes_start_at_zero_and_end_half_open(voc: Path) -> None:
    entries = read_voc(voc)
    assert [entry.path.name for entry in entries] == ["a.png", "b.png", "c.png", "d.png"]
    assert entries[0].boxes == [(10, 4, 30, 14), (0, 0, 4, 2)]
    assert [entry.path.stem for entry in read_voc(voc, "val")] == ["b", "d"]
    assert read_voc(voc, difficult=False)[0].boxes == [(10, 4, 30, 14)]


def test_boxes_are_stretched_with_their_images(voc: Path) -> None:
    objects = load_annotated(read_voc(voc, difficult=False), 80, "voc")
    assert objects.images.shape == (4, 3, 80, 80) and objects.labels.tolist() == [-1] * 4
    assert objects.boxes[0].tolist() == [[20, 16, 60, 56]]  # 2 times in x, 4 times in y
    red = objects.images[0, 0] > 127
    rows, columns = red.any(1).nonzero().flatten(), red.any(0).nonzero().flatten()
    assert (columns[0], columns[-1], rows[0], rows[-1]) == (20, 59, 16, 55)


def test_images_with_fewer_objects_are_padded(voc: Path) -> None:
    entries = [Annotated(voc / "JPEGImages" / "a.png", []), *read_voc(voc)[:1]]
    objects = load_annotated(entries, 20, "voc")
    assert objects.boxes.tolist() == [[[0] * 4, [0] * 4], [[5, 4, 15, 14], [0, 0, 2, 2]]]


def test_coco_boxes(tmp_path: Path) -> None:
    box = [10.5, 4, 20, 10]
    content = {
        "images": [{"id": 7, "file_name": "x.png"}, {"id": 9, "file_name": "y.png"}],
        "annotations": [
            {"image_id": 9, "bbox": box, "category_id": 1, "iscrowd": 0},
            {"image_id": 9, "bbox": [0, 0, 40, 20], "category_id": 1, "iscrowd": 1},
            {"image_id": 7, "bbox": [1, 2, 3, 4], "category_id": 2},
        ],
    }
    (tmp_path / "instances.json").write_text(json.dumps(content))
    found = read_coco(tmp_path / "instances.json", tmp_path / "images")
    assert found == [
        Annotated(tmp_path / "images" / "x.png", [(1, 2, 4, 6)]),
        Annotated(tmp_path / "images" / "y.png", [(10.5, 4, 30.5, 14)]),
    ]


def test_splits_are_disjoint_and_follow_the_seed() -> None:
    entries = [Annotated(Path(f"{i:02}"), [(0.0, 0.0, 1.0, 1.0)] * (i % 5 > 0)) for i in range(25)]
    first, second = split_off(entries, 6, 10, seed=0)
    assert (len(first), len(second)) == (6, 10)
    assert not {e.path for e in first} & {e.path for e in second} and all(e.boxes for e in first + second)
    assert split_off(entries[::-1], 6, 10, seed=0) == (first, second)
    assert split_off(entries, 6, 10, seed=1) != (first, second)
    assert [len(part) for part in split_off(entries, 300, 1000, seed=0)] == [4, 16]  # 20 in the proportion 3 : 10
    assert [len(part) for part in split_off(entries[:3], 300, 1000, seed=0)] == [1, 1]
    with pytest.raises(DataError, match=r"at least 2 images with objects .* got 1"):
        split_off(entries[:2], 1, 1, seed=0)


def test_an_image_of_any_shape_becomes_a_square(voc: Path) -> None:
    image, size = stretched(voc / "JPEGImages" / "a.png", 10)
    assert image.shape == (3, 10, 10) and image.dtype == torch.uint8 and size == (20, 40)


def test_what_is_missing_or_broken_is_named(voc: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"train.txt is not there; splits found: val"):
        read_voc(voc, "train")
    with pytest.raises(DataError, match=r"no annotation\. Expected ROOT/Annotations"):
        read_voc(voc / "JPEGImages")
    (voc / "Annotations" / "a.xml").write_text("<annotation><object><bndbox/></object></annotation>")
    with pytest.raises(DataError, match=r"a.xml cannot be read as a VOC annotation"):
        read_voc(voc)
    (voc / "Annotations" / "a.xml").write_text("<annotation>")
    with pytest.raises(DataError, match=r"a.xml cannot be read as a VOC annotation"):
        read_voc(voc)
    (tmp_path / "bad.json").write_text('{"images": []}')
    with pytest.raises(DataError, match=r"bad.json cannot be read as COCO instances: KeyError 'annotations'"):
        read_coco(tmp_path / "bad.json", tmp_path)
    with pytest.raises(DataError, match=r"none.png cannot be read as an image"):
        stretched(tmp_path / "none.png", 8)
