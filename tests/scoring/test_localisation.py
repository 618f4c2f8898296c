"""Every score equals a plain loop, and the known value of simple cases."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from mixfast.scoring.boxes import inside
from mixfast.scoring.localisation import average_precision, box_curves, energy, object_hits, pixel_counts, pointing
from tests.scoring.test_labelling import by_hand

SIDE = 16


@pytest.fixture
def maps(rng: torch.Generator) -> Tensor:
    """Smooth maps with values in [0, 1], the last with ties."""
    small = torch.rand(8, 1, 5, 5, generator=rng)
    big = F.interpolate(small, (SIDE, SIDE), mode="bilinear")[:, 0]
    big[-1] = (big[-1] * 4).round() / 4
    return big


@pytest.fixture
def boxes(rng: torch.Generator) -> Tensor:
    """Up to three boxes an image; at least one."""
    corner = torch.randint(0, 9, (8, 3, 2), generator=rng)
    found = torch.cat([corner, corner + torch.randint(2, 8, (8, 3, 2), generator=rng)], dim=2).float()
    found[::2, 1:] = 0
    return found


def loop_iou(a: list[float], b: list[float]) -> float:
    common = max(0, min(a[2], b[2]) - max(a[0], b[0])) * max(0, min(a[3], b[3]) - max(a[1], b[1]))
    union = (a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - common
    return common / union if union else 0.0


def real(boxes: Tensor) -> list[list[float]]:
    return [box for box in boxes.tolist() if box[2] > box[0]]


@pytest.mark.parametrize("tolerance", [0, 1, 2.5])
def test_pointing_equals_the_loop(maps: Tensor, boxes: Tensor, tolerance: float) -> None:
    found = pointing(maps, boxes, tolerance)
    for i, (one, objects) in enumerate(zip(maps, boxes, strict=True)):
        good = []
        for y, x in (one == one.max()).nonzero().tolist():
            near = [
                math.hypot(max(x0 - x, x - (x1 - 1), 0), max(y0 - y, y - (y1 - 1), 0)) <= tolerance
                for x0, y0, x1, y1 in real(objects)
            ]
            good.append(any(near))
        assert found.hit[i].item() == all(good)
        assert found.tie[i].item() == (any(good) and not all(good))


def test_energy_equals_the_loop(maps: Tensor, boxes: Tensor) -> None:
    found = energy(maps, boxes)
    for i, (one, objects) in enumerate(zip(maps.double(), boxes, strict=True)):
        within = 0.0
        for y in range(SIDE):
            for x in range(SIDE):
                if any(x0 <= x < x1 and y0 <= y < y1 for x0, y0, x1, y1 in real(objects)):
                    within += one[y, x].item()
        assert found[i].item() == pytest.approx(within / one.sum().item(), rel=1e-5)


def test_box_curves_equal_the_loop(maps: Tensor, boxes: Tensor) -> None:
    curves = box_curves(maps, boxes, thresholds=10)
    for i, (one, objects) in enumerate(zip(maps, boxes, strict=True)):
        for t in range(10):
            found = by_hand((one >= one.max() * (t / 10))[None], diagonal=True)
            best = [max(loop_iou(box, other) for other in real(objects)) for _, _, box in found]
            largest = max(range(len(found)), key=lambda k: (found[k][1], -k))
            assert curves.largest[i, t].item() == pytest.approx(best[largest], abs=1e-6)
            assert curves.any[i, t].item() == pytest.approx(max(best), abs=1e-6)


def test_average_precision_equals_the_loop(maps: Tensor, rng: torch.Generator) -> None:
    """Precision and recall at every bin's lower edge, from the pixels themselves."""
    masks = torch.rand(maps.shape, generator=rng) < 0.3
    on, off = pixel_counts(maps, masks, bins=20)
    shares = maps / maps.amax((1, 2), keepdim=True)
    level, area, before = (shares * 20).floor().clamp(max=19), 0.0, 0.0
    for t in reversed(range(20)):
        chosen = level >= t
        right = (chosen & masks).sum().item()
        recall = right / masks.sum().item()
        if chosen.any():
            area += (recall - before) * right / chosen.sum().item()
        before = recall
    assert average_precision(on.sum(0), off.sum(0)).item() == pytest.approx(area, rel=1e-5)


