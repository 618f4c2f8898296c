"""VOC and COCO files become labelled images; what cannot be used is left out and counted."""

import json
from pathlib import Path

import pytest
import torch
from PIL import Image

from mixfast.detection.photographs import Album, split_off
from mixfast.errors import DataError
from mixfast.scoring.annotations import Photograph, coco_photographs, voc_list, voc_photographs
from tests.detection.annotated import coco, voc


def test_voc_keeps_classes_and_the_difficult_mark(tmp_path: Path) -> None:
    root = voc(tmp_path, 4)
    photographs = voc_photographs(root)
    assert [photograph.path.name for photograph in photographs] == [f"{n}.png" for n in range(4)]
    assert [photograph.path.name for photograph in voc_photographs(root, ["3", "1"])] == ["3.png", "1.png"]
    first = photographs[0].objects
    assert [(marked.box, marked.name, marked.ignored, marked.crowd) for marked in first] == [
        ((0.0, 0.0, 12.0, 12.0), "red", False, False),
        ((24.0, 4.0, 36.0, 16.0), "blue", False, False),
    ]
    assert [marked.ignored for marked in photographs[3].objects] == [False, True]
    assert voc_list(root, "trainval") == ["0", "1", "2"] and voc_list(root, "test") == ["3"]


def test_coco_keeps_classes_crowds_and_areas(tmp_path: Path) -> None:
    images, file = coco(tmp_path, 4)
    photographs = coco_photographs(file, images)
    marked = photographs[3].objects[1]
    assert (marked.name, marked.ignored, marked.crowd, marked.area) == ("blue", True, True, 100.0)
    same = voc_photographs(voc(tmp_path, 4))
    assert [[m.box for m in p.objects] for p in photographs] == [[m.box for m in p.objects] for p in same]


def test_an_album_stretches_boxes_with_their_images(tmp_path: Path) -> None:
    images, file = coco(tmp_path, 4)  # 60 x 40 pixels
    album = Album(coco_photographs(file, images), 120, ["blue", "red"], "coco")
    made = album.take([0, 3])
    assert made.images.shape == (2, 3, 120, 120) and made.boxes.shape == (2, 2, 4) and made.name == "coco"
    assert made.boxes[0].tolist() == [[0, 0, 24, 36], [48, 12, 72, 48]]  # 2 times in x, 3 times in y
    assert made.labels.tolist() == [[1, 0], [1, 0]] and made.crowd.tolist() == [[False, False], [False, True]]
    assert torch.equal(made.ignored, made.crowd) and made.areas.tolist() == [[100.0, 100.0]] * 2
    torch.testing.assert_close(made.scale, torch.tensor([1 / 6, 1 / 6]))  # pixels of the file per pixel
    found = made.detections(made.boxes, made.labels, torch.ones(2, 2))
    torch.testing.assert_close(found.areas, torch.full((2, 2), 144.0))
    red = made.images[0, 0] > 155
    assert red.any(1).nonzero().max() == 35 and red.any(0).nonzero().max() == 23
    assert not album.left_out.total()


def test_boxes_that_cannot_be_used_are_counted(tmp_path: Path) -> None:
    picture = tmp_path / "0.png"
    Image.new("RGB", (60, 40)).save(picture)
    images = [{"id": 0, "file_name": "0.png"}]
    boxes = [[10, 10, 0, 5], [30, 10, -5, 5], [70, 10, 5, 5], [-20, 1, 5, 5], [50, 30, 30, 30], [float("nan"), 1, 5, 5]]
    categories = [{"id": 1, "name": "red"}]
    annotations = [{"image_id": 0, "category_id": 1, "bbox": box} for box in [*boxes, [1, 1, 4, 4]]]
    file = tmp_path / "instances.json"
    file.write_text(json.dumps({"images": images, "categories": categories, "annotations": annotations}))
    album = Album(coco_photographs(file, tmp_path), 120, ["red"], "coco")
    made = album.take([0])
    album.take([0])  # a photograph counts once
    assert made.boxes[0].tolist() == [[100, 90, 120, 120], [2, 3, 10, 15]] and made.areas[0].tolist() == [100, 16]
    assert dict(album.left_out) == {
        "boxes left out, empty or inverted": 3,
        "boxes left out, outside of their image": 2,
        "boxes cut at the edge of their image": 1,
    }


def test_a_quarter_is_scored_and_never_trained_on() -> None:
    photographs = [Photograph(Path(f"{n:02}"), []) for n in range(20)]
    train, test = split_off(photographs, 300)
    assert len(train) == 15 and len(test) == 5 and sorted(train + test) == photographs
    assert split_off(photographs[::-1], 300) == (train, test) and len(split_off(photographs, 2)[1]) == 2
    with pytest.raises(DataError, match=r"one to train on and one to score; got 1"):
        split_off(photographs[:1], 300)


def test_what_is_missing_or_broken_is_named(tmp_path: Path) -> None:
    root = voc(tmp_path, 4)
    with pytest.raises(DataError, match=r"val.txt is not there; splits found: test, trainval"):
        voc_list(root, "val")
    with pytest.raises(DataError, match=r"no annotation\. Expected .*Annotations"):
        voc_photographs(tmp_path / "nowhere")
    with pytest.raises(DataError, match=r"9.xml cannot be read as a VOC annotation"):
        voc_photographs(root, ["9"])
    (root / "Annotations" / "0.xml").write_text("<annotation><object><bndbox/></object></annotation>")
    with pytest.raises(DataError, match=r"0.xml cannot be read as a VOC annotation"):
        voc_photographs(root)
    file = tmp_path / "bad.json"
    for content, message in (
        ({"images": []}, "KeyError 'categories'"),
        ({"images": [], "categories": [], "annotations": []}, "lists no image"),
        ({"images": [], "categories": [], "annotations": [{"bbox": [1, 2, 3]}]}, "ValueError"),
    ):
        file.write_text(json.dumps(content))
        with pytest.raises(DataError, match=message):
            coco_photographs(file, tmp_path)
    album = Album([Photograph(tmp_path / "none.png", [])], 32, ["red"], "voc")
    with pytest.raises(DataError, match=r"none.png cannot be read as an image"):
        album.take([0])
