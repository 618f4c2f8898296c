"""Procedural scenes: one textured object per image on a smooth background with clutter, with its box and mask.

A class is a shape, a texture and a family of hues. Each texture and each family belongs to two classes, and the
families overlap, so that the colour alone tells little about the class: texture and shape, which colour jitter and
crops do not change, must be learned. Background, position, size, rotation, brightness and clutter are drawn for every
image independently of its class. A seed decides everything.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from mixfast.data.sets import ImageSet
from mixfast.errors import ConfigError
from mixfast.rng import Generators

Shape = Callable[[Tensor, Tensor], Tensor]  # level of a point (u, v): below 1 inside, growing outwards
Texture = Callable[[Tensor, Tensor], Tensor]  # 0..1 at (u, v) in periods

_SMALLEST = 8  # pixels
_DIVISORS = ("radius", "texture_period", "clutter_radius")
_CHUNK_PIXELS = 1 << 18  # per plane, so that the planes stay in the cache


@dataclass(frozen=True)
class SceneConfig:
    """How hard scenes are; lengths are shares of the image's side unless said otherwise, pairs are (low, high).

    `hue_spread` decides the score of raw pixels (weighted kNN, k = 200, 20,000 scenes of 32 px, seed 0): 51 % at 0.06,
    41 % at 0.2, 30 % at 0.4, 28 % at 0.5, where the hue is independent of the class. A network learns strong and coarse
    textures first.
    """

    radius: tuple[float, float] = (0.26, 0.40)  # of the circle around the object
    hue_spread: float = 0.4  # the object's hue is its family's +- this many turns; families are 0.2 apart
    texture: tuple[float, float] = (0.7, 1.0)  # share of the brightness that the texture takes away
    texture_period: tuple[float, float] = (0.55, 0.75)  # of the texture, in radii
    brightness: tuple[float, float] = (0.4, 1.0)  # of the object, HSV value
    saturation: tuple[float, float] = (0.25, 0.9)  # of the object
    background: float = 0.35  # strength of the background's gradient and waves
    clutter: int = 2  # soft blobs behind the object
    clutter_radius: tuple[float, float] = (0.08, 0.18)
    noise: float = 0.02  # standard deviation of the pixel noise, of full scale

    def __post_init__(self) -> None:
        ranges = {"radius": 0.5, "texture": 1.0, "texture_period": 4.0, "brightness": 1.0, "saturation": 1.0}
        for name, most in {**ranges, "clutter_radius": 1.0}.items():
            low, high = getattr(self, name)
            if not 0 <= low <= high <= most or (low == 0 and name in _DIVISORS):
                raise ConfigError(
                    f"data.scene.{name} must be (low, high) with 0 <= low <= high <= {most}"
                    f"{' and low > 0' if name in _DIVISORS else ''}; got {(low, high)}."
                )
        for name, most in {"hue_spread": 0.5, "background": 1.0, "clutter": 100, "noise": 1.0}.items():
            if not 0 <= (value := getattr(self, name)) <= most:
                raise ConfigError(f"data.scene.{name} must be from 0 to {most}; got {value}.")


def _polar(profile: Callable[[Tensor], Tensor]) -> Shape:
    return lambda u, v: torch.hypot(u, v) / profile(torch.atan2(v, u))


def _triangle(u: Tensor, v: Tensor) -> Tensor:
    half = math.sqrt(3) / 2
    return 2 * torch.maximum(v, torch.maximum(half * u, -half * u) - v / 2)


def _cross(u: Tensor, v: Tensor) -> Tensor:
    u, v = u.abs(), v.abs()
    return torch.minimum(torch.maximum(u, v / 0.33), torch.maximum(u / 0.33, v)) / 0.95


def _ring(u: Tensor, v: Tensor) -> Tensor:
    return (torch.hypot(u, v) - 0.68).abs() / 0.32


def _crescent(u: Tensor, v: Tensor) -> Tensor:
    return torch.maximum(torch.hypot(u, v), 1.7 - torch.hypot(u - 0.55, v))


SHAPES: dict[str, Shape] = {
    "disc": torch.hypot,
    "square": lambda u, v: torch.maximum(u.abs(), v.abs()) / 0.75,
    "triangle": _triangle,
    "star": _polar(lambda angle: 0.72 + 0.28 * torch.cos(5 * angle)),
    "cross": _cross,
    "ring": _ring,
    "half": lambda u, v: torch.maximum(torch.hypot(u, v), 1 + 1.2 * v),
    "crescent": _crescent,
    "clover": _polar(lambda angle: 0.65 + 0.35 * torch.cos(3 * angle)),
    "bar": lambda u, v: torch.maximum(u.abs() / 0.95, v.abs() / 0.4),
}


def _wave(x: Tensor) -> Tensor:
    return 0.5 + 0.5 * torch.cos(2 * math.pi * x)


TEXTURES: dict[str, Texture] = {
    "plain": lambda p, q: torch.zeros_like(p),
    "stripes": lambda p, q: _wave(p),
    "checks": lambda p, q: (0.5 + 2 * torch.cos(2 * math.pi * p) * torch.cos(2 * math.pi * q)).clamp(0, 1),
    "dots": lambda p, q: (_wave(p) * _wave(q) * 2 - 0.3).clamp(0, 1),
    "rings": lambda p, q: _wave(torch.hypot(p, q)),
}

FAMILIES = 5  # hues, evenly round the circle

# shape, hue family, texture: each pair (family, texture) occurs once
CLASSES: tuple[tuple[str, int, str], ...] = tuple(
    (shape, i % FAMILIES, list(TEXTURES)[(i // FAMILIES + 2 * i) % len(TEXTURES)]) for i, shape in enumerate(SHAPES)
)


def generate(count: int, size: int, seed: int, split: str, cfg: SceneConfig) -> ImageSet:
    """`count` scenes of `size` x `size` pixels with balanced classes in random order.

    `split` names an independent stream: "train" and "test" of one seed share no scene.

    Raises:
        ConfigError: `size` is too small to show a shape.
    """
    if size < _SMALLEST:
        raise ConfigError(f"data.size must be at least {_SMALLEST} for scenes; got {size}.")
    generator = Generators(seed)[f"scenes/{split}"]
    labels = (torch.arange(count) % len(CLASSES))[torch.randperm(count, generator=generator)]
    images = torch.empty(count, 3, size, size, dtype=torch.uint8)
    masks = torch.empty(count, size, size, dtype=torch.uint8)
    chunk = max(1, _CHUNK_PIXELS // size**2)
    for label, (shape, family, texture) in enumerate(CLASSES):
        for index in (labels == label).nonzero().flatten().split(chunk):
            pixels, mask = _render(len(index), size, SHAPES[shape], family, TEXTURES[texture], cfg, generator)
            images[index], masks[index] = pixels, mask
    names = tuple(f"{texture} {shape}" for shape, _, texture in CLASSES)
    return ImageSet(images, labels, names, boxes_of(masks), masks)


def backgrounds(count: int, size: int, generator: torch.Generator, cfg: SceneConfig) -> Tensor:
    """uint8 [count, 3, size, size]: scenes without their object."""
    x, y = _grid(size)
    parts = []
    for index in torch.arange(count).split(max(1, _CHUNK_PIXELS // size**2)):
        canvas = _background(_Draw(len(index), generator), x, y, cfg)
        canvas += torch.randn(canvas.shape, generator=generator) * cfg.noise
        parts.append(canvas.mul_(255).round_().clamp_(0, 255).to(torch.uint8).view(-1, 3, size, size))
    return torch.cat(parts)


def boxes_of(masks: Tensor) -> Tensor:
    """Tight boxes int64 [N, 4] (x0, y0, x1, y1), half-open, of masks [N, H, W]; an empty mask gives zeros."""
    sides = []
    for axis in (1, 2):  # columns (x), then rows (y)
        hit = masks.amax(dim=axis) > 0
        low = hit.to(torch.uint8).argmax(dim=1)
        high = hit.shape[1] - hit.flip(1).to(torch.uint8).argmax(dim=1)
        sides.append((low, torch.where(hit.any(dim=1), high, 0)))
    (x0, x1), (y0, y1) = sides
    return torch.stack([x0, y0, x1, y1], dim=1)


def _grid(size: int) -> tuple[Tensor, Tensor]:
    """x and y [1, 1, pixels] of the pixels' centres, in shares of the side."""
    grid = (torch.arange(size) + 0.5) / size
    return grid.expand(size, size).reshape(1, 1, -1), grid[:, None].expand(size, size).reshape(1, 1, -1)


