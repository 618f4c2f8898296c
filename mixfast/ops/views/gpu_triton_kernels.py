# mypy: allow-untyped-defs, allow-incomplete-defs
"""Triton kernels of augment_views: a program makes one tile of one view, from the image's bytes to the finished pixels.

Shapes   source uint8 [N, 3, H, W]; parameters [V, B, 16]; index [B] or None; views [V, B, 3, S, T]
Order    views of one image are neighbours in the grid, so that it is fetched once
Mean     contrast needs the mean of the whole view: of a view in one tile it is at hand, else `grey_sums` comes before
Bits     fused multiply-adds are written out and no others made, so that views of all dtypes and layouts agree
Scratch  float32 [V, B, 3, ...], between the stages of what is rare: a blur, colours before the crop
Limits   crops and rows of `index` are clamped to what exists: wrong values read no other memory
"""

import triton
import triton.language as tl

from mixfast.ops._triton_kernels import LOG2_E
from mixfast.ops.views.gpu_triton_crop import clamp, cropped, values

# Columns of the parameters.
BRIGHTNESS, CONTRAST = tl.constexpr(5), tl.constexpr(6)
HUE, ORDER, PLACE, GREY, SIGMA, SOLARISE = (tl.constexpr(column) for column in (8, 9, 12, 13, 14, 15))
COLUMNS, SIZES = tl.constexpr(16), ["images", "batch"]  # sizes that need no code of their own


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
    """Red, green and blue of the output pixels (i, j): resampled from their crop, or copied."""
    if CROP:
        red, green, blue = cropped(source, how, i, j, H, W, OUT_H, OUT_W, CUBIC)
    else:
        unit: tl.constexpr = 1 / 255 if source.dtype.element_ty == tl.uint8 else 1
        offsets = tl.minimum(i, H - 1)[:, None] * W + tl.minimum(j, W - 1)[None, :]
        red = values(source, offsets) * unit
        green = values(source, offsets + H * W) * unit
        blue = values(source, offsets + 2 * H * W) * unit
    return red, green, blue


@triton.jit
def _grey(red, green, blue):
    return tl.fma(red, 0.2989, tl.fma(green, 0.587, blue * 0.114))


@triton.jit
def _channel(hue):
    """What a channel has of the chroma, at a distance from its own hue in turns: its distance to an integer counts.

    An addend of 1.5 * 2^23 leaves no bits for a fraction, so that adding and subtracting it rounds.
    """
    return clamp(tl.fma(tl.abs(hue - ((hue + 12582912.0) - 12582912.0)), -6.0, 2.0))


@triton.jit
def _hue(red, green, blue, turns):
    """Rotates the hue: the hexagonal model without its cases, as in the reference."""
    high = tl.maximum(tl.maximum(red, green), blue)
    low = tl.minimum(tl.minimum(red, green), blue)
    chroma = high - low
    size = ((green - low) + (blue - low) + (high - red)) / tl.maximum(6 * chroma, 1e-12)
    hue = tl.where(green < blue, -size, size) + turns
    red = tl.fma(chroma, _channel(hue), low)
    green = tl.fma(chroma, _channel(hue - 1 / 3), low)
    return red, green, tl.fma(chroma, _channel(hue + 1 / 3), low)


@triton.jit
def _jittered(red, green, blue, how, mean, inside, count, stop, ONE_TILE: tl.constexpr):
    """The steps before number `stop` of three, and the hue in its place among them."""
    turns, place = tl.load(how + HUE), tl.load(how + PLACE)
    for step in range(stop + 1):
        if (step == place) & (turns != 0):
            red, green, blue = _hue(red, green, blue, turns)
        if step < stop:
            kind = tl.minimum(tl.maximum(tl.load(how + ORDER + step), 0.0), 2.0).to(tl.int32)
            factor = tl.load(how + BRIGHTNESS + kind)
            rest = 1 - factor
            grey = _grey(red, green, blue)
            if ONE_TILE:  # noqa: SIM102  known when the kernel is compiled, and so is what stands below
                if kind == 1:
                    mean = tl.sum(tl.sum(tl.where(inside, grey, 0.0), 1), 0) / count
            other = tl.fma(grey, tl.where(kind == 2, rest, 0.0), tl.where(kind == 1, rest * mean, 0.0))
            red, green, blue = (
                clamp(tl.fma(red, factor, other)),
                clamp(tl.fma(green, factor, other)),
                clamp(tl.fma(blue, factor, other)),
            )
    return red, green, blue


@triton.jit
def _greyed(red, green, blue, how):
    """Without colour where the parameters say so."""
    if tl.load(how + GREY) != 0:
        red = _grey(red, green, blue)
        green, blue = red, red
    return red, green, blue


