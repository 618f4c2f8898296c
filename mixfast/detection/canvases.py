"""Canvases with several objects of known class and box, three times as wide as the images that a run trained on.

So objects have the size that they had in training. A seed decides everything.
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
_MAX_OVERLAP = 0.1  # IoU of two scenes' boxes
_TRIES = 20  # positions that are tried for an object before it is omitted
_CLUTTER = 6  # blobs of a canvas, as large as in the scenes


def scene_canvases(count: int, tile: int, seed: int, split: str, scene: SceneConfig) -> LabelledImages:
    """`count` canvases with 2 to 5 objects of scenes of `tile` pixels, cut out by their masks, on one background.

    An object is omitted if none of 20 random positions is free; the first object always fits.

    Args:
        count: N, the number of canvases.
        tile: side of the scenes; the canvas is three times as wide.
        seed: decides all draws, together with `split`.
        split: name of an independent stream, such as "test".
        scene: options of the scenes.
    """
    generator = Generators(seed)[f"detection/{split}"]
    max_objects, size = OBJECTS[1], WIDER * tile
    sprites = scenes.generate(count * max_objects, tile, seed, f"detection/{split}", scene)
    assert sprites.boxes is not None and sprites.masks is not None
    radius = (scene.clutter_radius[0] / WIDER, scene.clutter_radius[1] / WIDER)
    background = dataclasses.replace(scene, clutter=_CLUTTER, clutter_radius=radius)
    images = scenes.backgrounds(count, size, generator, background)
    counts = torch.randint(OBJECTS[0], max_objects + 1, (count, 1), generator=generator)
    sprite_boxes = sprites.boxes.view(count, max_objects, 4)
    boxes = _free_boxes(sprite_boxes[..., 2:] - sprite_boxes[..., :2], size, generator)
    boxes[torch.arange(max_objects) >= counts] = 0
    pixels = sprites.in_memory().view(count, max_objects, 3, tile, tile)
    masks = sprites.masks.view(count, max_objects, tile, tile)
    for number in range(max_objects):
        is_present = present(boxes[:, number])
        index, row, column = (masks[:, number].bool() & is_present[:, None, None]).nonzero(as_tuple=True)
        corner = boxes[index, number, :2] - sprite_boxes[index, number, :2]
        x, y = (corner + torch.stack([column, row], 1)).unbind(1)
        images[index, :, y, x] = pixels[index, number, :, row, column]
    labels = torch.where(present(boxes), sprites.labels.view(count, max_objects), -1)
    return canvases(images, boxes.float(), labels, sprites.class_names, "scenes")


def _free_boxes(sizes: Tensor, side: int, generator: torch.Generator) -> Tensor:
    """Random boxes int64 [N, M, 4] of `sizes` [N, M, 2], (width, height) that hardly overlap; zeros if none is free."""
    count, max_objects, _ = sizes.shape
    boxes = torch.zeros(count, max_objects, 4, dtype=torch.int64)
    for number in range(max_objects):
        size = sizes[:, number, None]
        corner = (torch.rand(count, _TRIES, 2, generator=generator) * (side - size + 1)).long()
        candidates = torch.cat([corner, corner + size], dim=2)
        free = (iou(candidates[:, :, None], boxes[:, None]) <= _MAX_OVERLAP).all(2)
        first_free = candidates[torch.arange(count), free.int().argmax(1)]
        boxes[:, number] = torch.where(free.any(1, keepdim=True), first_free, 0)
    return boxes


def picture_canvases(source: ImageSet, count: int, tile: int, seed: int, split: str) -> LabelledImages:
    """`count` textured canvases with three images of `source` each: see `mixfast.scoring.canvas`.

    Args:
        source: images with a class each.
        count: N, the number of canvases.
        tile: side of the images; the canvas is three times as wide.
        seed: decides all draws, together with `split`.
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
