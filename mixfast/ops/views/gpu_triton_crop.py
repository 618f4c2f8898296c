# mypy: allow-untyped-defs, allow-incomplete-defs
"""What the Triton kernels of augment_views call to crop: the pixels of a view, resampled from those of an image."""

import triton
import triton.language as tl

# Columns of the parameters.
TOP, LEFT, HEIGHT, WIDTH, FLIP = (tl.constexpr(column) for column in range(5))


@triton.jit
def clamp(x):
    return tl.minimum(tl.maximum(x, 0.0), 1.0)


@triton.jit
def values(source, offsets):
    return tl.load(source + offsets).to(tl.float32)


@triton.jit
def _tap(distance, CUBIC: tl.constexpr):
    """The weight of a pixel at a distance from the point: linear, or Keys' kernel with A = -1/2."""
    x = tl.abs(distance)
    if not CUBIC:
        return tl.maximum(1 - x, 0.0)
    near = tl.fma(tl.fma(x, 1.5, -2.5) * x, x, 1.0)
    far = tl.fma(tl.fma(tl.fma(x, -0.5, 2.5), x, -4.0), x, 2.0)
    return tl.where(x <= 1, near, tl.where(x < 2, far, 0.0))


@triton.jit
def _weight(fraction, before, step, last, sum, CUBIC: tl.constexpr):
    """Weight of the pixel `step` pixels after the one before the point: for bicubic resampling 0 outside of the crop,
    else its share of the sum."""
    weight = _tap(fraction - step, CUBIC)
    return tl.where((before + step >= 0) & (before + step <= last), weight / sum, 0.0) if CUBIC else weight


@triton.jit
def _sum(fraction, before, last, CUBIC: tl.constexpr):
    """Sum of the weights of a point before they are divided by it."""
    sum = tl.full(fraction.shape, 1.0, tl.float32)
    if CUBIC:
        one = sum
        sum = _weight(fraction, before, -1, last, one, CUBIC)
        for step in tl.static_range(0, 3):
            sum += _weight(fraction, before, step, last, one, CUBIC)
        sum = tl.where(sum > 0, sum, 1.0)  # beyond the view there may be no pixel
    return sum


@triton.jit
def _axis(how, START: tl.constexpr, LENGTH: tl.constexpr, size, out, out_size, CUBIC: tl.constexpr):
    """(first pixel of the crop, its last pixel less the first, pixel of each output before it, fraction beyond)."""
    largest = tl.cast(size, tl.float32)
    start = tl.minimum(tl.maximum(tl.load(how + START), 0.0), largest - 1).to(tl.int32)
    length = tl.minimum(tl.maximum(tl.load(how + LENGTH), 1.0), largest)
    last = tl.minimum(length.to(tl.int32), size - start) - 1
    at = tl.fma(out.to(tl.float32) + 0.5, tl.div_rn(length, tl.cast(out_size, tl.float32)), -0.5)
    if not CUBIC:
        at = tl.maximum(at, 0.0)
    base = tl.floor(at)
    return start, last, base.to(tl.int32), at - base


@triton.jit
def cropped(
    source, how, i, j, H: tl.constexpr, W: tl.constexpr, OUT_H: tl.constexpr, OUT_W: tl.constexpr, CUBIC: tl.constexpr
):
    """Red, green and blue of the outputs (i, j) of a crop, resampled and perhaps mirrored."""
    across = tl.where(tl.load(how + FLIP) != 0, OUT_W - 1 - j, j)
    top, low, y, down = _axis(how, TOP, HEIGHT, H, i, OUT_H, CUBIC)
    left, wide, x, right = _axis(how, LEFT, WIDTH, W, across, OUT_W, CUBIC)
    plane: tl.constexpr = H * W
    unit: tl.constexpr = 1 / 255 if source.dtype.element_ty == tl.uint8 else 1
    first: tl.constexpr = -1 if CUBIC else 0
    sum_y, sum_x = _sum(down, y, low, CUBIC), _sum(right, x, wide, CUBIC)
    red = tl.zeros([i.shape[0], j.shape[0]], tl.float32)
    green, blue = red, red
    for dy in range(first, 3 if CUBIC else 2):
        rows = (tl.minimum(tl.maximum(y + dy, 0), low) + top) * W
        row_red = tl.zeros([i.shape[0], j.shape[0]], tl.float32)
        row_green, row_blue = row_red, row_red
        for dx in tl.static_range(first, 3 if CUBIC else 2):
            columns = tl.minimum(tl.maximum(x + dx, 0), wide) + left
            offsets = rows[:, None] + columns[None, :]
            weight = _weight(right, x, dx, wide, sum_x, CUBIC)[None, :]
            row_red = tl.fma(weight, values(source, offsets), row_red)
            row_green = tl.fma(weight, values(source, offsets + plane), row_green)
            row_blue = tl.fma(weight, values(source, offsets + 2 * plane), row_blue)
        weight = _weight(down, y, dy, low, sum_y, CUBIC)[:, None] * unit
        red = tl.fma(weight, row_red, red)
        green = tl.fma(weight, row_green, green)
        blue = tl.fma(weight, row_blue, blue)
    if CUBIC:
        red, green, blue = clamp(red), clamp(green), clamp(blue)
    return red, green, blue