@triton.jit
def _keep(scratch, own, red, green, blue, i, j, height, width):
    """Stored as they are."""
    places = scratch + own * 3 * height * width + i[:, None] * width + j[None, :]
    inside = (i < height)[:, None] & (j < width)[None, :]
    tl.store(places, red, inside)
    tl.store(places + height * width, green, inside)
    tl.store(places + 2 * height * width, blue, inside)


@triton.jit
def finish(out, own, channel, value, how, i, j, OUT_H, OUT_W, scale, offset, CHANNELS_LAST: tl.constexpr):
    """One channel solarised, standardised and stored."""
    if tl.load(how + SOLARISE) != 0:
        value = tl.where(value >= 0.5, 1 - value, value)
    across: tl.constexpr = 3 if CHANNELS_LAST else 1
    plane = 1 if CHANNELS_LAST else OUT_H * OUT_W
    places = out + own * 3 * OUT_H * OUT_W + channel * plane + (i[:, None] * OUT_W + j[None, :]) * across
    inside = (i < OUT_H)[:, None] & (j < OUT_W)[None, :]
    tl.store(places, tl.fma(value, scale, offset).to(out.dtype.element_ty), inside)


@triton.jit
def _finish(out, own, red, green, blue, how, i, j, OUT_H, OUT_W, scale, offset, CHANNELS_LAST: tl.constexpr):
    finish(out, own, 0, red, how, i, j, OUT_H, OUT_W, scale[0], offset[0], CHANNELS_LAST)
    finish(out, own, 1, green, how, i, j, OUT_H, OUT_W, scale[1], offset[1], CHANNELS_LAST)
    finish(out, own, 2, blue, how, i, j, OUT_H, OUT_W, scale[2], offset[2], CHANNELS_LAST)


@triton.jit(do_not_specialize=SIZES)
def grey_sums(
    source,
    index,
    parameters,
    sums,
    images,
    batch,
    VIEWS: tl.constexpr,
    H: tl.constexpr,
    W: tl.constexpr,
    OUT_H: tl.constexpr,
    OUT_W: tl.constexpr,
    CROP: tl.constexpr,
    CUBIC: tl.constexpr,
    GREY_FIRST: tl.constexpr,
    BLOCK_H: tl.constexpr,
    BLOCK_W: tl.constexpr,
):
    """sums [V, B, tiles]: of the grey in a tile as contrast finds it; not written where contrast has nothing to do."""
    tiles: tl.constexpr = (OUT_H + BLOCK_H - 1) // BLOCK_H * ((OUT_W + BLOCK_W - 1) // BLOCK_W)
    image, own, tile, i, j = own_tile(batch, VIEWS, OUT_H, OUT_W, BLOCK_H, BLOCK_W)
    how = parameters + own * COLUMNS
    if tl.load(how + CONTRAST) != 1:
        source = first_byte(source, index, image, own, images, H * W)
        red, green, blue = pixels(source, how, i, j, H, W, OUT_H, OUT_W, CROP, CUBIC)
        if GREY_FIRST:
            red, green, blue = _greyed(red, green, blue, how)
        before = tl.where(tl.load(how + ORDER + 1) == 1, 1, 2)
        before = tl.where(tl.load(how + ORDER) == 1, 0, before)
        inside = (i < OUT_H)[:, None] & (j < OUT_W)[None, :]
        red, green, blue = _jittered(red, green, blue, how, 0.0, inside, 1, before, False)
        tl.store(sums + own * tiles + tile, tl.sum(tl.sum(tl.where(inside, _grey(red, green, blue), 0.0), 1), 0))


@triton.jit
def _mean(sums, how, own, tiles, count, BLOCK: tl.constexpr):
    """Mean grey value of the whole view, from the sums of its tiles."""
    total = tl.zeros([BLOCK], tl.float32)
    if tl.load(how + CONTRAST) != 1:
        for start in range(0, tiles, BLOCK):
            at = start + tl.arange(0, BLOCK)
            total += tl.load(sums + own * tiles + at, at < tiles, 0.0)
    return tl.sum(total, 0) / count


