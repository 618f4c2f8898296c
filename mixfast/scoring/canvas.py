"""Images of any data set pasted into textured canvases: objects with boxes from images without boxes.

A canvas is 1/f noise (random phases, the spectrum of natural images) with a grating. It has the colours of an image of
the set, and edges nearly as strong, so that neither colour nor contrast alone distinguishes an object. A seed decides
everything.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from mixfast.data import Images
from mixfast.data.sets import ImageSet
from mixfast.errors import ConfigError
from mixfast.mix import box_mask
from mixfast.rng import Generators
from mixfast.scoring.boxes import Objects

SIDES = (0.4, 0.6)  # range of a single object's side, as a share of the canvas; several objects share a square grid
_STEPS = 8  # number of different object sides; objects of the same side are resized together
_CHUNK = 512  # canvases painted together


def compose(source: ImageSet, count: int, size: int, objects: int, seed: int, split: str) -> Objects:
    """`count` canvases with `objects` different images of `source` each.

    Args:
        source, count, size, objects, seed, split: see `arrange`.

    Returns:
        Images with boxes [N, M, 4] and the labels of the first objects. No masks: an object here is a rectangle.

    Raises:
        ConfigError: the canvas or the set is too small.
    """
    images, boxes, index = arrange(source, count, size, objects, seed, split)
    return Objects(images, boxes, source.labels[index[:, 0]], "canvas")


def arrange(
    source: ImageSet, count: int, size: int, objects: int, seed: int, split: str
) -> tuple[Tensor, Tensor, Tensor]:
    """`count` canvases with `objects` different images of `source` each.

    A single object stands anywhere on the canvas, its side drawn from `SIDES`. With several, the canvas is cut into a
    square grid, and each object stands anywhere in a cell of its own, its side at least two thirds of the cell's. The
    first object of a canvas gives the label; every image of `source` is a first object before one is again.

    Args:
        source: at least `objects` images of any size.
        count: N, the number of canvases.
        size: side of the canvas in pixels.
        objects: M per canvas, at least 1.
        seed: decides all draws, together with `split`.
        split: name of an independent stream, such as "validation".

    Returns:
        uint8 images [N, 3, size, size], float32 boxes [N, M, 4], and the positions int64 [N, M] of the objects in
        `source`.

    Raises:
        ConfigError: the canvas or the set is too small.
    """
    grid = math.isqrt(objects - 1) + 1 if objects >= 1 else 0
    if not 1 <= objects <= len(source) or size // max(grid, 1) < 8:
        raise ConfigError(
            f"canvas: objects must be from 1 to the {len(source)} images of the data, on at least 8 pixels each way; "
            f"got {objects} on a canvas of {size} pixels."
        )
    generator = Generators(seed)[f"canvas/{split}"]
    rounds = [torch.randperm(len(source), generator=generator) for _ in range(-(-count // len(source)))]
    first = torch.cat(rounds)[:count]
    offsets = torch.rand(count, len(source) - 1, generator=generator).argsort(dim=1)[:, : objects - 1] + 1
    index = torch.cat([first[:, None], (first[:, None] + offsets) % len(source)], dim=1)  # [N, M], no image twice
    boxes = _draw_boxes(count, size, objects, grid, generator)
    donors = torch.randint(len(source), (count,), generator=generator)
    images = torch.cat([textures(source.images[i], size, generator) for i in donors.split(_CHUNK)])
    for number in range(objects):
        _paste(images, source.images, index[:, number], boxes[:, number])
    return images, boxes.float(), index


def _draw_boxes(count: int, size: int, objects: int, grid: int, generator: torch.Generator) -> Tensor:
    """Square boxes int64 [count, objects, 4] that do not overlap."""
    cell = size // grid
    low, high = (SIDES[0] * size, SIDES[1] * size) if grid == 1 else (2 / 3 * cell, cell)
    steps = torch.randint(_STEPS, (count, objects), generator=generator)
    side = (low + (high - low) * steps / (_STEPS - 1)).round().long()
    corner = (torch.rand(count, objects, 2, generator=generator) * (cell - side + 1)[..., None]).long()
    cells = torch.rand(count, grid * grid, generator=generator).argsort(dim=1)[:, :objects]
    corner += torch.stack([cells % grid, cells // grid], dim=2) * cell
    return torch.cat([corner, corner + side[..., None]], dim=2)


def _paste(canvases: Tensor, images: Images, index: Tensor, boxes: Tensor) -> None:
    """Write images[index], resized, into `boxes` int64 [N, 4] of uint8 canvases [N, 3, S, S]."""
    size = (canvases.shape[2], canvases.shape[3])
    sides = boxes[:, 2] - boxes[:, 0]
    for side in sides.unique().tolist():
        of_side = (sides == side).nonzero().flatten()
        for part in of_side.split(_CHUNK):
            small = F.interpolate(images[index[part]].float(), (side, side), mode="bilinear", antialias=True)
            inside = box_mask(boxes[part], size)[:, None].expand(-1, 3, -1, -1)
            # masked_scatter reads and writes in the same order: image, channel, row, column.
            canvases[part] = canvases[part].masked_scatter(inside, small.round().to(torch.uint8))


def textures(donors: Tensor, size: int, generator: torch.Generator) -> Tensor:
    """Textures uint8 [n, 3, size, size] in the colours of n donor images uint8 [n, 3, H, W].

    The mean length of a texture's gradient is that of its donor times a random factor between 0.4 and 1.
    """
    count = len(donors)
    pixels = donors.flatten(2).float()
    pixel_index = torch.randint(pixels.shape[2], (count, 1, 1), generator=generator)
    colour = pixels.gather(2, pixel_index.expand(-1, 3, -1))[..., None]
    tint = 1 + 0.35 * torch.randn(count, 3, 1, 1, generator=generator)
    angle, period, strength, factor = torch.rand(4, count, 1, 1, generator=generator).unbind(0)
    coordinate = torch.arange(size, dtype=torch.float32)
    along = torch.cos(math.pi * angle) * coordinate + torch.sin(math.pi * angle) * coordinate[:, None]
    wave = 1.5 * torch.sin(2 * math.pi * along / (4 * (size / 12) ** period))  # 4 pixels to a third of the canvas
    level = torch.sigmoid(2 * (_pink(count, size, generator) * (1 - 0.6 * strength) + wave * strength))
    swing = tint * (level - level.mean(dim=(1, 2), keepdim=True))[:, None]
    target = edge_strength(donors.float()) * 0.4 ** factor[:, None]
    swing *= target / edge_strength(swing).clamp(min=1e-3)
    middle = (colour + donors.float().mean(dim=(2, 3), keepdim=True)) / 2
    grain = 3 * torch.randn(count, 3, size, size, generator=generator)
    return (middle + swing + grain).round().clamp(0, 255).to(torch.uint8)


def edge_strength(images: Tensor) -> Tensor:
    """float32 [n, 1, 1, 1]: mean length of the gradient of images float [n, 3, H, W], their channels averaged."""
    grey = images.mean(1)
    across, down = grey[:, :-1, 1:] - grey[:, :-1, :-1], grey[:, 1:, :-1] - grey[:, :-1, :-1]
    return torch.hypot(across, down).mean(dim=(1, 2))[:, None, None, None]


def _pink(count: int, size: int, generator: torch.Generator) -> Tensor:
    """float32 [count, size, size], mean 0, variance 1, amplitude 1 / frequency^a with a in [0.8, 1.6] per image."""
    spectrum = torch.fft.rfft2(torch.randn(count, size, size, generator=generator))
    frequency = torch.hypot(torch.fft.fftfreq(size)[:, None], torch.fft.rfftfreq(size)[None])
    exponent = 0.8 + 0.8 * torch.rand(count, 1, 1, generator=generator)
    fall = torch.where(frequency > 0, frequency.clamp(min=1 / size) ** -exponent, 0.0)
    noise = torch.fft.irfft2(spectrum * fall, s=(size, size))
    return noise / noise.std(dim=(1, 2), keepdim=True)
