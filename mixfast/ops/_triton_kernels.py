# mypy: allow-untyped-defs
"""What the Triton kernels of several operations call."""

import triton
import triton.language as tl

LOG2_E = tl.constexpr(1.4426950408889634)
LN_2 = tl.constexpr(0.6931471805599453)


@triton.jit
def log1p(x):
    """log(1 + x) for 0 <= x <= 1: the last factor undoes the rounding of 1 + x (Kahan)."""
    one_more = 1 + x
    rounded = tl.where(one_more == 1, 1.0, one_more - 1)
    return tl.where(one_more == 1, x, tl.log2(one_more) * LN_2 * x / rounded)
