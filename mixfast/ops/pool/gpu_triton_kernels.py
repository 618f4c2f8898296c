# mypy: allow-untyped-defs
"""Triton kernels of masked_upsample_pool.

Shapes   features [B, C, h, w]; weights [R, 2, h, w] float32, R = B or 1; boxes [R, 4]; masks [R, H, W]; results [B, C]
Layout   contiguous or channels_last, read and written in place; a position is the flat number p = i * w + j
Sums     in float32, in an order fixed by the shapes; every cell has one writer: the same bits on every run
Checked  tests/ops/test_triton_interpreted.py by value, scripts/triton_report.py for all architectures

Source cell i of n has a hat weight at the N outputs y: with s = (2y + 1) n / 2N - 1/2, clamped to [0, n - 1],
    A[y, i] = max(0, 1 - |s - i|) = max(0, 2N - |(2y + 1) n - N - 2N i|) / 2N       all integers up to the division.
WIDE asks for 64-bit integers, where N (2n + 3) would not fit in 32.
"""

import triton
import triton.language as tl


@triton.jit
def _ceil_clamped(numerator, denominator):
    """ceil(numerator / denominator), and 0 for negative ones: Triton divides towards zero."""
    return (tl.maximum(numerator, 0) + denominator - 1) // denominator


@triton.jit
def _span(cell, n: tl.constexpr, size):
    """The outputs where the weight of a cell rises [start, middle) and falls [middle, end)."""
    start = tl.where(cell == 0, 0, _ceil_clamped(size * (2 * cell - 1) - n, 2 * n))
    middle = _ceil_clamped(size * (2 * cell + 1) - n, 2 * n)
    end = tl.where(cell == n - 1, size, _ceil_clamped(size * (2 * cell + 3) - n, 2 * n))
    return start, middle, end


@triton.jit
def _axis_sum(cell, n: tl.constexpr, size, span, low, high):
    """sum of A[y, cell] over low <= y < high: two arithmetic series, of which only the last step rounds."""
    start, middle, end = span
    a, b = tl.maximum(start, low), tl.minimum(middle, high)
    count = tl.maximum(b - a, 0).to(tl.float32)
    rising = tl.where(cell == 0, 2 * size, n * (a + b) - size * (2 * cell - 1)).to(tl.float32)
    total = count * rising
    a, b = tl.maximum(middle, low), tl.minimum(end, high)
    count = tl.maximum(b - a, 0).to(tl.float32)
    falling = tl.where(cell == n - 1, 2 * size, size * (2 * cell + 3) - n * (a + b)).to(tl.float32)
    return (total + count * falling) / (2 * size).to(tl.float32)


@triton.jit
def _axis_sums(cell, n: tl.constexpr, size, low, high):
    """Weights of a cell summed over [low, high) and over the rest of the axis; both are sums of positive terms."""
    span = _span(cell, n, size)
    inside = _axis_sum(cell, n, size, span, low, high)
    before, after = _axis_sum(cell, n, size, span, 0, low), _axis_sum(cell, n, size, span, high, size)
    return inside, before + after