class _Draw:
    """Uniform draws [n, 1, 1] for n images."""

    def __init__(self, count: int, generator: torch.Generator):
        self.count, self.generator = count, generator

    def __call__(self, low: float, high: float) -> Tensor:
        return low + (high - low) * torch.rand(self.count, 1, 1, generator=self.generator)

    def colour(self, hue: Tensor, saturation: tuple[float, float], value: tuple[float, float]) -> Tensor:
        """RGB [n, 3, 1] of an HSV colour with the given hue [n, 1, 1] in turns."""
        distance = hue - torch.tensor([0.0, 1 / 3, 2 / 3])[:, None]
        weight = (2 - 6 * (distance - distance.round()).abs()).clamp(0, 1)
        bright = self(*value)
        return bright * (1 - self(*saturation) * (1 - weight))


def _render(
    count: int, size: int, shape: Shape, family: int, texture: Texture, cfg: SceneConfig, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """uint8 images [count, 3, size, size] and masks [count, size, size] of one class."""
    draw = _Draw(count, generator)
    x, y = _grid(size)
    canvas = _background(draw, x, y, cfg)
    radius = draw(*cfg.radius)
    room = (0.5 - 0.9 * radius).clamp(min=0)  # the centre's distance from the middle: most of the object stays inside
    dx, dy = x - 0.5 - room * draw(-1, 1), y - 0.5 - room * draw(-1, 1)
    angle = draw(0, 2 * math.pi)
    u = (torch.cos(angle) * dx + torch.sin(angle) * dy) / radius
    v = (torch.cos(angle) * dy - torch.sin(angle) * dx) / radius
    inside = ((1 - shape(u, v)) * (radius * size) + 0.5).clamp(0, 1)  # share of the pixel, to first order
    period = draw(*cfg.texture_period)
    pattern = texture(u / period, v / period)
    hue = family / FAMILIES + draw(-cfg.hue_spread, cfg.hue_spread)
    colour = draw.colour(hue, cfg.saturation, cfg.brightness) * (1 - draw(*cfg.texture) * pattern)
    canvas = torch.lerp(canvas, colour, inside)
    canvas += torch.randn(canvas.shape, generator=generator) * cfg.noise
    pixels = canvas.mul_(255).round_().clamp_(0, 255).to(torch.uint8)
    return pixels.view(count, 3, size, size), (inside >= 0.5).to(torch.uint8).view(count, size, size)


def _background(draw: _Draw, x: Tensor, y: Tensor, cfg: SceneConfig) -> Tensor:
    """[n, 3, pixels]: two colours mixed along a gradient with a slow wave, then soft blobs."""
    first, second = (draw.colour(draw(0, 1), (0.0, 0.6), (0.2, 0.9)) for _ in range(2))
    angle = draw(0, 2 * math.pi)
    slope = torch.cos(angle) * (x - 0.5) + torch.sin(angle) * (y - 0.5)
    slope = slope + 0.2 * torch.sin(2 * math.pi * (draw(-1, 1) * x + draw(-1, 1) * y + draw(0, 1)))
    canvas = torch.lerp(first, second, (0.5 + slope * cfg.background * 2).clamp(0, 1))
    for _ in range(cfg.clutter):
        radius, stretch = draw(*cfg.clutter_radius), draw(0.6, 1.6)
        level = ((x - draw(0, 1)) * stretch) ** 2 + ((y - draw(0, 1)) / stretch) ** 2
        cover = (1.5 - level / radius**2).clamp(0, 1)
        canvas = torch.lerp(canvas, draw.colour(draw(0, 1), (0.2, 0.9), (0.3, 1.0)), cover)
    return canvas
