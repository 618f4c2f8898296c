"""Average precision against the COCO tools where they are installed, plain loops, and cases by hand."""

import contextlib
import io
import math
from typing import Any

import numpy as np
import pytest
import torch

from mixfast.detection.average_precision import (
    IOUS,
    SIZES,
    Detections,
    Truth,
    coco,
    coco_matches,
    percentages,
    summary,
    voc07,
    voc07_matches,
    voc07_summary,
    weighted,
)

CLASSES = 4


def areas(boxes: torch.Tensor) -> torch.Tensor:
    return (boxes[..., 2:] - boxes[..., :2]).double().prod(-1)


def random_case(rng: torch.Generator, images: int = 40, objects: int = 6, found: int = 12) -> tuple[Truth, Detections]:
    """Objects of all sizes, some of them crowds, and boxes near them; coordinates and scores with many ties."""
    corner = torch.rand(images, objects, 2, generator=rng) * 200
    extent = torch.rand(images, objects, 2, generator=rng).square() * 160 + 2
    boxes = torch.cat([corner, corner + extent], -1).round()
    labels = torch.randint(-1, CLASSES - 1, (images, objects), generator=rng)  # none of the last class
    crowd = (torch.rand(images, objects, generator=rng) < 0.15) & (labels >= 0)
    share = 0.5 + 0.5 * torch.rand(images, objects, generator=rng)  # an outline is smaller than its box
    truth = Truth(boxes, labels, crowd.clone(), crowd, areas(boxes) * share)
    source = torch.randint(objects, (images, found), generator=rng)
    noise = 6 * torch.randn(images, found, 4, generator=rng) * torch.rand(images, found, 1, generator=rng)
    near = boxes.gather(1, source[..., None].expand(-1, -1, 4)) + noise.round()
    near[..., 2:] = torch.maximum(near[..., 2:], near[..., :2] + 1)
    other = torch.randint(-1, CLASSES, (images, found), generator=rng)
    named = torch.where(torch.rand(images, found, generator=rng) < 0.2, other, labels.gather(1, source))
    scores = (torch.rand(images, found, generator=rng) * 20).round() / 20
    return truth, Detections(near, named, scores, areas(near))


def coco_tool(module: str, truth: Truth, found: Detections) -> Any:
    """pycocotools or faster-coco-eval after its evaluation."""
    annotations, results = [], []
    for i in range(len(truth.boxes)):
        rows = zip(*(part[i].tolist() for part in (truth.boxes, truth.labels, truth.crowd, truth.areas)), strict=True)
        for (x0, y0, x1, y1), label, crowd, area in rows:
            about = {"image_id": i, "category_id": label + 1, "bbox": [x0, y0, x1 - x0, y1 - y0]}
            annotations += [{**about, "id": len(annotations) + 1, "area": area, "iscrowd": int(crowd)}] * (label >= 0)
        for (x0, y0, x1, y1), label, score in zip(*(part[i].tolist() for part in found[:3]), strict=True):
            about = {"image_id": i, "category_id": label + 1, "bbox": [x0, y0, x1 - x0, y1 - y0]}
            results += [{**about, "score": score}] * (label >= 0)
    content = {
        "info": {},
        "images": [{"id": i, "width": 400, "height": 400} for i in range(len(truth.boxes))],
        "annotations": annotations,
        "categories": [{"id": label + 1, "name": str(label)} for label in range(CLASSES)],
    }
    with contextlib.redirect_stdout(io.StringIO()):
        if module == "pycocotools":
            from pycocotools.coco import COCO
            from pycocotools.cocoeval import COCOeval

            known = COCO()
            known.dataset = content
            known.createIndex()
            tool = COCOeval(known, known.loadRes(results), "bbox")
        else:
            from faster_coco_eval import COCO, COCOeval_faster

            known = COCO(content)
            tool = COCOeval_faster(known, known.loadRes(results), "bbox", print_function=lambda *_, **__: None)
        tool.evaluate()
        tool.accumulate()
        tool.summarize()
    return tool


@pytest.mark.parametrize("module", ["pycocotools", "faster_coco_eval"])
def test_equals_the_coco_tools(module: str, rng: torch.Generator) -> None:
    pytest.importorskip(module)
    for _ in range(3):
        truth, found = random_case(rng)
        tool = coco_tool(module, truth, found)
        table = coco(truth, found, CLASSES)
        theirs = torch.from_numpy(tool.eval["precision"][..., -1])  # thresholds, recalls, classes, sizes
        theirs = torch.where(theirs < 0, math.nan, theirs).mean(1).permute(1, 2, 0)
        torch.testing.assert_close(table, theirs, rtol=0, atol=1e-9, equal_nan=True)
        expected = [100 * float(value) for value in tool.stats[:6]]
        assert list(summary(table).values()) == pytest.approx(expected, abs=1e-9)


