"""Data structures that operators pass to backends: columns of the parameters, options, and the numbers of a recipe."""

import math
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

# Columns of the parameters, float32 [V, B, 16]: a crop in whole pixels; flip, 0 or 1; three factors (1: no change); a
# hue shift in turns; the order of the three steps (0 brightness, 1 contrast, 2 saturation) and how many of them come
# before the hue; grey, 0 or 1; standard deviation of the blur in pixels (0: none); solarise, 0 or 1.
COLUMNS = (
    *("top", "left", "height", "width", "flip", "brightness", "contrast", "saturation"),
    *("hue", "order0", "order1", "order2", "hue_place", "grey", "sigma", "solarise"),
)


class Options(NamedTuple):
    """The options of augment_views, which are the same for every image."""

    height: int  # of a view
    width: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    interpolation: str  # bilinear or bicubic
    colour_first: bool
    grey_first: bool
    blur_reach: int  # requested radius of the blur in pixels; 0: no view is blurred
    dtype: torch.dtype
    channels_last: bool

    @property
    def scale(self) -> tuple[float, ...]:
        """Factor of each channel: pixels x in [0, 1] are standardised as x * scale + offset."""
        return tuple(1 / s for s in self.std)

    @property
    def reach(self) -> int:
        """Radius of the blur in pixels, below the sides of the view."""
        return min(self.blur_reach, self.height - 1, self.width - 1)

    @property
    def offset(self) -> tuple[float, ...]:
        return tuple(-m / s for m, s in zip(self.mean, self.std, strict=True))


def empty_views(images: Tensor, parameters: Tensor, options: Options) -> Tensor:
    """Uninitialised memory for the views [V, B, 3, S, T] in the requested memory format."""
    views, batch = parameters.shape[:2]
    if options.channels_last:
        shape = (views, batch, options.height, options.width, 3)
        return images.new_empty(shape, dtype=options.dtype).permute(0, 1, 4, 2, 3)
    return images.new_empty((views, batch, 3, options.height, options.width), dtype=options.dtype)


def memory_format(views: Tensor) -> torch.memory_format:
    """The memory format of the mixtures of such views."""
    last = views.is_contiguous(memory_format=torch.channels_last) and not views.is_contiguous()
    return torch.channels_last if last else torch.contiguous_format


class Recipe(Protocol):
    """The distribution of a view's parameters, such as mixfast.augment.AugmentConfig. Probabilities are per view."""

    @property
    def crop_scale(self) -> tuple[float, float]: ...  # share of the image's area, uniform

    @property
    def crop_ratio(self) -> tuple[float, float]: ...  # width / height, log-uniform

    @property
    def flip(self) -> float: ...  # probability

    @property
    def brightness(self) -> float: ...  # x; the factor is uniform in [max(0, 1 - x), 1 + x], as in the next two

    @property
    def contrast(self) -> float: ...

    @property
    def saturation(self) -> float: ...

    @property
    def hue(self) -> float: ...  # shift uniform in [-x, x] turns

    @property
    def jitter(self) -> float: ...  # probability of brightness, contrast, saturation and hue together

    @property
    def grey(self) -> float: ...  # probability

    @property
    def blur(self) -> float: ...  # probability

    @property
    def blur_sigma(self) -> tuple[float, float]: ...  # pixels, uniform

    @property
    def solarise(self) -> float: ...  # probability


class Law(NamedTuple):
    """A recipe in the form that the backends read: float64 numbers in this order; uniform u gives low + u * range."""

    area_low: float  # pixels
    area_range: float
    ratio_low: float  # natural logarithms
    ratio_range: float
    central_top: float  # the crop that is used if ten tries do not fit
    central_left: float
    central_height: float
    central_width: float
    flip: float  # probabilities: u < p
    jitter: float
    grey: float
    blur: float
    solarise: float
    sigma_low: float
    sigma_range: float
    brightness_low: float
    brightness_range: float
    contrast_low: float
    contrast_range: float
    saturation_low: float
    saturation_range: float
    hue_low: float
    hue_range: float


def law(cfg: Recipe, size: tuple[int, int]) -> Law:
    """The numbers of a recipe for images of `size` (H, W)."""
    area = size[0] * size[1]
    (scale_low, scale_high), (ratio_low, ratio_high) = cfg.crop_scale, cfg.crop_ratio
    log_low, log_high = math.log(ratio_low), math.log(ratio_high)
    factors = []
    for strength in (cfg.brightness, cfg.contrast, cfg.saturation):
        low = max(0.0, 1 - strength)
        factors += [low, 1 + strength - low]
    numbers: list[float] = [scale_low * area, (scale_high - scale_low) * area, log_low, log_high - log_low]
    numbers += central_crop(size, cfg.crop_ratio)
    numbers += [cfg.flip, cfg.jitter, cfg.grey, cfg.blur, cfg.solarise]
    numbers += [cfg.blur_sigma[0], cfg.blur_sigma[1] - cfg.blur_sigma[0]]
    return Law._make([*numbers, *factors, -cfg.hue, 2 * cfg.hue])


def central_crop(size: tuple[int, int], ratio: tuple[float, float]) -> tuple[int, int, int, int]:
    """(top, left, height, width) of the largest central crop whose ratio is allowed."""
    height, width = size
    crop_h, crop_w = height, width
    if width / height < ratio[0]:
        crop_h = round(width / ratio[0])
    elif width / height > ratio[1]:
        crop_w = round(height * ratio[1])
    return (height - crop_h) // 2, (width - crop_w) // 2, crop_h, crop_w
