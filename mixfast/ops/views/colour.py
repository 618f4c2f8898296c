"""Colour operations on a batch, each image with its own parameters.

Images are float32 [B, 3, P], P pixels in [0, 1], RGB. Definitions: torchvision.transforms.v2.functional on float
images, thus with clamping to [0, 1] after every step and without rounding.
"""

from functools import cache
from typing import NamedTuple

import torch
from torch import Tensor

GREY = (0.2989, 0.587, 0.114)  # torchvision's luma weights (ITU-R 601); they sum to 0.9999


class Jitter(NamedTuple):
    """Colour jitter of B images: factors of 1 and a shift of 0 leave an image as it is."""

    brightness: Tensor  # [B] factor
    contrast: Tensor  # [B] factor
    saturation: Tensor  # [B] factor
    hue: Tensor  # [B] shift in turns
    order: Tensor  # [B, 3] permutation of 0 brightness, 1 contrast, 2 saturation
    hue_place: Tensor  # [B] 0..3: how many of these three come before the hue


# Kept for good, as a captured graph reads it for as long as it lives.
@cache
def constant(values: tuple[float, ...], device: torch.device) -> Tensor:
    """float32 tensor of a few numbers, copied to the device once: a later call neither copies nor waits."""
    return torch.tensor(values, device=device)


def jitter(images: Tensor, how: Jitter) -> Tensor:
    """Brightness, contrast, saturation and hue of [B, 3, P], in each image's own order.

    The first three are all "clamp(a x + (1 - a) y)", where y is black, the image's mean grey, or the pixel's grey:
    a 3x3 matrix and an offset per image, whichever it is. An image's three such steps are therefore laid out as three
    slots before the hue and three after it; a step runs on the side that `hue_place` says and its twin on the other
    side is the identity (exactly: x * 1, and clamping a clamped value). That costs six small products and one hue for
    all 24 orders, where trying every step at every place would cost sixteen steps and four hues.
    """
    grey = constant(GREY, images.device)
    factors = torch.stack([how.brightness, how.contrast, how.saturation], dim=1).gather(1, how.order)  # [B, slot]
    slots = torch.arange(3, device=images.device)
    early = slots < how.hue_place[:, None]
    images = _blends(images, torch.where(early, factors, 1.0), how.order, grey)
    images = shift_hue(images, how.hue)
    return _blends(images, torch.where(early, 1.0, factors), how.order, grey)


def _blends(images: Tensor, factors: Tensor, order: Tensor, grey: Tensor) -> Tensor:
    """Three steps of brightness, contrast or saturation: factors and order are [B, 3], by slot."""
    rest = 1 - factors
    eye = torch.eye(3, device=images.device)
    to_grey = torch.where(order == 2, rest, 0.0)
    matrices = factors[..., None, None] * eye + to_grey[..., None, None] * grey  # [B, slot, 3, 3]
    to_mean = torch.where(order == 1, rest, 0.0)
    for slot in range(3):
        mean = images.mean(dim=2) @ grey  # [B], the mean grey of the image as it is now
        offset = (to_mean[:, slot] * mean)[:, None, None]
        images = torch.baddbmm(offset, matrices[:, slot], images).clamp_(0, 1)
    return images


def shift_hue(images: Tensor, turns: Tensor) -> Tensor:
    """Rotate the hue of [B, 3, P] by `turns` [B] (1 = all the way round); value and saturation stay.

    The hexagonal HSV model of torchvision, without its case distinctions. With chroma c = max - min and hue h in
    sixths of a turn, |h| = 1 + (g + b - r - min) / c for h in [-3, 3], and its sign is that of g - b. A channel whose
    own hue is m (red 0, green 2, blue 4) then has the value min + c clamp(2 - |h - m|, 0, 1), the distance taken round
    the circle.
    """
    red, green, blue = images.unbind(1)
    high, low = images.amax(dim=1), images.amin(dim=1)
    chroma = high - low
    # times c; of a grey pixel 0, which the chroma at the end makes irrelevant
    hue = (green - low).add_(blue - low).add_(high - red)
    hue = torch.copysign(hue.div_((chroma * 6).clamp_(min=1e-12)), green - blue).add_(turns[:, None])
    # h - m in turns, plus 1.5 to be positive: its fraction less one half is then h - m brought into [-1/2, 1/2]
    from_channel = hue[:, None] + constant((1.5, 1.5 - 1 / 3, 1.5 + 1 / 3), images.device)[:, None]
    weight = from_channel.frac_().sub_(0.5).abs_().mul_(-6).add_(2).clamp_(0, 1)
    return weight.mul_(chroma[:, None]).add_(low[:, None])


def grey_matrices(which: Tensor) -> Tensor:
    """[B, 3, 3]: the matrix that turns RGB into grey where `which` [B] is true, the identity elsewhere."""
    grey = constant(GREY, which.device).expand(3, 3)
    return torch.where(which[:, None, None], grey, torch.eye(3, device=which.device))


def solarise(images: Tensor, which: Tensor) -> Tensor:
    """Invert the values from one half up, in images where `which` [B] is true."""
    return torch.where(which[:, None, None] & (images >= 0.5), 1 - images, images)


def standardised(images: Tensor, scale: tuple[float, ...], offset: tuple[float, ...]) -> Tensor:
    """x * scale + offset by channel, of images [B, 3, H, W]."""
    factors, terms = (constant(values, images.device)[:, None, None] for values in (scale, offset))
    return torch.addcmul(terms, images, factors)
