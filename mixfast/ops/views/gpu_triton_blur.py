# mypy: allow-untyped-defs, allow-incomplete-defs
"""The blur of augment_views in Triton: views with a standard deviation go on from where gpu_triton_kernels left them.

Out of a tile's neighbourhood X its pixels are R X C^T, with R and C the weights of rows and columns. A pixel stands for
its mirror images beyond the borders too, so that nothing outside of the view is read.
"""

import triton
import triton.language as tl

from mixfast.ops._triton_kernels import LOG2_E
from mixfast.ops.views.gpu_triton_crop import own_tile
from mixfast.ops.views.gpu_triton_kernels import COLUMNS, SIGMA, finish


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
