"""Canvases with several objects of known class and place, three times as wide as the images that a run trained on.

Objects so keep the size that they had in training. Everything follows from a seed; nothing is looped over images.
"""

import dataclasses

import torch
from torch import Tensor

from mixfast.data import ImageSet, SceneConfig, scenes
from mixfast.detection.images import LabelledImages, canvases
from mixfast.errors import ConfigError
from mixfast.rng import Generators
from mixfast.scoring.boxes import iou, present
from mixfast.scoring.canvas import arrange

WIDER = 3  # side of a canvas over that of an image
OBJECTS = (2, 5)  # scenes on a canvas
PICTURES = 3  # pictures on a canvas
_MOST_OVERLAP = 0.1  # IoU of two scenes' boxes
_TRIES = 20  # positions that are tried for an object before it is omitted
_CLUTTER = 6  # blobs of a canvas, as large as in the scenes


def scene_canvases(count: int, tile: int, seed: int, split: str, look: SceneConfig) -> LabelledImages:
    """`count` canvases with 2 to 5 objects of scenes of `tile` pixels, cut out by their masks, on one background.

    An object is omitted if none of 20 random positions is free; the first object always fits.

    Args:
        count: N, the number of canvases.
        tile: side of the scenes; the canvas is three times as wide.
        seed: decides all draws, together with `split`.
        split: name of an independent stream, such as "test".
        look: options of the scenes.
    """
    draw = Generators(seed)[f"detection/{split}"]
    most, size = OBJECTS[1], WIDER * tile
    sprites = scenes.generate(count * most, tile, seed, f"detection/{split}", look)
    assert sprites.boxes is not None and sprites.masks is not None
    radius = (look.clutter_radius[0] / WIDER, look.clutter_radius[1] / WIDER)
    behind = dataclasses.replace(look, clutter=_CLUTTER, clutter_radius=radius)
    images = scenes.backgrounds(count, size, draw, behind)
    wanted = torch.randint(OBJECTS[0], most + 1, (count, 1), generator=draw)
    cut = sprites.boxes.view(count, most, 4)
    boxes = _places(cut[..., 2:] - cut[..., :2], size, draw)
    boxes[torch.arange(most) >= wanted] = 0
    pixels, masks = sprites.in_memory().view(count, most, 3, tile, tile), sprites.masks.view(count, most, tile, tile)
    for number in range(most):
        here = present(boxes[:, number])
        which, row, column = (masks[:, number].bool() & here[:, None, None]).nonzero(as_tuple=True)
        x, y = (boxes[which, number, :2] - cut[which, number, :2] + torch.stack([column, row], 1)).unbind(1)
        images[which, :, y, x] = pixels[which, number, :, row, column]
    labels = torch.where(present(boxes), sprites.labels.view(count, most), -1)
    return canvases(images, boxes.float(), labels, sprites.class_names, "scenes")


def _places(sizes: Tensor, side: int, draw: torch.Generator) -> Tensor:
    """Boxes int64 [N, M, 4] of `sizes` [N, M, 2], (width, height), that hardly overlap; zeros where none was free."""
    count, most, _ = sizes.shape
    boxes = torch.zeros(count, most, 4, dtype=torch.int64)
    for number in range(most):
        size = sizes[:, number, None]
        corner = (torch.rand(count, _TRIES, 2, generator=draw) * (side - size + 1)).long()
        tried = torch.cat([corner, corner + size], dim=2)
        free = (iou(tried[:, :, None], boxes[:, None]) <= _MOST_OVERLAP).all(2)
        first = tried[torch.arange(count), free.int().argmax(1)]
        boxes[:, number] = torch.where(free.any(1, keepdim=True), first, 0)
    return boxes


def picture_canvases(source: ImageSet, count: int, tile: int, seed: int, split: str) -> LabelledImages:
    """`count` textured canvases with three images of `source` each: see `mixfast.scoring.canvas`.

    Args:
        source: images with a class each.
        count: N.
        tile: side of the images; the canvas is three times as wide.
        seed: of everything that is drawn, together with `split`.
        split: name of an independent stream, such as "test".

    Raises:
        ConfigError: an image without a class, or fewer images than a canvas needs.
    """
    if not source.labelled:
        raise ConfigError(
            "--data canvas needs a class for every image of the run's data set, and it has images without one. "
            "Use --data scenes, or photographs with boxes (voc, coco)."
        )
    images, boxes, index = arrange(source, count, WIDER * tile, PICTURES, seed, f"detection/{split}")
    return canvases(images, boxes, source.labels[index], source.class_names, "canvas")
