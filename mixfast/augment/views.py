"""Random views of a batch of images by a recipe, and the plain normalisation that evaluation uses.

The pixels are those of `mixfast.augment_views`, the parameters those of `mixfast.draw_views`: both stay on the device,
no value returns to the host and no shape depends on data, so that a step can be captured as a CUDA graph.
"""

import math
from collections.abc import Iterable
from typing import Protocol

import torch
from torch import Tensor

from mixfast.augment.config import AugmentConfig, second_view
from mixfast.ops import augment_views, draw_views
from mixfast.ops.views.reference import standardised
from mixfast.world import current

Channels = tuple[float, ...]


CROP = 5  # the first columns of a view's parameters: top, left, height, width, flip


class Views(list[Tensor]):
    """A list of views of the same images, [B, 3, S, T] each, with the crop that each view shows."""

    def __init__(self, views: Iterable[Tensor], crops: Tensor):
        """`crops` is float32 [V, B, 5]: top, left, height, width in pixels of the image, 1 where it is mirrored."""
        super().__init__(views)
        self.crops = crops


class Augment(Protocol):
    """`augment(images, count=2)`: random, normalised float32 views [B, 3, S, T] of uint8 images [B, 3, H, W]."""

    def __call__(self, images: Tensor, count: int = 2) -> Views: ...


def augment(
    images: Tensor,
    cfg: AugmentConfig,
    state: Tensor,
    mean: Channels,
    std: Channels,
    count: int = 2,
    *,
    size: int | tuple[int, int] | None = None,
    memory_format: torch.memory_format = torch.contiguous_format,
) -> Views:
    """`count` random views of every image in one call: the first by `cfg`, the others by its `second_view`.

    Args:
        images: uint8 [B, 3, H, W], RGB; the rows of this process (`mixfast.world`).
        cfg: the recipe.
        state: int64 [2] on the images' device, from `mixfast.rng.Generators.counter`; its draw number grows by one.
        mean, std: three numbers each, for pixels in [0, 1].
        size: side, or (height, width), of the views in pixels; None: the size of the images.
        memory_format: memory format of the views.

    Returns:
        `count` tensors float32 [B, 3, S, T], normalised, with their crops.
    """
    _check(images)
    recipes = [cfg] + [second_view(cfg)] * (count - 1)
    here = current()
    parameters = draw_views(state, here.size * len(images), (images.shape[2], images.shape[3]), recipes)
    parameters = here.own(parameters, dim=1)
    views = augment_views(
        images.contiguous(),
        parameters,
        size=size,
        mean=mean,
        std=std,
        interpolation=cfg.interpolation,
        colour_first=cfg.colour_first,
        grey_first=cfg.grey_first,
        blur_reach=math.ceil(3 * cfg.blur_sigma[1]) if any(recipe.blur for recipe in recipes) else 0,
        memory_format=memory_format,
    )
    return Views(views, parameters[..., :CROP])


def normalise(images: Tensor, mean: Channels, std: Channels) -> Tensor:
    """uint8 images [B, 3, H, W] as float32 (images / 255 - mean) / std, the input of evaluations."""
    _check(images)
    scale, offset = tuple(1 / s for s in std), tuple(-m / s for m, s in zip(mean, std, strict=True))
    return standardised(images.to(torch.float32).mul_(1 / 255), scale, offset)


def _check(images: Tensor) -> None:
    if images.dtype != torch.uint8 or images.ndim != 4 or images.shape[1] != 3:
        raise ValueError(
            f"augment: images must be uint8 [B, 3, H, W]; got {images.dtype} {list(images.shape)}. "
            "Keep images as bytes; only the views are floating-point."
        )
