# mypy: allow-untyped-defs, allow-incomplete-defs
"""Where a Triton program of augment_views finds its pixels: its tile, the image's bytes, and the crop between the two.

Crops and rows of `index` are clamped to what exists: wrong values give wrong pixels, but read no other memory.
"""

import triton
import triton.language as tl

# Columns of the parameters.
TOP, LEFT, HEIGHT, WIDTH, FLIP = (tl.constexpr(column) for column in range(5))


@triton.jit
def own_tile(
    batch,
    VIEWS: tl.constexpr,
    OUT_H: tl.constexpr,
    OUT_W: tl.constexpr,
    BLOCK_H: tl.constexpr,
    BLOCK_W: tl.constexpr,
):
    """(image, view * batch + image, tile, rows and columns of the tile) of a program."""
    across: tl.constexpr = (OUT_W + BLOCK_W - 1) // BLOCK_W
    tiles: tl.constexpr = (OUT_H + BLOCK_H - 1) // BLOCK_H * across
    program = tl.program_id(0)
    image = program // (VIEWS * tiles)
    own = (program // tiles % VIEWS * batch + image).to(tl.int64)
    tile = program % tiles
    i = tile // across * BLOCK_H + tl.arange(0, BLOCK_H)
    return image, own, tile, i, tile % across * BLOCK_W + tl.arange(0, BLOCK_W)


@triton.jit
def clamp(x):
    return tl.minimum(tl.maximum(x, 0.0), 1.0)


@triton.jit
def first_byte(source, index, image, own, images, pixels):
    """Where the program's image begins: a row of the source, or, in scratch memory, its own."""
    if source.dtype.element_ty != tl.uint8:
        row = own
    elif index is None:
        row = image.to(tl.int64)
    else:
        row = tl.minimum(tl.maximum(tl.load(index + image), 0), images - 1).to(tl.int64)
    return source + row * pixels * 3


@triton.jit
def _values(source, offsets):
    return tl.load(source + offsets).to(tl.float32)


@triton.jit
def _tap(distance, CUBIC: tl.constexpr):
    """The weight of a pixel at a distance from the point: linear, or Keys' kernel with A = -3/4."""
    x = tl.abs(distance)
    if not CUBIC:
        return tl.maximum(1 - x, 0.0)
    near = tl.fma(tl.fma(x, 1.25, -2.25) * x, x, 1.0)
    far = tl.fma(tl.fma(tl.fma(x, -0.75, 3.75), x, -6.0), x, 3.0)
    return tl.where(x <= 1, near, tl.where(x < 2, far, 0.0))


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
def _cropped(
    source, how, i, j, H: tl.constexpr, W: tl.constexpr, OUT_H: tl.constexpr, OUT_W: tl.constexpr, CUBIC: tl.constexpr
):
    """Red, green and blue of the outputs (i, j) of a crop, resampled and perhaps mirrored."""
    across = tl.where(tl.load(how + FLIP) != 0, OUT_W - 1 - j, j)
    top, low, y, down = _axis(how, TOP, HEIGHT, H, i, OUT_H, CUBIC)
    left, wide, x, right = _axis(how, LEFT, WIDTH, W, across, OUT_W, CUBIC)
    plane: tl.constexpr = H * W
    unit: tl.constexpr = 1 / 255 if source.dtype.element_ty == tl.uint8 else 1
    first: tl.constexpr = -1 if CUBIC else 0
    red = tl.zeros([i.shape[0], j.shape[0]], tl.float32)
    green, blue = red, red
    for dy in range(first, 3 if CUBIC else 2):
        rows = (tl.minimum(tl.maximum(y + dy, 0), low) + top) * W
        row_red = tl.zeros([i.shape[0], j.shape[0]], tl.float32)
        row_green, row_blue = row_red, row_red
        for dx in tl.static_range(first, 3 if CUBIC else 2):
            columns = tl.minimum(tl.maximum(x + dx, 0), wide) + left
            offsets = rows[:, None] + columns[None, :]
            weight = _tap(right - dx, CUBIC)[None, :]
            row_red = tl.fma(weight, _values(source, offsets), row_red)
            row_green = tl.fma(weight, _values(source, offsets + plane), row_green)
            row_blue = tl.fma(weight, _values(source, offsets + 2 * plane), row_blue)
        weight = _tap(down - dy, CUBIC)[:, None] * unit
        red = tl.fma(weight, row_red, red)
        green = tl.fma(weight, row_green, green)
        blue = tl.fma(weight, row_blue, blue)
    if CUBIC:
        red, green, blue = clamp(red), clamp(green), clamp(blue)
    return red, green, blue


@triton.jit
def pixels(
    source,
    how,
    i,
    j,
    H: tl.constexpr,
    W: tl.constexpr,
    OUT_H: tl.constexpr,
    OUT_W: tl.constexpr,
    CROP: tl.constexpr,
    CUBIC: tl.constexpr,
):
    """Of the outputs (i, j): resampled from their crop, or as they are."""
    if CROP:
        red, green, blue = _cropped(source, how, i, j, H, W, OUT_H, OUT_W, CUBIC)
    else:
        unit: tl.constexpr = 1 / 255 if source.dtype.element_ty == tl.uint8 else 1
        offsets = tl.minimum(i, H - 1)[:, None] * W + tl.minimum(j, W - 1)[None, :]
        red = _values(source, offsets) * unit
        green = _values(source, offsets + H * W) * unit
        blue = _values(source, offsets + 2 * H * W) * unit
    return red, green, blue