def loop_iou(a: list[float], b: list[float], crowd: bool = False) -> float:
    common = max(0.0, min(a[2], b[2]) - max(a[0], b[0])) * max(0.0, min(a[3], b[3]) - max(a[1], b[1]))
    mine, theirs = ((box[2] - box[0]) * (box[3] - box[1]) for box in (a, b))
    return common / mine if crowd else common / (mine + theirs - common)


def precision_at(right: list[bool], objects: int, recalls: list[float]) -> float:
    """Mean over `recalls` of the best precision at that recall or beyond; `right` by falling score."""
    curve = [(sum(right[: n + 1]) / objects, sum(right[: n + 1]) / (n + 1)) for n in range(len(right))]
    return sum(max((p for r, p in curve if r >= level), default=0.0) for level in recalls) / len(recalls)


def loop_ap(truth: Truth, found: Detections, label: int, threshold: float, voc: bool, size: str = "") -> float:
    """One class at one threshold, in plain loops."""
    low, high = SIZES.get(size, (0.0, 1e10))
    scored: list[tuple[float, int, int, bool | None]] = []  # None: neither right nor wrong
    total = 0
    for i in range(len(truth.boxes)):
        objects = [k for k in range(truth.labels.shape[1]) if truth.labels[i, k] == label]
        skipped = {k: bool(truth.ignored[i, k]) or not low <= truth.areas[i, k].item() <= high for k in objects}
        total += sum(not skip for skip in skipped.values())
        ranked = [k for k in range(found.labels.shape[1]) if found.labels[i, k] == label]
        ranked.sort(key=lambda k: -found.scores[i, k].item())
        taken: set[int] = set()
        for rank, k in enumerate(ranked):
            box = found.boxes[i, k].tolist()
            cover = {o: loop_iou(box, truth.boxes[i, o].tolist(), bool(truth.crowd[i, o]) and not voc) for o in objects}
            verdict: bool | None = False
            if voc:
                best = max(objects, key=lambda o: cover[o], default=-1)
                if best >= 0 and cover[best] > threshold:
                    verdict = None if skipped[best] else best not in taken
                    taken.add(best)
            else:
                free = [o for o in objects if cover[o] >= threshold and (o not in taken or truth.crowd[i, o])]
                free = [o for o in free if not skipped[o]] or free
                if free:
                    best = max(free, key=lambda o: (cover[o], o))
                    verdict = None if skipped[best] else True
                    taken.add(best)
                elif not low <= found.areas[i, k].item() <= high:
                    verdict = None
            scored.append((-found.scores[i, k].item(), i, rank, verdict))
    right = [entry[3] for entry in sorted(scored, key=lambda entry: entry[:3]) if entry[3] is not None]
    levels = np.arange(0, 1.1, 0.1).tolist() if voc else np.linspace(0, 1, 101).tolist()
    return precision_at(right, total, levels) if total else math.nan


@pytest.mark.parametrize("difficult", [False, True])
def test_equals_plain_loops(difficult: bool, rng: torch.Generator) -> None:
    truth, found = random_case(rng, images=12)
    if difficult:  # ignored, but no crowds
        truth = truth._replace(ignored=truth.crowd, crowd=torch.zeros_like(truth.crowd))
    assert np.linspace(0.5, 0.95, 10).tolist() == list(IOUS)
    table = coco(truth, found, CLASSES)
    for label in range(CLASSES):
        for column, size in enumerate(["", *SIZES]):
            for t in (0, 5):
                expected = loop_ap(truth, found, label, IOUS[t], False, size)
                assert table[label, column, t].item() == pytest.approx(expected, abs=1e-12, nan_ok=True)
    assert table[-1].isnan().all()  # a class without objects does not count
    old = voc07(truth, found, CLASSES)
    expected = [[loop_ap(truth, found, label, t, True) for t in IOUS] for label in range(CLASSES)]
    torch.testing.assert_close(old, torch.tensor(expected, dtype=torch.float64), rtol=0, atol=1e-12, equal_nan=True)


