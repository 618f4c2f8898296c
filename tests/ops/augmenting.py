"""What the tests of augment_views share: inputs, and the same views by torchvision, one image at a time."""

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from mixfast.augment import PRESETS, AugmentConfig
from mixfast.ops.views._layout import COLUMNS

MEAN, STD = (0.49, 0.48, 0.44), (0.21, 0.2, 0.25)
EVERYTHING = AugmentConfig(blur=0.5, solarise=0.3, grey_first=True, interpolation="bicubic", hue=0.5)
RECIPES = {**PRESETS, "everything": EVERYTHING, "everything, colour first": replace(EVERYTHING, colour_first=True)}


def byte_images(count: int, rng: torch.Generator, size: tuple[int, int] = (32, 32)) -> Tensor:
    return torch.randint(0, 256, (count, 3, *size), generator=rng, dtype=torch.uint8)


def new_state(rng: torch.Generator) -> Tensor:
    """A stream at its beginning."""
    return torch.tensor([int(torch.randint(2**62, (), generator=rng)), 0])


def reach_of(cfg: AugmentConfig) -> int:
    return math.ceil(3 * cfg.blur_sigma[1]) if cfg.blur else 0


def options(cfg: AugmentConfig, **others: Any) -> dict[str, Any]:
    """The options of augment_views that follow from a recipe."""
    return {
        "mean": MEAN,
        "std": STD,
        "interpolation": cfg.interpolation,
        "colour_first": cfg.colour_first,
        "grey_first": cfg.grey_first,
        "blur_reach": reach_of(cfg),
        **others,
    }


def keys(x: float) -> float:
    """Keys' kernel with A = -1/2 (Keys 1981, equation 15)."""
    x = abs(x)
    return 1.5 * x**3 - 2.5 * x**2 + 1 if x < 1 else -0.5 * x**3 + 2.5 * x**2 - 4 * x + 2 if x < 2 else 0.0


def enlarged(image: Tensor, size: Sequence[int]) -> Tensor:
    """An image [C, H, W] resized as Pillow's bicubic enlarges it: of each axis, the weights of a float64 loop over
    pixels, which sum to one over those that exist. Points are rounded to float32, as torch rounds them."""
    for axis, out in zip((1, 2), size, strict=True):
        length = image.shape[axis]
        points = ((torch.arange(out) + 0.5) * (torch.tensor(length) / out) - 0.5).tolist()
        weights = torch.tensor([[keys(point - x) for x in range(length)] for point in points], dtype=torch.float64)
        weights /= weights.sum(1, keepdim=True)
        image = torch.tensordot(image.double(), weights, dims=([axis], [1])).movedim(-1, axis)
    return image.float().clamp(0, 1)


def by_torchvision(image: Tensor, row: Tensor, cfg: AugmentConfig, size: tuple[int, int]) -> Tensor:
    """The view of a uint8 image that a row of parameters describes, with torchvision's functions on one float image.

    Bicubic crops are `enlarged`: torchvision's, without antialiasing, have another kernel than Pillow's.
    """
    import torchvision.transforms.v2.functional as functional

    how = dict(zip(COLUMNS, row.tolist(), strict=True))

    def crop(x: Tensor) -> Tensor:
        box = [int(how[name]) for name in COLUMNS[:4]]
        if cfg.interpolation == "bicubic":
            x = enlarged(functional.crop(x, *box), size)
        else:
            x = functional.resized_crop(x, *box, list(size), functional.InterpolationMode.BILINEAR, antialias=False)
        return functional.horizontal_flip(x) if how["flip"] else x

    def jitter(x: Tensor) -> Tensor:
        steps: list[Any] = [functional.adjust_brightness, functional.adjust_contrast, functional.adjust_saturation]
        amounts = [how[name] for name in ("brightness", "contrast", "saturation", "hue")]
        order = [int(how[name]) for name in ("order0", "order1", "order2")]
        order.insert(int(how["hue_place"]), 3)
        for step in order:
            x = [*steps, functional.adjust_hue][step](x, amounts[step])
        return x

    def grey(x: Tensor) -> Tensor:
        return functional.rgb_to_grayscale(x, num_output_channels=3) if how["grey"] else x

    colour = (grey, jitter) if cfg.grey_first else (jitter, grey)
    x = image.float() / 255
    for step in (*colour, crop) if cfg.colour_first else (crop, *colour):
        x = step(x)
    if how["sigma"]:
        reach = min(reach_of(cfg), *(side - 1 for side in size))
        x = functional.gaussian_blur(x, [2 * reach + 1] * 2, [how["sigma"]] * 2)
    if how["solarise"]:
        x = functional.solarize(x, threshold=0.5)
    return functional.normalize(x, list(MEAN), list(STD))


def assert_same(ours: Tensor, theirs: Tensor, cfg: AugmentConfig, tolerance: float) -> None:
    """Solarising jumps at one half, where the last bit of what came before decides."""
    decided = ((ours - theirs).abs() < 0.1) if cfg.solarise else torch.ones_like(ours, dtype=torch.bool)
    assert decided.float().mean() > 0.9999
    torch.testing.assert_close(ours[decided], theirs[decided], rtol=0, atol=tolerance)
