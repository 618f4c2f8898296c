"""Random views of a batch of images, and the plain normalisation that evaluation uses.

`augment` draws all parameters of a batch on the generator's device, then computes: no value returns to the host and no
shape depends on data, so that a step can be captured as a CUDA graph. Pixels are float32 from the first operation to
the last and never rounded to 8 bits in between; torchvision on uint8 images rounds after every operation.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from mixfast.augment import blur, colour, crop
from mixfast.augment.config import AugmentConfig

# Images worked on at once on a CPU, so that intermediate results stay in the cache; the result does not depend on it.
_CPU_CHUNK = 64


class Parameters(NamedTuple):
    """Everything random about B views, one row per image."""

    boxes: Tensor  # [B, 4] int64 (top, left, height, width)
    flip: Tensor  # [B] bool
    brightness: Tensor  # [B], see colour.Jitter; also the five below
    contrast: Tensor
    saturation: Tensor
    hue: Tensor
    order: Tensor  # [B, 3]
    hue_place: Tensor
    grey: Tensor  # [B] bool
    blur: Tensor  # [B] bool
    sigma: Tensor  # [B] pixels
    solarise: Tensor  # [B] bool


def draw(batch: int, size: tuple[int, int], cfg: AugmentConfig, generator: torch.Generator) -> Parameters:
    """Parameters of `batch` views of images of `size` (H, W), on the generator's device.

    The number of draws does not depend on `cfg`, so that two recipes with one seed differ in nothing else.
    """
    device = generator.device
    boxes = crop.sample_crops(batch, size, cfg.crop_scale, cfg.crop_ratio, generator)
    flip, apply, grey, blurred, inverted, sigma, *factors = torch.rand(10, batch, generator=generator, device=device)
    order = torch.rand(batch, 3, generator=generator, device=device).argsort(dim=1)
    hue_place = torch.randint(4, (batch,), generator=generator, device=device)
    jittered = apply < cfg.jitter
    scaled = [
        torch.where(jittered, low + uniform * (1 + strength - low), 1.0)
        for strength, uniform in zip((cfg.brightness, cfg.contrast, cfg.saturation), factors, strict=False)
        for low in [max(0.0, 1 - strength)]
    ]
    return Parameters(
        boxes=boxes,
        flip=flip < cfg.flip,
        brightness=scaled[0],
        contrast=scaled[1],
        saturation=scaled[2],
        hue=torch.where(jittered, (2 * factors[3] - 1) * cfg.hue, 0.0),
        order=order,
        hue_place=hue_place,
        grey=grey < cfg.grey,
        blur=blurred < cfg.blur,
        sigma=cfg.blur_sigma[0] + sigma * (cfg.blur_sigma[1] - cfg.blur_sigma[0]),
        solarise=inverted < cfg.solarise,
    )


def apply(
    images: Tensor,
    how: Parameters,
    cfg: AugmentConfig,
    mean: tuple[float, ...],
    std: tuple[float, ...],
    size: tuple[int, int],
) -> Tensor:
    """The views that `how` describes: float32 [B, 3, S, T], normalised. Of `cfg`, only what is switched off is read."""
    views = images.to(torch.float32).mul_(1 / 255)
    if cfg.colour_first:
        views = _colour(views, how, cfg)
    views = crop.crop_resize(views, how.boxes, size, cfg.interpolation, how.flip)
    if not cfg.colour_first:
        views = _colour(views, how, cfg)
    if cfg.blur:
        views = blur.blur(views, how.sigma, how.blur, cfg.blur_sigma[1])
    if cfg.solarise:
        views = colour.solarise(views.flatten(2), how.solarise).view(views.shape)
    return _standardised(views, mean, std)


def _colour(views: Tensor, how: Parameters, cfg: AugmentConfig) -> Tensor:
    """Jitter and grey, in the order that `cfg` says."""
    pixels = views.flatten(2)
    if cfg.grey and cfg.grey_first:
        pixels = torch.bmm(colour.grey_matrices(how.grey), pixels)
    if cfg.jitter and (cfg.brightness or cfg.contrast or cfg.saturation or cfg.hue):
        parameters = colour.Jitter(how.brightness, how.contrast, how.saturation, how.hue, how.order, how.hue_place)
        pixels = colour.jitter(pixels, parameters, with_hue=cfg.hue > 0)
    if cfg.grey and not cfg.grey_first:
        pixels = torch.bmm(colour.grey_matrices(how.grey), pixels)
    return pixels.view(views.shape)


def _standardised(views: Tensor, mean: tuple[float, ...], std: tuple[float, ...]) -> Tensor:
    scale = colour.constant(tuple(1 / s for s in std), views.device)[:, None, None]
    offset = colour.constant(tuple(-m / s for m, s in zip(mean, std, strict=True)), views.device)[:, None, None]
    return torch.addcmul(offset, views, scale)


def augment(
    images: Tensor,
    cfg: AugmentConfig,
    generator: torch.Generator,
    mean: tuple[float, ...],
    std: tuple[float, ...],
    size: int | tuple[int, int] | None = None,
) -> Tensor:
    """One random view of every image.

    Args:
        images: uint8 [B, 3, H, W], RGB, on the generator's device.
        cfg: the recipe.
        generator: every random number comes from it, drawn on its device.
        mean, std: of the three channels, in units of [0, 1].
        size: side, or (height, width), of the views; that of the images if None.

    Returns:
        float32 [B, 3, S, T], normalised.
    """
    _check(images)
    height, width = images.shape[2:]
    target = (height, width) if size is None else (size, size) if isinstance(size, int) else size
    with torch.no_grad(), torch.autocast(images.device.type, enabled=False):
        how = draw(len(images), (height, width), cfg, generator)
        if images.device.type != "cpu" or len(images) <= _CPU_CHUNK:
            return apply(images, how, cfg, mean, std, target)
        views = torch.empty(len(images), 3, *target)
        for i in range(0, len(images), _CPU_CHUNK):
            part = slice(i, i + _CPU_CHUNK)
            views[part] = apply(images[part], Parameters(*(p[part] for p in how)), cfg, mean, std, target)
        return views


def normalise(images: Tensor, mean: tuple[float, ...], std: tuple[float, ...]) -> Tensor:
    """uint8 [B, 3, H, W] to float32, (x / 255 - mean) / std: what evaluation and the feature bank see."""
    _check(images)
    return _standardised(images.to(torch.float32).mul_(1 / 255), mean, std)


def _check(images: Tensor) -> None:
    if images.dtype != torch.uint8 or images.ndim != 4 or images.shape[1] != 3:
        raise ValueError(
            f"augment: images must be uint8 [B, 3, H, W]; got {images.dtype} {list(images.shape)}. "
            "Keep images as bytes; the views are what is float."
        )