@triton.jit(do_not_specialize=SIZES)
def render(
    source,
    index,
    parameters,
    sums,
    scratch,
    out,
    scale,
    offset,
    images,
    batch,
    VIEWS: tl.constexpr,
    H: tl.constexpr,
    W: tl.constexpr,
    OUT_H: tl.constexpr,
    OUT_W: tl.constexpr,
    CROP: tl.constexpr,
    CUBIC: tl.constexpr,
    COLOUR: tl.constexpr,
    GREY_FIRST: tl.constexpr,
    CHANNELS_LAST: tl.constexpr,
    BLOCK_H: tl.constexpr,
    BLOCK_W: tl.constexpr,
):
    """One tile of one view. `sums` is None where a view is one tile; `scratch` gets what another stage goes on with:

    views that will be blurred, or all if `out` is None.
    """
    tiles: tl.constexpr = (OUT_H + BLOCK_H - 1) // BLOCK_H * ((OUT_W + BLOCK_W - 1) // BLOCK_W)
    image, own, _, i, j = own_tile(batch, VIEWS, OUT_H, OUT_W, BLOCK_H, BLOCK_W)
    how = parameters + own * COLUMNS
    source = first_byte(source, index, image, own, images, H * W)
    red, green, blue = pixels(source, how, i, j, H, W, OUT_H, OUT_W, CROP, CUBIC)
    if COLOUR:
        if GREY_FIRST:
            red, green, blue = _greyed(red, green, blue, how)
        count = OUT_H * OUT_W
        mean = 0.0 if sums is None else _mean(sums, how, own, tiles, count, 128)
        inside = (i < OUT_H)[:, None] & (j < OUT_W)[None, :]
        red, green, blue = _jittered(red, green, blue, how, mean, inside, count, 3, sums is None)
        if not GREY_FIRST:
            red, green, blue = _greyed(red, green, blue, how)
    if scratch is None:
        _finish(out, own, red, green, blue, how, i, j, OUT_H, OUT_W, scale, offset, CHANNELS_LAST)
    elif out is None:  # noqa: SIM114
        _keep(scratch, own, red, green, blue, i, j, OUT_H, OUT_W)
    elif tl.load(how + SIGMA) > 0:
        _keep(scratch, own, red, green, blue, i, j, OUT_H, OUT_W)
    else:
        _finish(out, own, red, green, blue, how, i, j, OUT_H, OUT_W, scale, offset, CHANNELS_LAST)


# The blur of a tile with the neighbourhood X is R X C^T, with R and C the weights of rows and columns. A pixel stands
# for its mirror images beyond the borders too, so that nothing outside of the view is read.


@triton.jit
def _bell(distance, exponent, reach):
    squared = tl.cast(distance * distance, tl.float32)
    return tl.where(distance <= reach, tl.exp2(squared * exponent), 0.0)


@triton.jit
def _weights(i, p, side, exponent, reach):
    """What pixel p weighs at output i, its mirror images beyond the two borders included; their shapes broadcast."""
    weight = tl.where(p < side, _bell(tl.abs(i - p), exponent, reach), 0.0)
    weight += tl.where((p > 0) & (p < side), _bell(i + p, exponent, reach), 0.0)
    return weight + tl.where(p < side - 1, _bell(tl.abs(2 * (side - 1) - p - i), exponent, reach), 0.0)


@triton.jit(do_not_specialize=["batch", "reach"])
def blur(
    scratch,
    parameters,
    out,
    scale,
    offset,
    batch,
    reach,
    VIEWS: tl.constexpr,
    OUT_H: tl.constexpr,
    OUT_W: tl.constexpr,
    CHANNELS_LAST: tl.constexpr,
    BLOCK: tl.constexpr,
    STEP: tl.constexpr,
):
    """Program (tile of BLOCK x BLOCK pixels, channel); a view without blur is already done."""
    _, own, _, i, j = own_tile(batch, VIEWS, OUT_H, OUT_W, BLOCK, BLOCK)
    how = parameters + own * COLUMNS
    sigma = tl.load(how + SIGMA)
    if sigma > 0:
        channel = tl.program_id(1)
        width = tl.maximum(sigma, 1e-6)
        exponent = -0.5 * LOG2_E / (width * width)
        scratch += (own * 3 + channel) * OUT_H * OUT_W
        top, left = tl.min(i, 0), tl.min(j, 0)
        value = tl.zeros([BLOCK, BLOCK], tl.float32)
        for y_first in range(tl.maximum(top - reach, 0), tl.minimum(top + BLOCK + reach, OUT_H), STEP):
            y = y_first + tl.arange(0, STEP)
            rows = tl.zeros([STEP, BLOCK], tl.float32)
            for x_first in range(tl.maximum(left - reach, 0), tl.minimum(left + BLOCK + reach, OUT_W), STEP):
                x = x_first + tl.arange(0, STEP)
                inside = (y < OUT_H)[:, None] & (x < OUT_W)[None, :]
                given = tl.load(scratch + y[:, None] * OUT_W + x[None, :], inside, 0.0)
                weights = _weights(j[None, :], x[:, None], OUT_W, exponent, reach)
                rows = tl.dot(given, weights, rows, input_precision="ieee")
            weights = _weights(i[:, None], y[None, :], OUT_H, exponent, reach)
            value = tl.dot(weights, rows, value, input_precision="ieee")
        side = 0.0
        for distance in range(1, reach + 1):
            side += _bell(distance, exponent, reach)
        value /= (1 + 2 * side) * (1 + 2 * side)
        factor = tl.where(channel == 0, scale[0], tl.where(channel == 1, scale[1], scale[2]))
        term = tl.where(channel == 0, offset[0], tl.where(channel == 1, offset[1], offset[2]))
        finish(out, own, channel, value, how, i, j, OUT_H, OUT_W, factor, term, CHANNELS_LAST)
