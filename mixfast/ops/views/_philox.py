"""The counter-based generator Philox4x32-10 (Salmon et al. 2011) in int64 tensors, and the meaning of its numbers.

The key is state[0]: its low 32 bits, then its high ones. The counter (draw, image, view, block), 32 bits each, gives
four 32-bit numbers n, read as uniform u = n / 2^32 in [0, 1), float64:

    block 0..9  try t of the crop: area, ratio, top, left
    block 10    flip, jitter, grey, blur
    block 11    solarise, sigma, order, not used
    block 12    brightness, contrast, saturation, hue

where draw is state[1] mod 2^32, image the position in the batch, and view the position of the recipe. An event of
probability p happens if u < p. A uniform value is low + u range. One of m choices has the number floor(n m / 2^32): top
is one of H - h + 1, left one of W - w + 1, and order o one of 24, with o = 4 p + hue_place, where p numbers the
permutations of (0, 1, 2) in lexical order. A crop is (w, h) = (sqrt(area ratio), sqrt(area / ratio)), rounded half to
even, with ratio = e^x and e^x = (sum over k <= 9 of (x/64)^k / k!)^64 by Horner's rule and six squarings. The first of
the ten tries with 0 < w <= W and 0 < h <= H is used, else the central crop.

All computations are in float64 with one rounding per operation (no fused multiply-add), so that every backend crops the
same pixels; results are rounded to float32 at the end.
"""

import math

import torch
from torch import Tensor

from mixfast.ops.views._layout import COLUMNS, Law

BLOCKS = 13
TRIES = 10  # torchvision draws until a crop fits, ten times at most
TAYLOR = tuple(1 / math.factorial(k) for k in range(10))
_LOW = 0xFFFFFFFF
_MULTIPLIERS, _KEY_STEPS = (0xD2511F53, 0xCD9E8D57), (0x9E3779B9, 0xBB67AE85)


def philox(key: Tensor, counter: tuple[Tensor, Tensor, Tensor, Tensor]) -> Tensor:
    """int64 [..., 4], numbers in [0, 2^32).

    Args:
        key: int64 [], its low and high 32 bits.
        counter: four int64 tensors that broadcast; only their low 32 bits are used.
    """
    k0, k1 = key & _LOW, (key >> 32) & _LOW
    c0, c1, c2, c3 = (word & _LOW for word in torch.broadcast_tensors(*counter))
    for _ in range(10):
        # int64 products wrap around, but their 64 bits are right; the mask removes copies of the sign bit after >>
        p0, p1 = c0 * _MULTIPLIERS[0], c2 * _MULTIPLIERS[1]
        c0, c1, c2, c3 = (p1 >> 32) & _LOW ^ c1 ^ k0, p1 & _LOW, (p0 >> 32) & _LOW ^ c3 ^ k1, p0 & _LOW
        k0, k1 = (k0 + _KEY_STEPS[0]) & _LOW, (k1 + _KEY_STEPS[1]) & _LOW
    return torch.stack([c0, c1, c2, c3], dim=-1)


def exponential(x: Tensor) -> Tensor:
    """e^x to 1e-12, for |x| < 7."""
    x = x * (1 / 64)
    power = torch.full_like(x, TAYLOR[-1])
    for coefficient in TAYLOR[-2::-1]:
        power = power * x + coefficient
    for _ in range(6):
        power = power * power
    return power


def draw(state: Tensor, batch: int, size: tuple[int, int], laws: tuple[Law, ...]) -> Tensor:
    """Parameters float32 [V, B, 16] of the next draw; does not move the state."""
    device = state.device
    image = torch.arange(batch, device=device)[:, None]
    block = torch.arange(BLOCKS, device=device)
    views = []
    for number, law in enumerate(laws):
        view = torch.full((), number, device=device)
        numbers = philox(state[0], (state[1], image, view, block))  # [B, BLOCKS, 4]
        views.append(torch.stack([*_crop(numbers[:, :TRIES], law, size), *_rest(numbers[:, TRIES:], law)], dim=1))
    return torch.stack(views).to(torch.float32)


def _uniform(numbers: Tensor) -> Tensor:
    return numbers.to(torch.float64) * 2.0**-32


def _among(numbers: Tensor, count: Tensor | int) -> Tensor:
    return numbers * count >> 32


def _crop(numbers: Tensor, law: Law, size: tuple[int, int]) -> tuple[Tensor, ...]:
    """(top, left, height, width), each [B], of numbers [B, TRIES, 4]: all ten are drawn at once, for a fixed shape."""
    height, width = size
    area, x = _uniform(numbers[..., :2]).unbind(-1)
    area = area * law.area_range + law.area_low
    ratio = exponential(x * law.ratio_range + law.ratio_low)
    crop_w, crop_h = torch.sqrt(area * ratio).round_(), torch.sqrt(area / ratio).round_()
    fits = (crop_w > 0) & (crop_w <= width) & (crop_h > 0) & (crop_h <= height)
    crop_w, crop_h = crop_w.clamp_(1, width).long(), crop_h.clamp_(1, height).long()
    top, left = _among(numbers[..., 2], height - crop_h + 1), _among(numbers[..., 3], width - crop_w + 1)
    first, any_fits = fits.to(torch.uint8).argmax(dim=1, keepdim=True), fits.any(dim=1)
    tried = (values.gather(1, first)[:, 0].double() for values in (top, left, crop_h, crop_w))
    central = (law.central_top, law.central_left, law.central_height, law.central_width)
    return tuple(torch.where(any_fits, value, other) for value, other in zip(tried, central, strict=True))


def _rest(numbers: Tensor, law: Law) -> list[Tensor]:
    """The other columns of numbers [B, 3, 4]."""
    u = _uniform(numbers).flatten(1).unbind(1)
    flip, jittered, grey, blurred, solarise = (
        u[i] < p for i, p in enumerate((law.flip, law.jitter, law.grey, law.blur, law.solarise))
    )
    sigma = torch.where(blurred, law.sigma_low + u[5] * law.sigma_range, 0.0)
    brightness = torch.where(jittered, law.brightness_low + u[8] * law.brightness_range, 1.0)
    contrast = torch.where(jittered, law.contrast_low + u[9] * law.contrast_range, 1.0)
    saturation = torch.where(jittered, law.saturation_low + u[10] * law.saturation_range, 1.0)
    hue = torch.where(jittered, law.hue_low + u[11] * law.hue_range, 0.0)
    order = _among(numbers[:, 1, 2], 24)
    permutation, hue_place = order >> 2, order & 3
    first, swapped = permutation >> 1, permutation & 1
    low = (first == 0).long()  # the smaller of the other two
    second = torch.where(swapped == 1, 3 - first - low, low)
    orders = (first, second, 3 - first - second)
    columns = (flip, brightness, contrast, saturation, hue, *orders, hue_place, grey, sigma, solarise)
    assert len(columns) + 4 == len(COLUMNS)
    return [column.double() for column in columns]
