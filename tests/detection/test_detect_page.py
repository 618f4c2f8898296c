"""The differences in the table of `evaluate detect`: intervals over images and over seeds, by hand."""

import math
from collections.abc import Mapping

import pytest
import torch

from mixfast.detection.images import LabelledImages, canvases
from mixfast.detection.scores import scores
from mixfast.detection.transfer import Outcome
from mixfast.evaluate.detect import Contestant
from mixfast.evaluate.detect_page import Result, remarks

pytest.importorskip("torchvision")
HALF = 100 * 51 / 101  # AP where one of two objects is found, and nothing wrong


def one_object_each(count: int) -> LabelledImages:
    boxes = torch.tensor([[[2.0, 2, 14, 14]]]).expand(count, -1, -1)
    return canvases(torch.zeros(count, 3, 16, 16), boxes, torch.zeros(count, 1).long(), ("disc",), "scenes")


def contestant(name: str, test: LabelledImages, found: Mapping[int, tuple[int, ...]]) -> Contestant:
    """Detectors that find the objects of some images, by seed, and nothing else."""
    row = Contestant(name, "run", {})
    for seed, images in found.items():
        labels = torch.full((len(test), 1), -1)
        labels[list(images)] = 0
        boxes = test.detections(test.boxes, labels, torch.linspace(0.9, 0.5, len(test))[:, None])
        row.outcomes[seed] = Outcome(scores(boxes, test), boxes, [1.0], 0.0, test.truth)
    return row


def test_intervals_by_hand() -> None:
    """Of two images three draws exist: each once (half of the draws), and either of them twice."""
    test = one_object_each(2)
    first = contestant("first", test, {0: (0, 1), 1: (0, 1)})  # AP 100 in each draw
    same = contestant("same", test, {0: (0, 1), 1: (0, 1)})
    steady = contestant("steady", test, {0: (0,), 1: (0,)})  # of a draw of the first image 100, of the other 0
    apart = contestant("apart", test, {0: (0,), 1: (1,)})  # one seed gains what the other loses: their mean is 50
    once = contestant("once", test, {0: (0, 1), 1: (0,)})
    gaps = Result({}, [first, same, steady, apart, once], [0, 1], test).gaps["ap"]
    images = {name: (gap["images_low"], gap["images_high"]) for name, gap in gaps.items()}
    assert images["same"] == (0, 0) and images["steady"] == pytest.approx((-100, 0))
    assert images["apart"] == pytest.approx((-50, HALF - 100)) and images["once"] == pytest.approx((-50, 0))
    assert gaps["steady"]["low"] == gaps["steady"]["high"] == pytest.approx(HALF - 100)  # both seeds alike
    half = 12.706 * (100 - HALF) / 2  # Student's t of two differences, 0 and HALF - 100
    mean = (HALF - 100) / 2
    assert (gaps["once"]["low"], gaps["once"]["high"]) == pytest.approx((mean - half, mean + half))


def test_a_single_seed_and_a_single_image() -> None:
    test = one_object_each(2)
    rows = [contestant("first", test, {3: (0, 1)}), contestant("second", test, {3: (1,)})]
    gap = Result({}, rows, [3], test).gaps["ap50"]["second"]
    assert gap["low"] is gap["high"] is gap["standard_error"] is None
    assert (gap["images_low"], gap["images_high"]) == pytest.approx((-100, 0))
    test = one_object_each(1)
    rows = [contestant("first", test, {3: (0,)}), contestant("second", test, {3: ()})]
    gap = Result({}, rows, [3], test).gaps["ap"]["second"]
    assert gap["mean"] == pytest.approx(-100) and gap["images_low"] is gap["images_high"] is None


def test_draws_without_an_object_of_a_size_do_not_count() -> None:
    """The large object is in one image of two: it is in three of four draws, and its AP is the same in all of them."""
    test = one_object_each(2)
    large = torch.tensor([[2.0e4], [144.0]])
    test = LabelledImages(**{**vars(test), "name": "coco", "areas": large})
    rows = [contestant("first", test, {0: (0, 1)}), contestant("second", test, {0: (1,)})]
    gaps = Result({}, rows, [0], test).gaps
    large_gap, medium_gap = (gaps[name]["second"] for name in ("ap_large", "ap_medium"))
    assert large_gap["images_low"] == large_gap["images_high"] == large_gap["mean"] == pytest.approx(-100)
    assert math.isnan(medium_gap["mean"]) and medium_gap["images_low"] is None


def test_a_detector_that_finds_nothing_is_said() -> None:
    test = one_object_each(2)
    rows = [contestant("first", test, {0: (0,), 1: ()}), contestant("second", test, {0: (1,), 1: (0, 1)})]
    settings = {"split": "", "left_out": {}, "objects_of_unknown_classes": {}}
    (line,) = remarks(Result(settings, rows, [0, 1], test))
    assert line.startswith("first, seed 1: the detector has found no object; its loss has ended at 1.")
