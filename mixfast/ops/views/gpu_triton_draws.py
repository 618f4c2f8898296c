# mypy: allow-untyped-defs, allow-incomplete-defs
"""The Triton kernel of draw_views: _philox.py, number by number.

Everything is float64 and must be compiled without fused multiply-add, to cut the same pixels as the other backends.
"""

import triton
import triton.language as tl

from mixfast.ops.views import _layout, _philox

TRIES = tl.constexpr(_philox.TRIES)
TAYLOR = tl.constexpr(_philox.TAYLOR)
COLUMNS, NUMBERS = tl.constexpr(len(_layout.COLUMNS)), tl.constexpr(len(_layout.Law._fields))
INTEGERS = tl.constexpr(2.0**52)  # added and taken away again, it rounds to an integer, halves to the even one
ULP = tl.constexpr(2.0**-32)


@triton.jit
def _numbers(state, image, view, block):
    """Four blocks of uint32 for as many images."""
    zeros = image * 0
    draw = tl.load(state + 1).to(tl.int32)
    return tl.philox(tl.load(state), zeros + draw, image, zeros + view, zeros + block)


@triton.jit
def _uniform(number):
    return number.to(tl.float64) * ULP


@triton.jit
def _exponential(x):
    x = x * (1 / 64)
    power = x * 0 + TAYLOR[9]
    for k in tl.static_range(9):
        power = power * x + TAYLOR[8 - k]
    for _ in tl.static_range(6):
        power = power * power
    return power


@triton.jit
def _rounded(x):
    return (x + INTEGERS) - INTEGERS


@triton.jit
def _crop(state, image, view, law, height, width):
    """Top, left, height, width: of the first try that fits, else the central crop."""
    found = image < 0
    top = tl.load(law + 4) + tl.zeros_like(image)
    left = tl.load(law + 5) + tl.zeros_like(image)
    crop_h = tl.load(law + 6) + tl.zeros_like(image)
    crop_w = tl.load(law + 7) + tl.zeros_like(image)
    for block in range(TRIES):
        n0, n1, n2, n3 = _numbers(state, image, view, block)
        area = _uniform(n0) * tl.load(law + 1) + tl.load(law)
        ratio = _exponential(_uniform(n1) * tl.load(law + 3) + tl.load(law + 2))
        w, h = _rounded(tl.sqrt(area * ratio)), _rounded(tl.sqrt(area / ratio))
        fits = (w > 0) & (w <= width) & (h > 0) & (h <= height) & (found == 0)
        above = tl.umulhi(n2, (height - tl.where(fits, h, 1.0) + 1).to(tl.uint32))
        before = tl.umulhi(n3, (width - tl.where(fits, w, 1.0) + 1).to(tl.uint32))
        top = tl.where(fits, above.to(tl.float64), top)
        left = tl.where(fits, before.to(tl.float64), left)
        crop_h, crop_w = tl.where(fits, h, crop_h), tl.where(fits, w, crop_w)
        found = found | fits
    return top, left, crop_h, crop_w


@triton.jit
def _factor(number, law, first: tl.constexpr, jittered, neutral: tl.constexpr):
    value = tl.load(law + first) + _uniform(number) * tl.load(law + first + 1)
    return tl.where(jittered, value, neutral)


@triton.jit(do_not_specialize=["batch", "height", "width"])
def draw(state, laws, parameters, batch, height, width, BLOCK: tl.constexpr):
    """Program (block of BLOCK images, view). `laws` [V, numbers of a Law] float64; parameters [V, B, 16]."""
    view = tl.program_id(1)
    image = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    law = laws + view * NUMBERS
    row = parameters + (view * batch + image).to(tl.int64) * COLUMNS
    inside = image < batch
    top, left, crop_h, crop_w = _crop(state, image, view, law, height, width)
    tl.store(row, top.to(tl.float32), inside)
    tl.store(row + 1, left.to(tl.float32), inside)
    tl.store(row + 2, crop_h.to(tl.float32), inside)
    tl.store(row + 3, crop_w.to(tl.float32), inside)
    flip, apply, grey, blurred = _numbers(state, image, view, 10)
    inverted, sigma, order, _ = _numbers(state, image, view, 11)
    brightness, contrast, saturation, hue = _numbers(state, image, view, 12)
    jittered = _uniform(apply) < tl.load(law + 9)
    tl.store(row + 4, (_uniform(flip) < tl.load(law + 8)).to(tl.float32), inside)
    tl.store(row + 5, _factor(brightness, law, 15, jittered, 1.0).to(tl.float32), inside)
    tl.store(row + 6, _factor(contrast, law, 17, jittered, 1.0).to(tl.float32), inside)
    tl.store(row + 7, _factor(saturation, law, 19, jittered, 1.0).to(tl.float32), inside)
    tl.store(row + 8, _factor(hue, law, 21, jittered, 0.0).to(tl.float32), inside)
    place = tl.umulhi(order, tl.full([BLOCK], 24, tl.uint32)).to(tl.int32)
    first, swapped = place >> 3, (place >> 2) & 1
    low = tl.where(first == 0, 1, 0)  # the smaller of the other two
    second = tl.where(swapped == 1, 3 - first - low, low)
    tl.store(row + 9, first.to(tl.float32), inside)
    tl.store(row + 10, second.to(tl.float32), inside)
    tl.store(row + 11, (3 - first - second).to(tl.float32), inside)
    tl.store(row + 12, (place & 3).to(tl.float32), inside)
    tl.store(row + 13, (_uniform(grey) < tl.load(law + 10)).to(tl.float32), inside)
    tl.store(row + 14, _factor(sigma, law, 13, _uniform(blurred) < tl.load(law + 11), 0.0).to(tl.float32), inside)
    tl.store(row + 15, (_uniform(inverted) < tl.load(law + 12)).to(tl.float32), inside)
