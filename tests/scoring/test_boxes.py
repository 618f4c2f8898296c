"""Boxes are half-open; overlaps, insides and distances equal loops over pixels."""

import math

import pytest
import torch

from mixfast.data.sets import ImageSet
from mixfast.scoring.boxes import Objects, distance, inside, iou, objects_from_set, present


def test_iou_of_hand_numbers() -> None:
    box = torch.tensor([0.0, 0.0, 10.0, 10.0])
    others = torch.tensor(
        [[0, 0, 10, 10], [5, 0, 15, 10], [10, 0, 20, 10], [2, 2, 4, 7], [3, 3, 3, 9], [0.5, 0, 10.5, 10]]
    )
    # with the "+ 1" convention the second would be 66 / 176 = 0.375 and the third 11 / 231
    expected = [1, 50 / 150, 0, 10 / 100, 0, 95 / 105]
    torch.testing.assert_close(iou(box, others), torch.tensor(expected))
    assert iou(torch.zeros(4), torch.zeros(4)).item() == 0


def test_iou_counts_pixels(rng: torch.Generator) -> None:
    corner = torch.randint(0, 12, (40, 2, 2), generator=rng)
    boxes = torch.cat([corner, corner + torch.randint(1, 9, (40, 2, 2), generator=rng)], dim=2).float()
    masks = inside(boxes, (24, 24))
    both = (masks[:, 0] & masks[:, 1]).sum((1, 2))
    either = (masks[:, 0] | masks[:, 1]).sum((1, 2))
    torch.testing.assert_close(iou(boxes[:, 0], boxes[:, 1]), both / either)


@pytest.mark.parametrize("box", [[2, 1, 5, 4], [0, 0, 7, 6], [1.4, 2.6, 4.6, 5.2], [3, 3, 3, 5]], ids=str)
def test_inside_and_distance_equal_a_loop(box: list[float]) -> None:
    x0, y0, x1, y1 = box
    boxes = torch.tensor([[box]])
    masks, away = inside(boxes, (6, 7)), distance(boxes, (6, 7))
    for y in range(6):
        for x in range(7):
            hit = x0 <= x + 0.5 < x1 and y0 <= y + 0.5 < y1
            assert masks[0, 0, y, x].item() == hit
            dx = max(x0 + 0.5 - (x + 0.5), x + 0.5 - (x1 - 0.5), 0)
            dy = max(y0 + 0.5 - (y + 0.5), y + 0.5 - (y1 - 0.5), 0)
            expected = math.inf if x1 <= x0 else -1.0 if hit else math.hypot(dx, dy)
            assert away[0, 0, y, x].item() == pytest.approx(expected)


def test_distance_is_to_the_nearest_pixel_inside() -> None:
    pixels = inside(torch.tensor([2.0, 1.0, 5.0, 4.0]), (8, 9)).nonzero().float()
    away = distance(torch.tensor([2.0, 1.0, 5.0, 4.0]), (8, 9))
    everywhere = torch.cartesian_prod(torch.arange(8.0), torch.arange(9.0))
    nearest = torch.cdist(everywhere, pixels).amin(1).view(8, 9)
    torch.testing.assert_close(away.clamp(min=0), nearest)


def test_a_data_set_becomes_objects_and_can_be_taken_apart() -> None:
    images = torch.zeros(3, 3, 8, 8, dtype=torch.uint8)
    boxes = torch.tensor([[0, 0, 4, 4], [1, 2, 3, 8], [2, 2, 6, 6]])
    masks = torch.zeros(3, 8, 8, dtype=torch.uint8)
    labels = torch.tensor([5, 6, 7])
    objects = objects_from_set(ImageSet(images, labels, (), boxes, masks), "some")
    assert objects.boxes.shape == (3, 1, 4) and objects.size == (8, 8) and objects.masks is not None
    part = objects.take(torch.tensor([2, 0]))
    assert isinstance(part, Objects) and len(part) == 2
    assert part.boxes[:, 0].tolist() == [[2, 2, 6, 6], [0, 0, 4, 4]] and part.labels.tolist() == [7, 5]
    with pytest.raises(ValueError, match="some must have a box per image; got a data set without boxes"):
        objects_from_set(ImageSet(images, labels, ()), "some")


def test_boxes_without_area_are_no_objects() -> None:
    boxes = torch.tensor([[0, 0, 1, 1], [0, 0, 0, 0], [3, 3, 2, 5], [1, 4, 2, 4]])
    assert present(boxes).tolist() == [True, False, False, False]
