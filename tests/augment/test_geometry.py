"""augment.geometry: by hand, as inverses, and against the pixels that the augmenter cuts out."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from mixfast.augment import AugmentConfig, augment
from mixfast.augment.geometry import areas, crop_boxes, intersection, to_image, to_view, whole_pixels
from tests.ops.augmenting import new_state

SIZE = (20, 40)
CROP = torch.tensor([4.0, 8.0, 10.0, 20.0, 0.0])  # rows 4 to 14, columns 8 to 28: a pixel of the view is half of one
MIRRORED = torch.tensor([4.0, 8.0, 10.0, 20.0, 1.0])


@pytest.mark.parametrize(
    ("crop", "of_view", "of_image"),
    [
        (CROP, [0, 0, 40, 20], [8, 4, 28, 14]),
        (CROP, [2, 6, 10, 18], [9, 7, 13, 13]),
        (MIRRORED, [2, 6, 10, 18], [23, 7, 27, 13]),
        (CROP, [-8, -8, 44, 0], [4, 0, 30, 4]),
    ],
    ids=str,
)
def test_boxes_by_hand(crop: Tensor, of_view: list[float], of_image: list[float]) -> None:
    view, image = torch.tensor(of_view, dtype=torch.float32), torch.tensor(of_image, dtype=torch.float32)
    assert torch.equal(to_image(view, crop, SIZE), image)
    assert torch.equal(to_view(image, crop, SIZE), view)
    assert torch.equal(crop_boxes(crop), torch.tensor([8.0, 4.0, 28.0, 14.0]))


def test_what_boxes_share() -> None:
    first, second = torch.tensor([[0.0, 0, 4, 6]]), torch.tensor([[2.0, 1, 9, 5], [4, 0, 9, 6], [8, 8, 9, 9]])
    assert intersection(first, second)[0].tolist() == [2, 1, 4, 5]
    assert areas(intersection(first, second)).tolist() == [8, 0, 0]


def test_whole_pixels_round_stay_inside_and_are_never_empty() -> None:
    boxes = torch.tensor([[1.4, 2.6, 7.6, 9.4], [3.2, 3.2, 3.3, 3.3], [-5, -9, 70, 30], [50, 30, 60, 40], [9, 9, 2, 2]])
    wanted = [[1, 3, 8, 9], [3, 3, 4, 4], [0, 0, 40, 20], [39, 19, 40, 20], [9, 9, 10, 10]]
    assert whole_pixels(boxes, SIZE).tolist() == wanted
    assert whole_pixels(boxes, SIZE).dtype == torch.int64


def test_a_view_shows_the_place_that_its_crop_says(rng: torch.Generator) -> None:
    """Images whose pixels are their own place, x in red and y in green, through the real augmenter: the middle of every
    pixel of a view, by `to_image`, is what the pixel says. Crops clamp to their borders, so the outermost may not."""
    height, width = 32, 48
    x = torch.arange(width, dtype=torch.uint8).mul(5).expand(height, width)
    y = torch.arange(height, dtype=torch.uint8).mul(7)[:, None].expand(height, width)
    images = torch.stack([x, y, torch.zeros_like(x)]).expand(12, 3, height, width)
    plain = replace(AugmentConfig(), jitter=0.0, grey=0.0, crop_scale=(0.1, 1.0))
    unscaled = (5 / 255, 7 / 255, 1.0)
    views = augment(images, plain, new_state(rng), (0.0,) * 3, unscaled, size=(24, 36))
    assert views.crops.shape == (2, 12, 5) and 0 < views.crops[..., 4].mean() < 1
    for view, crops in zip(views, views.crops, strict=True):
        for column, row in ((1, 1), (20, 9), (34, 22)):
            pixel = torch.tensor([column, row, column + 1, row + 1], dtype=torch.float32)
            x0, y0, x1, y1 = to_image(pixel, crops, (24, 36)).unbind(-1)
            middle = torch.stack([(x0 + x1) / 2, (y0 + y1) / 2], dim=1) - 0.5  # the first pixel's middle is its 0
            torch.testing.assert_close(view[:, :2, row, column], middle, atol=2e-3, rtol=0)
