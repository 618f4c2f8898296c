"""Canvases hold the images of their labels in their boxes; seed and split determine them."""

import pytest
import torch
import torch.nn.functional as F

from mixfast.data.sets import ImageSet
from mixfast.errors import ConfigError
from mixfast.mix import box_mask
from mixfast.scoring.boxes import iou
from mixfast.scoring.canvas import SIDES, compose, edge_strength, textures

SOURCE = ImageSet(
    F.interpolate(torch.rand(20, 3, 8, 8, generator=torch.Generator().manual_seed(1)), (24, 24), mode="bilinear")
    .mul(255)
    .to(torch.uint8),
    torch.arange(20) % 5,
    tuple("abcde"),
)


@pytest.mark.parametrize(("objects", "size"), [(1, 64), (3, 64), (4, 96), (7, 96)])
def test_objects_are_images_of_the_set_and_do_not_overlap(objects: int, size: int) -> None:
    made = compose(SOURCE, 10, size, objects, seed=0, split="test")
    assert made.images.shape == (10, 3, size, size) and made.boxes.shape == (10, objects, 4) and made.masks is None
    for image, boxes in zip(made.images, made.boxes, strict=True):
        assert (boxes >= 0).all() and (boxes <= size).all()
        used = []
        for x0, y0, x1, y1 in boxes.long().tolist():
            assert x1 - x0 == y1 - y0
            small = F.interpolate(SOURCE.images.float(), (y1 - y0, x1 - x0), mode="bilinear", antialias=True)
            same = (small.round() == image[:, y0:y1, x0:x1]).flatten(1).all(1)
            assert same.sum() == 1  # exactly one image of the set is seen there, to the last bit
            used.append(int(same.nonzero()))
        assert len(set(used)) == objects
        overlaps = iou(boxes[:, None], boxes[None])
        assert torch.equal(overlaps, torch.eye(objects))


def test_a_single_object_takes_many_sizes_and_places() -> None:
    made = compose(SOURCE, 400, 64, 1, seed=0, split="test")
    sides = made.boxes[:, 0, 2] - made.boxes[:, 0, 0]
    assert sides.min() == round(SIDES[0] * 64) and sides.max() == round(SIDES[1] * 64)
    covered = box_mask(made.boxes[:, 0].long(), (64, 64)).float().mean(0)
    # by chance, a corner pixel is covered by 1 in 700 (the box stands in the corner), the middle by 7 in 10
    assert covered[:8, :8].mean() > 0.01 and covered[-8:, -8:].mean() > 0.01 and covered[32, 32] > 0.5


def test_every_image_is_used_before_any_is_used_again() -> None:
    labels = compose(SOURCE, 40, 32, 1, seed=0, split="test").labels
    assert labels[:20].bincount().tolist() == [4] * 5 and labels[20:].bincount().tolist() == [4] * 5
    assert labels[:20].tolist() != labels[20:].tolist()


def test_the_seed_and_the_split_decide_everything() -> None:
    made = [compose(SOURCE, 6, 48, 2, seed, split) for seed, split in ((0, "a"), (0, "a"), (1, "a"), (0, "b"))]
    assert torch.equal(made[0].images, made[1].images) and torch.equal(made[0].boxes, made[1].boxes)
    for other in made[2:]:
        assert not torch.equal(made[0].images, other.images) and not torch.equal(made[0].boxes, other.boxes)


def test_textures_have_edges_like_their_donors() -> None:
    donors = SOURCE.images
    made = textures(donors, 64, torch.Generator().manual_seed(0))
    assert made.dtype == torch.uint8 and made.flatten(1).float().std(1).min() > 1
    ratio = edge_strength(made.float()) / edge_strength(donors.float())
    # 0.4 to 1 by design; grain adds a little, clipping at black and white takes some away
    assert ratio.min() > 0.3 and ratio.max() < 1.3 and ratio.max() > 1.5 * ratio.min()
    flat = textures(torch.full((2, 3, 8, 8), 90, dtype=torch.uint8), 32, torch.Generator().manual_seed(0))
    assert (flat.float() - 90).abs().max() < 20  # a donor without edges gives grain alone


@pytest.mark.parametrize(("objects", "size"), [(0, 64), (21, 96), (2, 15), (1, 7)])
def test_impossible_canvases(objects: int, size: int) -> None:
    with pytest.raises(ConfigError, match=rf"from 1 to the 20 images .* got {objects} on a canvas of {size} pixels"):
        compose(SOURCE, 4, size, objects, 0, "test")
