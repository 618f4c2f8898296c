"""Masks: read from polygons and runs, moved with their image, learnt from, and scored."""

import json
import math
from collections import Counter
from pathlib import Path

import pytest
import torch

from mixfast.detection.originals import Original, OriginalFiles, Pick, originals
from mixfast.errors import DataError, PlatformError
from mixfast.scoring.annotations import coco_photographs
from tests.detection.annotated import coco

pytest.importorskip("torchvision")
pytest.importorskip("pycocotools")

from mixfast.detection.masks import Masked, decoded, encoded, mask_scores, need_pycocotools
from mixfast.detection.rcnn import Resize, mask_loss

COLOURS = torch.tensor([[220, 20, 20], [20, 20, 220]])


def photographs(root: Path, count: int) -> list[Original]:
    images, file = coco(root, count)
    return originals(coco_photographs(file, images, masks=True), Counter())


@pytest.mark.parametrize("mirrored", [False, True])
def test_masks_are_the_pixels_of_their_objects(mirrored: bool, tmp_path: Path) -> None:
    files = OriginalFiles(photographs(tmp_path, 4), ["red", "blue"])
    for number, labels in ((0, [1, 2]), (2, [1, 2]), (3, [1])):  # of the last picture, the other one is a crowd
        shot = files[Pick(number, mirrored)]
        assert shot.target["labels"].tolist() == labels
        for label, mask in zip(labels, shot.target["masks"], strict=True):
            assert torch.equal(mask.bool(), (shot.image == COLOURS[label - 1, :, None, None]).all(0))


def test_masks_are_resized_with_their_image(tmp_path: Path) -> None:
    shot = OriginalFiles(photographs(tmp_path, 1), ["red", "blue"])[Pick(0, True)]
    resize = Resize((80,), 1000, [0.0] * 3, [1.0] * 3)
    image, target = resize.resize(shot.image.float(), {**shot.target, "side": 80})
    assert image.shape == (3, 80, 120)
    whole = shot.target["masks"].repeat_interleave(2, 1).repeat_interleave(2, 2)
    assert torch.equal(target["masks"], whole)
    for mask, box in zip(target["masks"], target["boxes"].tolist(), strict=True):
        rows, columns = mask.nonzero().unbind(1)
        assert [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1] == box


def test_the_loss_is_of_the_true_class_within_the_region() -> None:
    """One region is the left half of an object of 8 x 8 pixels and as much beside it, the other the object."""
    masks = torch.zeros(2, 20, 20, dtype=torch.uint8)
    masks[0, 4:12, 4:12] = masks[1, 10:18, 10:18] = 1
    regions = [torch.tensor([[0.0, 4.0, 8.0, 12.0], [10.0, 10.0, 18.0, 18.0]])]
    logits = torch.randn(2, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    found = mask_loss(logits, regions, [masks], [torch.tensor([0, 1])], [torch.tensor([2, 1])])
    expected = 0.0
    for region, label in ((0, 2), (1, 1)):
        for row in range(4):
            for column in range(4):
                share = 1 / (1 + math.exp(-logits[region, label, row, column].item()))
                inside = region == 1 or column >= 2
                expected -= math.log(share if inside else 1 - share) / 32
    assert found.item() == pytest.approx(expected, rel=1e-5)


def test_runs_and_masks_are_inverse() -> None:
    masks = torch.rand(3, 7, 11, generator=torch.Generator().manual_seed(0)) < 0.5
    assert torch.equal(decoded(encoded(masks), 7, 11).bool(), masks)
    assert encoded(masks[:0]) == [] and decoded([], 7, 11).shape == (0, 7, 11)


def test_average_precision_of_masks(tmp_path: Path) -> None:
    """The true masks reach 100; with half of each red one, an IoU of 1/2, red counts at the first threshold alone."""
    numbers = {"red": 0, "blue": 1}
    truth, perfect, halves = [], [], []
    for photograph in photographs(tmp_path, 8):
        objects, size = photograph.objects, (photograph.height, photograph.width)
        labels, crowd = [numbers[item.name] for item in objects], [item.crowd for item in objects]
        truth.append(Masked(*size, [item.mask for item in objects], labels, crowd, [100.0] * len(objects)))
        real = [item for item in objects if not item.crowd]
        found = Masked(*size, [item.mask for item in real], [numbers[item.name] for item in real], scores=[0.9, 0.8])
        masks = decoded(found.runs, *size)
        left = int(masks[0].nonzero()[:, 1].min())
        masks[0, :, left + 6 :] = 0
        perfect.append(found)
        halves.append(found._replace(runs=encoded(masks)))
    scores = mask_scores(truth, perfect, [0, 1])
    assert scores["mask_ap"] == scores["mask_ap75"] == scores["mask_ap_small"] == pytest.approx(100)
    assert math.isnan(scores["mask_ap_large"])
    half = mask_scores(truth, halves, [0, 1])
    assert half["mask_ap"] == pytest.approx(55) and half["mask_ap75"] == pytest.approx(50)
    assert mask_scores(truth, halves, [1])["mask_ap"] == pytest.approx(100)
    nothing = [found._replace(runs=[], labels=[], scores=[]) for found in perfect]
    assert mask_scores(truth, nothing, [0, 1])["mask_ap"] == 0


@pytest.mark.parametrize(
    ("mask", "message"),
    [
        ([], "no polygon of three corners or more"),
        ([[1, 1, 5, 5]], "no polygon of three corners or more"),
        ({"size": [60, 40], "counts": [2400]}, r"runs of \[60, 40\] pixels for an image of \[40, 60\]"),
        ({"counts": [2400]}, "neither polygons nor runs"),
        (None, "KeyError 'segmentation'"),
    ],
)
def test_what_is_no_mask_is_named(mask: object, message: str, tmp_path: Path) -> None:
    images, file = coco(tmp_path, 2)
    content = json.loads(file.read_text())
    content["annotations"][2]["segmentation"] = mask
    if mask is None:
        del content["annotations"][2]["segmentation"]
    file.write_text(json.dumps(content))
    with pytest.raises(DataError, match=message):
        originals(coco_photographs(file, images, masks=True), Counter())


def test_pycocotools_is_asked_for_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "pycocotools.mask", None)
    with pytest.raises(PlatformError, match=r"--recipe coco-fpn-1x .*pip install pycocotools"):
        need_pycocotools("--recipe coco-fpn-1x")
