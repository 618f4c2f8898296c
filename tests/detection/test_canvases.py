"""Canvases show the objects of their labels inside their boxes; seed and split determine them."""

import pytest
import torch
import torch.nn.functional as F

from mixfast.data import ImageSet, SceneConfig, scenes
from mixfast.detection.canvases import picture_canvases, scene_canvases
from mixfast.errors import ConfigError
from mixfast.scoring.boxes import iou

PLAIN = SceneConfig(noise=0.0)


def test_a_canvas_of_scenes_shows_sprites_on_a_background() -> None:
    made = scene_canvases(40, 16, 0, "test", PLAIN)
    assert made.images.shape == (40, 3, 48, 48) and made.images.dtype == torch.uint8 and made.side == 48
    present = made.labels >= 0
    assert present.shape == (40, 5) and set(present.sum(1).tolist()) <= {1, 2, 3, 4, 5} and present[:, 0].all()
    assert 2.5 < made.objects / len(made) <= 3.5
    assert torch.equal(present, made.boxes.any(2)) and made.boxes.min() >= 0 and made.boxes.max() <= 48
    assert len(made.class_names) == 10 and made.labels[present].bincount(minlength=10).min() > 0
    for boxes, there in zip(made.boxes, present, strict=True):
        assert (iou(boxes[:, None], boxes[None])[there][:, there] - torch.eye(int(there.sum()))).max() <= 0.1
    areas = (made.boxes[..., 2:] - made.boxes[..., :2]).prod(2)
    assert torch.equal(made.areas, areas) and not made.ignored.any() and made.scale.eq(1).all()


def test_the_pixels_in_a_box_are_the_sprites() -> None:
    """The last object of a canvas is covered by none: inside its mask are the pixels of its scene, bit by bit."""
    made = scene_canvases(12, 16, 3, "train", PLAIN)
    sprites = scenes.generate(60, 16, 3, "detection/train", PLAIN)
    assert sprites.boxes is not None and sprites.masks is not None
    seen = 0
    for i in range(12):
        for k in range(5):
            if made.labels[i, k] < 0 or (made.labels[i, k + 1 :] >= 0).any():
                continue
            x0, y0, x1, y1 = made.boxes[i, k].long().tolist()
            a0, b0, a1, b1 = sprites.boxes[5 * i + k].tolist()
            mask = sprites.masks[5 * i + k, b0:b1, a0:a1].bool()
            shown, drawn = made.images[i, :, y0:y1, x0:x1], sprites.in_memory()[5 * i + k, :, b0:b1, a0:a1]
            assert torch.equal(shown[:, mask], drawn[:, mask]) and made.labels[i, k] == sprites.labels[5 * i + k]
            assert not torch.equal(shown, drawn)  # around it is the canvas
            seen += 1
    assert seen == 12


def test_a_canvas_of_pictures_shows_the_images_of_its_labels() -> None:
    pictures = torch.randint(256, (20, 3, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    source = ImageSet(pictures, torch.arange(20) % 4, tuple("abcd"))
    made = picture_canvases(source, 9, 16, 0, "test")
    assert made.images.shape == (9, 3, 48, 48) and made.labels.shape == (9, 3) and made.class_names == tuple("abcd")
    for image, boxes, labels in zip(made.images, made.boxes.long().tolist(), made.labels.tolist(), strict=True):
        for (x0, y0, x1, y1), label in zip(boxes, labels, strict=True):
            small = F.interpolate(pictures.float(), (y1 - y0, x1 - x0), mode="bilinear", antialias=True).round()
            same = (small == image[:, y0:y1, x0:x1]).flatten(1).all(1).nonzero()
            assert source.labels[same.item()] == label
    unnamed = ImageSet(pictures, torch.full((20,), -1), ())
    with pytest.raises(ConfigError, match=r"needs a class for every image .* Use --data scenes"):
        picture_canvases(unnamed, 9, 16, 0, "test")


def test_the_seed_and_the_split_decide_everything() -> None:
    made = [scene_canvases(6, 16, seed, split, PLAIN) for seed, split in ((0, "a"), (0, "a"), (1, "a"), (0, "b"))]
    assert torch.equal(made[0].images, made[1].images) and torch.equal(made[0].boxes, made[1].boxes)
    for other in made[2:]:
        assert not torch.equal(made[0].images, other.images) and not torch.equal(made[0].boxes, other.boxes)


def test_some_of_the_images() -> None:
    made = scene_canvases(6, 16, 0, "test", PLAIN)
    some = made.take(torch.tensor([4, 1]))
    assert len(some) == 2 and torch.equal(some.images[0], made.images[4]) and torch.equal(some.boxes[1], made.boxes[1])