@triton.jit
def _box_weights(box, p, h: tl.constexpr, w: tl.constexpr, height, width, WIDE: tl.constexpr):
    """Weights of the positions p inside and outside the box at `box`, clamped to the map."""
    integer: tl.constexpr = tl.int64 if WIDE else tl.int32
    high, wide = tl.cast(height, tl.int64), tl.cast(width, tl.int64)
    x0 = tl.minimum(tl.maximum(tl.load(box).to(tl.int64), 0), wide)
    y0 = tl.minimum(tl.maximum(tl.load(box + 1).to(tl.int64), 0), high)
    x1 = tl.maximum(tl.minimum(tl.load(box + 2).to(tl.int64), wide), x0)
    y1 = tl.maximum(tl.minimum(tl.load(box + 3).to(tl.int64), high), y0)
    area = (y1 - y0) * (x1 - x0)
    rest = high * wide - area
    across, down = (p % w).to(integer), (p // w).to(integer)
    y_in, y_out = _axis_sums(down, h, high.to(integer), y0.to(integer), y1.to(integer))
    x_in, x_out = _axis_sums(across, w, wide.to(integer), x0.to(integer), x1.to(integer))
    inside = y_in * x_in / tl.maximum(area, 1).to(tl.float32)
    outside = (y_out * (x_in + x_out) + y_in * x_out) / tl.maximum(rest, 1).to(tl.float32)
    return tl.where(area > 0, inside, 0.0), tl.where(rest > 0, outside, 0.0)


@triton.jit(do_not_specialize=["height", "width"])
def box_weights(
    boxes, weights, height, width, h: tl.constexpr, w: tl.constexpr, WIDE: tl.constexpr, BLOCK_P: tl.constexpr
):
    """One program for BLOCK_P positions of one box."""
    blocks: tl.constexpr = (h * w + BLOCK_P - 1) // BLOCK_P
    region = (tl.program_id(0) // blocks).to(tl.int64)
    p = tl.program_id(0) % blocks * BLOCK_P + tl.arange(0, BLOCK_P)
    inside, outside = _box_weights(boxes + 4 * region, p, h, w, height, width, WIDE)
    weights += region * 2 * h * w + p
    tl.store(weights, inside, p < h * w)
    tl.store(weights + h * w, outside, p < h * w)


@triton.jit(do_not_specialize=["height", "width"])
def pool(
    features,
    boxes,
    weights,
    inside,
    outside,
    channels,
    height,
    width,
    h: tl.constexpr,
    w: tl.constexpr,
    SHARED: tl.constexpr,
    CHANNELS_LAST: tl.constexpr,
    WIDE: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_P: tl.constexpr,
):
    """One program for BLOCK_C channels of one image: two weighted sums over its positions.

    With boxes the weights are computed here, and written by the program of the first channels. Without (None), read.
    """
    blocks = tl.cdiv(channels, BLOCK_C)
    image = (tl.program_id(0) // blocks).to(tl.int64)
    block = tl.program_id(0) % blocks
    c = block * BLOCK_C + tl.arange(0, BLOCK_C)
    region = image * 0 if SHARED else image
    weights += region * 2 * h * w
    features += image * channels * h * w
    written = tl.where((tl.program_id(0) if SHARED else block) == 0, h * w, 0)
    sum_in = tl.zeros([BLOCK_C], tl.float32)
    sum_out = tl.zeros([BLOCK_C], tl.float32)
    for start in tl.range(0, h * w, BLOCK_P):
        p = start + tl.arange(0, BLOCK_P)
        if boxes is None:
            w_in = tl.load(weights + p, p < h * w, 0.0)
            w_out = tl.load(weights + h * w + p, p < h * w, 0.0)
        else:
            w_in, w_out = _box_weights(boxes + 4 * region, p, h, w, height, width, WIDE)
            tl.store(weights + p, w_in, p < written)
            tl.store(weights + h * w + p, w_out, p < written)
        if CHANNELS_LAST:
            offsets = p[None, :].to(tl.int64) * channels + c[:, None]
        else:
            offsets = c[:, None].to(tl.int64) * (h * w) + p[None, :]
        mask = (c < channels)[:, None] & (p < h * w)[None, :]
        values = tl.load(features + offsets, mask, 0.0).to(tl.float32)
        sum_in += tl.sum(values * w_in[None, :], 1)
        sum_out += tl.sum(values * w_out[None, :], 1)
    results = image * channels + c
    tl.store(inside + results, sum_in.to(inside.dtype.element_ty), c < channels)
    tl.store(outside + results, sum_out.to(outside.dtype.element_ty), c < channels)


@triton.jit
def spread(
    grad_inside,
    grad_outside,
    weights,
    grad,
    channels,
    POSITIONS: tl.constexpr,
    SHARED: tl.constexpr,
    CHANNELS_LAST: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_P: tl.constexpr,
):
    """grad[b, c, p] = grad_inside[b, c] weights[b, 0, p] + grad_outside[b, c] weights[b, 1, p]: a stream of writes.

    One program for BLOCK_C x BLOCK_P cells of an image if channels are last, else for as many adjacent ones: rows of
    49 positions, say, have no alignment, but the image as a whole has. It is bounded as a whole, too: from bounds of
    channels and of positions the compiler would infer stores of single cells.
    """
    size = tl.cast(channels, tl.int64) * POSITIONS  # of an image
    if CHANNELS_LAST:
        across = tl.cdiv(channels, BLOCK_C)
        blocks = across * tl.cdiv(POSITIONS, BLOCK_P)
        block = tl.program_id(0) % blocks
        c = block % across * BLOCK_C + tl.arange(0, BLOCK_C)[None, :]
        p = block // across * BLOCK_P + tl.arange(0, BLOCK_P)[:, None]
        cells = p.to(tl.int64) * channels + c
        mask = (c < channels) & (p < POSITIONS)
    else:
        blocks = tl.cdiv(size, BLOCK_C * BLOCK_P).to(tl.int32)
        first = (tl.program_id(0) % blocks).to(tl.int64) * (BLOCK_C * BLOCK_P)
        behind = (first % POSITIONS).to(tl.int32) + tl.arange(0, BLOCK_C * BLOCK_P)
        c = (first // POSITIONS).to(tl.int32) + behind // POSITIONS
        p = behind % POSITIONS
        cells = first + tl.arange(0, BLOCK_C * BLOCK_P)
        mask = cells < size
    image = (tl.program_id(0) // blocks).to(tl.int64)
    weights += (image * 0 if SHARED else image) * 2 * POSITIONS
    g_in = tl.load(grad_inside + image * channels + c, c < channels, 0.0).to(tl.float32)
    g_out = tl.load(grad_outside + image * channels + c, c < channels, 0.0).to(tl.float32)
    w_in = tl.load(weights + p, p < POSITIONS, 0.0)
    w_out = tl.load(weights + POSITIONS + p, p < POSITIONS, 0.0)
    value = g_in * w_in + g_out * w_out
    tl.store(grad + image * size + cells, value.to(grad.dtype.element_ty), mask)


@triton.jit
def _hat(y, cell, n: tl.constexpr, size):
    """A[y, cell] of broadcast outputs and cells."""
    doubled = tl.minimum(tl.maximum((2 * y + 1) * n - size, 0), 2 * size * (n - 1))  # 2N s, clamped
    return tl.maximum(2 * size - tl.abs(doubled - 2 * size * cell), 0).to(tl.float32) / (2 * size).to(tl.float32)


@triton.jit(do_not_specialize=["height", "width"])
def mask_weights(
    masks,
    weights,
    height,
    width,
    h: tl.constexpr,
    w: tl.constexpr,
    WIDE: tl.constexpr,
    NORMALISE: tl.constexpr,
    CELLS_H: tl.constexpr,
    CELLS_W: tl.constexpr,
    BLOCK_H: tl.constexpr,
    BLOCK_W: tl.constexpr,
):
    """The adjoint Ay^T m Ax of a mask m and of 1 - m, for CELLS_H x CELLS_W cells of one image.

    Only the outputs that these cells reach are read. NORMALISE, if all cells of an image lie in one program, divides by
    the areas, which are the sums of the weights, as a row of A sums to one.
    """
    integer: tl.constexpr = tl.int64 if WIDE else tl.int32
    tiles_w: tl.constexpr = (w + CELLS_W - 1) // CELLS_W
    tiles: tl.constexpr = (h + CELLS_H - 1) // CELLS_H * tiles_w
    image = (tl.program_id(0) // tiles).to(tl.int64)
    tile = tl.program_id(0) % tiles
    down = (tile // tiles_w * CELLS_H + tl.arange(0, CELLS_H)).to(integer)
    across = (tile % tiles_w * CELLS_W + tl.arange(0, CELLS_W)).to(integer)
    high, wide = tl.cast(height, integer), tl.cast(width, integer)
    masks += image * height * width
    y_start, _, _ = _span(tl.min(down, 0), h, high)
    _, _, y_end = _span(tl.minimum(tl.max(down, 0), h - 1), h, high)
    x_start, _, _ = _span(tl.min(across, 0), w, wide)
    _, _, x_end = _span(tl.minimum(tl.max(across, 0), w - 1), w, wide)
    inside = tl.zeros([CELLS_H, CELLS_W], tl.float32)
    outside = tl.zeros([CELLS_H, CELLS_W], tl.float32)
    for y_first in range(y_start, y_end, BLOCK_H):
        y = y_first + tl.arange(0, BLOCK_H).to(integer)
        rows_in = tl.zeros([BLOCK_H, CELLS_W], tl.float32)
        rows_out = tl.zeros([BLOCK_H, CELLS_W], tl.float32)
        for x_first in range(x_start, x_end, BLOCK_W):
            x = x_first + tl.arange(0, BLOCK_W).to(integer)
            valid = (y < high)[:, None] & (x < wide)[None, :]
            share = tl.load(masks + y[:, None].to(tl.int64) * width + x[None, :], valid, 0)
            share = share.to(tl.float32) if share.dtype.is_floating() else (share != 0).to(tl.float32)
            hat = tl.where((x < wide)[:, None], _hat(x[:, None], across[None, :], w, wide), 0.0)
            rows_in = tl.dot(share, hat, rows_in, input_precision="ieee")
            rows_out = tl.dot(1.0 - share, hat, rows_out, input_precision="ieee")
        hat = tl.where((y < high)[None, :], _hat(y[None, :], down[:, None], h, high), 0.0)
        inside = tl.dot(hat, rows_in, inside, input_precision="ieee")
        outside = tl.dot(hat, rows_out, outside, input_precision="ieee")
    cells = (down < h)[:, None] & (across < w)[None, :]
    if NORMALISE:
        inside, outside = _over_area(inside, cells), _over_area(outside, cells)
    weights += image * 2 * h * w + down[:, None].to(tl.int64) * w + across[None, :]
    tl.store(weights, inside, cells)
    tl.store(weights + h * w, outside, cells)


@triton.jit
def _over_area(sums, cells):
    area = tl.sum(tl.sum(tl.where(cells, sums, 0.0), 1), 0)
    return tl.where(area > 0, sums / tl.where(area > 0, area, 1.0), 0.0)


@triton.jit
def normalise(weights, POSITIONS: tl.constexpr, BLOCK_P: tl.constexpr):
    """Divides the POSITIONS weights of one side of one image by their sum, the side's area."""
    weights += tl.program_id(0).to(tl.int64) * POSITIONS
    sums = tl.zeros([BLOCK_P], tl.float32)
    for start in range(0, POSITIONS, BLOCK_P):
        p = start + tl.arange(0, BLOCK_P)
        sums += tl.load(weights + p, p < POSITIONS, 0.0)
    area = tl.sum(sums, 0)
    for start in range(0, POSITIONS, BLOCK_P):
        p = start + tl.arange(0, BLOCK_P)
        value = tl.load(weights + p, p < POSITIONS, 0.0)
        tl.store(weights + p, tl.where(area > 0, value / tl.where(area > 0, area, 1.0), 0.0), p < POSITIONS)