def test_object_hits_equal_the_loop(maps: Tensor, boxes: Tensor) -> None:
    found = object_hits(maps, boxes, ks=(1, 2, 4))
    for i, (one, objects) in enumerate(zip(maps, boxes, strict=True)):
        left, hit = one.clone(), set()
        masks = [inside(torch.tensor(box), (SIDE, SIDE)) for box in real(objects)]
        union = torch.stack(masks).any(0)
        for k in (1, 2, 3, 4):
            if left.max() > -math.inf:
                tops = left == left.max()
                places = sorted(tops.nonzero().tolist(), key=lambda p: (bool(union[p[0], p[1]]), p))
                y, x = places[0]
                plateau = [(y, x)]
                for py, px in plateau:  # grows while it is walked
                    for qy in range(py - 1, py + 2):
                        for qx in range(px - 1, px + 2):
                            known = (qy, qx) in plateau or not (0 <= qy < SIDE and 0 <= qx < SIDE)
                            if not known and tops[qy, qx]:
                                plateau.append((qy, qx))
                if all(union[p] for p in plateau):
                    hit |= {n for n, mask in enumerate(masks) if any(mask[p] for p in plateau)}
                for qy in range(SIDE):
                    for qx in range(SIDE):
                        if math.hypot(qy - y, qx - x) <= SIDE / 8 or (qy, qx) in plateau:
                            left[qy, qx] = -math.inf
            if k in (1, 2, 4):
                assert found[i, (1, 2, 4).index(k)].item() == pytest.approx(len(hit) / len(masks))


def test_one_object_and_one_peak_are_the_pointing_game(maps: Tensor, boxes: Tensor) -> None:
    first = boxes[:, :1]
    assert torch.equal(object_hits(maps, first, ks=(1,))[:, 0], pointing(maps, first).hit.float())


def perfect(boxes: Tensor) -> Tensor:
    return inside(boxes, (SIDE, SIDE)).any(1).float()


def test_a_perfect_map_has_every_point() -> None:
    boxes = torch.tensor([[[2, 3, 9, 11], [0, 0, 0, 0]], [[0, 0, 6, 6], [8, 7, 16, 15]]]).float()
    maps = perfect(boxes)
    assert pointing(maps, boxes).hit.all() and not pointing(maps, boxes).tie.any()
    assert energy(maps, boxes).tolist() == [1, 1]
    curves = box_curves(maps, boxes)
    assert (curves.any[:, 1:] == 1).all() and (curves.largest[:, 1:] == 1).all()  # at 0 the whole image is chosen
    on, off = pixel_counts(maps, maps.bool())
    assert average_precision(on, off).tolist() == [1, 1]
    assert object_hits(maps, boxes, ks=(1, 2)).tolist() == [[1, 1], [0.5, 1]]  # a peak an object


@pytest.mark.parametrize("level", [0.0, 0.3, 1.0])
def test_a_uniform_map_scores_the_area_and_ties(level: float) -> None:
    boxes = torch.tensor([[[4.0, 4.0, 12.0, 12.0]]])
    maps = torch.full((1, SIDE, SIDE), level)
    result = pointing(maps, boxes)
    assert not result.hit and result.tie
    assert energy(maps, boxes).item() == 0.25
    curves = box_curves(maps, boxes)
    assert (curves.largest == 0.25).all() and (curves.any == 0.25).all()
    on, off = pixel_counts(maps, perfect(boxes).bool())
    assert average_precision(on, off).item() == 0.25
    assert object_hits(maps, boxes, ks=(1, 5)).tolist() == [[0, 0]]


def test_a_maximum_shared_by_object_and_background_is_no_hit() -> None:
    boxes = torch.tensor([[[0.0, 0.0, 4.0, 4.0]]])
    maps = torch.zeros(1, SIDE, SIDE)
    maps[0, 1, 1] = maps[0, 2, 3] = 1
    assert pointing(maps, boxes).hit
    maps[0, 9, 9] = 1
    assert pointing(maps, boxes).tie and not pointing(maps, boxes).hit


def test_shifting_map_and_boxes_together_changes_nothing(rng: torch.Generator) -> None:
    maps = torch.zeros(6, 24, 24)
    maps[:, 6:15, 6:15] = torch.rand(6, 9, 9, generator=rng)
    boxes = torch.tensor([[[7.0, 8.0, 13.0, 12.0]]]).expand(6, 1, 4)
    masks = inside(boxes[:, 0], (24, 24))
    moved, shifted = maps.roll((3, -4), (1, 2)), boxes + torch.tensor([-4.0, 3.0, -4.0, 3.0])
    assert torch.equal(pointing(maps, boxes).hit, pointing(moved, shifted).hit)
    torch.testing.assert_close(energy(maps, boxes), energy(moved, shifted))
    for one, other in zip(box_curves(maps, boxes), box_curves(moved, shifted), strict=True):
        assert torch.equal(one, other)
    for one, other in zip(pixel_counts(maps, masks), pixel_counts(moved, masks.roll((3, -4), (1, 2))), strict=True):
        assert torch.equal(one, other)


def test_scores_do_not_depend_on_the_scale_of_a_map(maps: Tensor, boxes: Tensor) -> None:
    scaled = maps * 4  # exact in binary
    assert torch.equal(pointing(maps, boxes).hit, pointing(scaled, boxes).hit)
    torch.testing.assert_close(energy(maps, boxes), energy(scaled, boxes))
    assert torch.equal(box_curves(maps, boxes).any, box_curves(scaled, boxes).any)
