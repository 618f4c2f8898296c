# mypy: allow-untyped-defs
"""Triton kernels of nt_xent: one pass over all pairs of rows for the losses, one more for the gradients.

Shapes   rows [2N, D], first's, then second's; maxima, sums [S, 2N], products [S, 2N, D] of S chunks of the rows
Sums     in float32, in an order fixed by the shapes; every cell has one writer: the same bits on every run
Checked  tests/ops/test_triton_interpreted.py by value, scripts/triton_report.py for all architectures

In base 2, with scale = log2(e) / tau and s_ij = z_i.z_j scale. Hidden from anchor i are itself and its positive, which
are the rows j = i modulo N, and the row that it excludes. The positive is added at the end, outside of the products.
"""

import triton
import triton.language as tl

from mixfast.ops._triton_kernels import LN_2, LOG2_E, log1p, shift_of

LARGE = tl.constexpr(1024.0)  # base-2 logit from which a denominator is two numbers
LARGEST = tl.constexpr(262144.0)  # from which s_ij and s_ji, each rounded in its own way, make different probabilities


@triton.jit
def _temperature(tensor, number):
    return number if tensor is None else tl.load(tensor).to(tl.float32)


@triton.jit
def _place(row, total):
    """Index of a row within its view, equal for an anchor and its positive."""
    return tl.where(row < total // 2, row, row - total // 2)


@triton.jit
def _positive(row, total):
    return tl.where(row < total // 2, row + total // 2, row - total // 2)


@triton.jit
def _excluded(excluded, row, inside, total):
    """The row that an anchor excludes; -1 if there is none or the entry is out of range."""
    other = tl.load(excluded + row, inside, -1)
    return tl.where((other < 0) | (other >= total), -1, other).to(tl.int32)


@triton.jit
def _upstream(upstream, stride, row, inside, total, REDUCTION: tl.constexpr):
    """The upstream gradient of an anchor's loss."""
    if REDUCTION == "none":
        return tl.load(upstream + row.to(tl.int64) * stride, inside, 0.0)
    g = tl.load(upstream)
    g = g / total.to(tl.float32) if REDUCTION == "mean" else g
    return tl.where(inside, g, 0.0)


@triton.jit(do_not_specialize=["total", "chunk"])
def partials(
    rows,
    excluded,
    temperature,
    number,
    maxima,
    sums,
    total,
    chunk,
    D: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    BLOCK_D: tl.constexpr,
    PRODUCT: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Program (tile of BLOCK_N anchors, chunk of rows): m = max s_ij and sum 2^(s_ij - m) over rows not hidden.

    All rows of a chunk may be hidden: then m is finite nevertheless, and the sum zero.
    """
    n, key, d = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N), tl.arange(0, BLOCK_K), tl.arange(0, BLOCK_D)
    valid = n < total
    columns = (d < D)[None, :]
    scale = LOG2_E / _temperature(temperature, number)
    q = tl.load(rows + n.to(tl.int64)[:, None] * D + d[None, :], valid[:, None] & columns, 0.0).to(PRODUCT)
    place = _place(n, total)[:, None]
    if excluded is not None:
        left_out = _excluded(excluded, n, valid, total)[:, None]
    m = tl.full([BLOCK_N], -3e38, tl.float32)
    z = tl.zeros([BLOCK_N], tl.float32)
    start = tl.program_id(1) * chunk
    end = tl.minimum(start + chunk, total)
    for k in tl.range(start, end, BLOCK_K):
        inside = key < end - k
        x = tl.load(
            rows + tl.cast(k, tl.int64) * D + (key[:, None] * D + d[None, :]), inside[:, None] & columns, 0.0
        ).to(PRODUCT)
        s = tl.dot(q, tl.trans(x), input_precision=PRECISION)
        seen = inside[None, :] & (_place(k + key, total)[None, :] != place)
        if excluded is not None:
            seen &= (k + key)[None, :] != left_out
        s = tl.where(seen, s, float("-inf"))
        highest = tl.maximum(m, shift_of(tl.max(s, 1), scale))
        # One multiply-add for each logit: scaling the rows instead would round them.
        p = tl.exp2(tl.fma(s, tl.full(s.shape, scale, tl.float32), tl.broadcast_to(-highest[:, None], s.shape)))
        z = z * tl.exp2(m - highest) + tl.sum(p, 1)
        m = highest
    cells = tl.program_id(1).to(tl.int64) * total + n
    tl.store(maxima + cells, m, valid)
    tl.store(sums + cells, z, valid)


@triton.jit(do_not_specialize=["total", "chunks"])
def merge(
    rows,
    temperature,
    number,
    maxima,
    sums,
    losses,
    denominators,
    shares,
    total,
    chunks,
    D: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """Merges the chunks of BLOCK_N anchors in order, then adds the positive.

    With l the log-sum-exp of the negatives and s the positive's logit: loss = softplus(l - s), the negatives' share of
    the denominator sigmoid(l - s), and the denominator's logarithm s + loss, kept in base 2: as one number and zero, or
    where one would lose digits of the probabilities as m and the rest. From LARGEST on that is NaN, and so are
    gradients.
    """
    n, d = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N), tl.arange(0, BLOCK_D)
    valid = n < total
    mask = valid[:, None] & (d < D)[None, :]
    m, z = tl.load(maxima + n, valid, 0.0), tl.load(sums + n, valid, 1.0)
    for chunk in range(1, chunks):
        cells = total.to(tl.int64) * chunk + n
        m_next = tl.load(maxima + cells, valid, 0.0)
        highest = tl.maximum(m, m_next)
        z = z * tl.exp2(m - highest) + tl.load(sums + cells, valid, 1.0) * tl.exp2(m_next - highest)
        m = highest

    alone = z == 0  # no negatives: m does the rest
    z = tl.where(alone, 1.0, tl.where(z < float("inf"), z, float("nan")))
    q = tl.load(rows + n.to(tl.int64)[:, None] * D + d[None, :], mask, 0.0).to(tl.float32)
    k = tl.load(rows + _positive(n, total).to(tl.int64)[:, None] * D + d[None, :], mask, 0.0).to(tl.float32)
    positive = tl.sum(q * k, 1) * (LOG2_E / _temperature(temperature, number))
    positive = tl.where(tl.abs(positive) < float("inf"), positive, float("nan"))  # an infinite one: a loss of 0
    difference = (m + tl.log2(z) - positive) * LN_2
    small = tl.exp2(-tl.abs(difference) * LOG2_E)
    # max(d, 0) + log(1 + e^-|d|), but a NaN stays one
    loss = tl.where(difference < 0, 0.0, difference) + log1p(small)
    tl.store(losses + n, loss, valid)
    rest = tl.where(difference < 0, positive - m, tl.log2(z)) + log1p(small) * LOG2_E
    rest = tl.where(tl.abs(m) < LARGEST, rest, float("nan"))
    large = (tl.abs(m) >= LARGE) & (alone == 0)
    tl.store(denominators + n, tl.where(large, m, positive + loss * LOG2_E), valid)
    tl.store(denominators + total + n, tl.where(large, rest, 0.0), valid)
    tl.store(shares + n, tl.where(difference < 0, small, 1.0) / (1 + small), valid)


@triton.jit(do_not_specialize=["count"])
def reduce(values, result, count, MEAN: tl.constexpr, BLOCK_N: tl.constexpr):
    """One program: the sum or mean of all values."""
    sums = tl.zeros([BLOCK_N], tl.float32)
    for start in range(0, count, BLOCK_N):
        n = start + tl.arange(0, BLOCK_N)
        sums += tl.load(values + n, n < count, 0.0)
    total = tl.sum(sums, 0)
    tl.store(result, total / count.to(tl.float32) if MEAN else total)


@triton.jit(do_not_specialize=["total", "chunk", "upstream_stride"])
def products(
    rows,
    excluded,
    temperature,
    number,
    upstream,
    upstream_stride,
    denominators,
    results,
    total,
    chunk,
    D: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    BLOCK_D: tl.constexpr,
    PRODUCT: tl.constexpr,
    PRECISION: tl.constexpr,
    SCALED: tl.constexpr,
    REDUCTION: tl.constexpr,
):
    """Program (tile of BLOCK_N rows, chunk of rows): sum_j (g_i p_ij + g_j p_ji) z_j over j not hidden.

    Weights have the size of g, which float16 would lose: SCALED divides each row's by their running maximum.
    """
    n, key, d = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N), tl.arange(0, BLOCK_K), tl.arange(0, BLOCK_D)
    valid = n < total
    columns = (d < D)[None, :]
    scale = LOG2_E / _temperature(temperature, number)
    cells = n.to(tl.int64)[:, None] * D + d[None, :]
    q = tl.load(rows + cells, valid[:, None] & columns, 0.0).to(PRODUCT)
    place = _place(n, total)[:, None]
    shift, log = tl.load(denominators + n, valid, 0.0), tl.load(denominators + total + n, valid, 0.0)
    g = _upstream(upstream, upstream_stride, n, valid, total, REDUCTION)
    if excluded is not None:
        left_out = _excluded(excluded, n, valid, total)[:, None]
    if SCALED:
        largest = tl.full([BLOCK_N], 1e-37, tl.float32)
    o = tl.zeros([BLOCK_N, BLOCK_D], tl.float32)
    start = tl.program_id(1) * chunk
    end = tl.minimum(start + chunk, total)
    for k in tl.range(start, end, BLOCK_K):
        inside = key < end - k
        x = tl.load(
            rows + tl.cast(k, tl.int64) * D + (key[:, None] * D + d[None, :]), inside[:, None] & columns, 0.0
        ).to(PRODUCT)
        shift_key = tl.load(denominators + k + key, inside, 0.0)
        log_key = tl.load(denominators + total + k + key, inside, 0.0)
        g_key = _upstream(upstream, upstream_stride, k + key, inside, total, REDUCTION)
        s = tl.dot(q, tl.trans(x), input_precision=PRECISION)
        factor = tl.full(s.shape, scale, tl.float32)
        forth = tl.fma(s, factor, tl.broadcast_to(-shift[:, None], s.shape)) - log[:, None]
        back = tl.fma(s, factor, tl.broadcast_to(-shift_key[None, :], s.shape)) - log_key[None, :]
        forth, back = g[:, None] * tl.exp2(forth), g_key[None, :] * tl.exp2(back)
        if excluded is not None:
            forth = tl.where((k + key)[None, :] == left_out, 0.0, forth)
            back = tl.where(_excluded(excluded, k + key, inside, total)[None, :] == n[:, None], 0.0, back)
        seen = inside[None, :] & (_place(k + key, total)[None, :] != place)
        w = tl.where(seen, forth + back, 0.0)
        if SCALED:
            highest = tl.maximum(largest, tl.max(tl.abs(w), 1))
            w = w * (1 / highest)[:, None]
            o = o * (largest / highest)[:, None]
            largest = highest
        o = tl.dot(w.to(PRODUCT), x, o, input_precision=PRECISION)
    if SCALED:
        o = o * largest[:, None]
    tl.store(results + tl.program_id(1).to(tl.int64) * total * D + cells, o, valid[:, None] & columns)


@triton.jit(do_not_specialize=["total", "chunks", "upstream_stride"])
def combine(
    rows,
    temperature,
    number,
    upstream,
    upstream_stride,
    shares,
    results,
    d_rows,
    d_temperatures,
    total,
    chunks,
    D: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,
    REDUCTION: tl.constexpr,
):
    """The gradients of BLOCK_N rows: the chunks in order, and the positive. None is what is not wanted.

    dz_i = 1/tau (products_i - (g_i share_i + g_pos share_pos) z_pos); tau's has the parts -(z_i . dz_i) / 2 tau, since
    losses depend on z_i z_j / tau alone.
    """
    n, d = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N), tl.arange(0, BLOCK_D)
    valid = n < total
    mask = valid[:, None] & (d < D)[None, :]
    cells = n.to(tl.int64)[:, None] * D + d[None, :]
    inverse = 1 / _temperature(temperature, number)
    grad = tl.load(results + cells, mask, 0.0)
    for chunk in range(1, chunks):
        grad += tl.load(results + total.to(tl.int64) * chunk * D + cells, mask, 0.0)
    other = _positive(n, total)
    share = _upstream(upstream, upstream_stride, n, valid, total, REDUCTION) * tl.load(shares + n, valid, 0.0)
    share += _upstream(upstream, upstream_stride, other, valid, total, REDUCTION) * tl.load(shares + other, valid, 0.0)
    positive = tl.load(rows + other.to(tl.int64)[:, None] * D + d[None, :], mask, 0.0).to(tl.float32)
    grad = (grad - share[:, None] * positive) * inverse
    tl.store(d_rows + cells, grad.to(d_rows.dtype.element_ty), mask)
    if d_temperatures is not None:
        q = tl.load(rows + cells, mask, 0.0).to(tl.float32)
        tl.store(d_temperatures + n, tl.sum(q * grad, 1) * inverse * -0.5, valid)