def test_a_draw_of_images_is_scored_as_the_list_with_copies(rng: torch.Generator) -> None:
    """Ties between images are frequent here, within an image there are none."""
    truth, found = random_case(rng, images=15)
    found = found._replace(scores=found.scores + 1e-3 * torch.arange(found.scores.shape[1]))
    draws = torch.stack([torch.bincount(torch.randint(15, (15,), generator=rng), minlength=15) for _ in range(3)])
    draws[2] = torch.nn.functional.one_hot(torch.tensor(3), 15) * 15  # one image, 15 times
    tables = weighted(coco_matches(truth, found, CLASSES), draws.float())
    old = weighted(voc07_matches(truth, found, CLASSES), draws.float())
    for number, draw in enumerate(draws):
        copies = torch.arange(15).repeat_interleave(draw)
        real, guessed = Truth(*(part[copies] for part in truth)), Detections(*(part[copies] for part in found))
        listed = coco(real, guessed, CLASSES)
        torch.testing.assert_close(tables[number], listed, rtol=0, atol=1e-12, equal_nan=True)
        listed_old = voc07(real, guessed, CLASSES)
        torch.testing.assert_close(old[number, :, 0], listed_old, rtol=0, atol=1e-12, equal_nan=True)
        for label in range(CLASSES):
            expected = loop_ap(real, guessed, label, IOUS[2], False, "medium")
            assert tables[number, label, 2, 2].item() == pytest.approx(expected, abs=1e-12, nan_ok=True)
        for name, value in summary(listed).items():
            assert percentages(tables)[name][number].item() == pytest.approx(value, abs=1e-9, nan_ok=True)


def by_hand() -> tuple[Truth, Detections]:
    """Two objects of class 0; by falling score: right, second on the same object, wrong place, right at IoU 0.6."""
    boxes = torch.tensor([[[0.0, 0, 10, 10], [20, 0, 30, 10]]])
    truth = Truth(boxes, torch.zeros(1, 2).long(), *(torch.zeros(1, 2).bool() for _ in range(2)), areas(boxes))
    found = torch.tensor([[[0.0, 0, 10, 10], [0, 0, 10, 9], [50, 50, 60, 60], [20, 0, 30, 6]]])
    return truth, Detections(found, torch.zeros(1, 4).long(), torch.tensor([[0.9, 0.8, 0.7, 0.6]]), areas(found))


def test_by_hand() -> None:
    truth, found = by_hand()
    # Precisions 1, 1/2, 1/3, 2/4 at recalls 1/2, 1/2, 1/2, 1; above IoU 0.6 the last one is wrong too.
    scores = summary(coco(truth, found, 1))
    assert scores["ap50"] == pytest.approx(100 * (51 + 50 * 0.5) / 101)
    assert scores["ap75"] == pytest.approx(100 * 51 / 101)
    assert scores["ap"] == pytest.approx((3 * scores["ap50"] + 7 * scores["ap75"]) / 10)  # 0.6 counts at IoU >= 0.6
    assert math.isnan(scores["ap_large"]) and scores["ap_small"] == pytest.approx(scores["ap"])
    old = voc07_summary(voc07(truth, found, 1))
    assert old["voc07_ap50"] == pytest.approx(100 * (6 + 5 * 0.5) / 11)
    assert old["voc07_ap75"] == pytest.approx(100 * 6 / 11)
    assert old["voc07_ap"] == pytest.approx((2 * old["voc07_ap50"] + 8 * old["voc07_ap75"]) / 10)  # not at IoU > 0.6


def test_at_most_so_many_detections_of_a_class_and_image() -> None:
    truth, found = by_hand()
    assert summary(coco(truth, found, 1, max_detections=3))["ap50"] == pytest.approx(100 * 51 / 101)


def test_nothing_found_and_nothing_to_find() -> None:
    truth, found = by_hand()
    none = Detections(torch.zeros(1, 0, 4), torch.zeros(1, 0).long(), torch.zeros(1, 0), torch.zeros(1, 0))
    empty = found._replace(labels=torch.full((1, 4), -1))
    for nothing in (none, empty):
        assert summary(coco(truth, nothing, 1))["ap"] == 0
        assert voc07_summary(voc07(truth, nothing, 1))["voc07_ap"] == 0
    labels, flags = torch.zeros(1, 0, dtype=torch.int64), torch.zeros(1, 0, dtype=torch.bool)
    bare = Truth(torch.zeros(1, 0, 4), labels, flags, flags, torch.zeros(1, 0))
    assert math.isnan(summary(coco(bare, found, 1))["ap"])
    assert math.isnan(voc07_summary(voc07(bare, found, 1))["voc07_ap"])
