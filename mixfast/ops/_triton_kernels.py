# mypy: allow-untyped-defs
"""Triton functions that the kernels of several operations call."""

import triton
import triton.language as tl

LOG2_E = tl.constexpr(1.4426950408889634)
LN_2 = tl.constexpr(0.6931471805599453)


@triton.jit
def shift_of(largest, scale):
    """The shift that is subtracted from the exponents s * scale of base-2 weights: largest * scale, rounded.

    The exponents come from a fused multiply-add, which does not round s * scale, but the shift is rounded. From 2^24 on
    float32 numbers are at least 2 apart, so that a shift rounded upwards could make the largest weight vanish. There
    the shift is lowered by one or two units in the last place. Weights may then overflow, which shows as NaN in the
    loss.
    """
    product = largest * scale
    size = tl.abs(product)
    return tl.where((size < 16777216.0) | (size == float("inf")), product, product - size * 1.1920928955078125e-07)


@triton.jit
def log1p(x):
    """log(1 + x) for 0 <= x <= 1: the last factor undoes the rounding of 1 + x (Kahan)."""
    one_more = 1 + x
    rounded = tl.where(one_more == 1, 1.0, one_more - 1)
    return tl.where(one_more == 1, x, tl.log2(one_more) * LN_2 * x / rounded)
