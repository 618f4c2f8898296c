# mypy: allow-untyped-defs
"""Triton kernels of multi_queue_infonce: partial results of chunks of the queues, then their merger in chunk order.

Shapes   queries, positives [N, D], all terms' rows; a queue [K, D]; maxima, sums [S, N], products [S, N, D] of S chunks
Tiles    int32 [tiles, 6]: queue, its keys, keys per chunk, first row, rows, term. Rows of one term only, so that the
         temperature is one number; tiles of one queue are neighbours, so that programs that run together share its keys
Sums     in float32, in an order fixed by the shapes; every cell has one writer: the same bits on every run
Checked  tests/ops/test_triton_interpreted.py by value, scripts/triton_report.py for all architectures

In base 2, with scale = log2(e) / tau, s_j = q.x_j scale, and over the keys of a chunk:
    m = max s_j,  z = sum 2^(s_j - m),  o = sum 2^(s_j - m) x_j
so that log sum_j e^{q.x_j/tau} = (m + log2 z) ln 2, and the mean negative is o / z.
The positive stays out of m, z and o: next to a dominant positive, 16-bit probabilities of negatives would vanish.
"""

import triton
import triton.language as tl

from mixfast.ops._triton_kernels import LN_2, LOG2_E, log1p, shift_of


@triton.jit
def _pick(options, index):
    chosen = options[0]
    for i in tl.static_range(1, len(options)):
        if index == i:
            chosen = options[i]
    return chosen


@triton.jit
def _temperature(tensor, numbers, term):
    """Temperature of a term: from a tensor [T], or, if that is None, from T numbers."""
    return _pick(numbers, term) if tensor is None else tl.load(tensor + term).to(tl.float32)


@triton.jit
def _counted(keys, valid_len, queue):
    """Number of keys of a queue that count: all, or the first valid_len[queue], clamped."""
    return keys if valid_len is None else tl.minimum(tl.maximum(tl.load(valid_len + queue), 0), keys).to(tl.int32)


@triton.jit(do_not_specialize=["total"])
def partials(
    tiles,
    queries,
    queues,
    valid_len,
    temperature,
    temperatures,
    maxima,
    sums,
    products,
    total,
    D: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    BLOCK_D: tl.constexpr,
    GRAD: tl.constexpr,
    PRODUCT: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Program (tile, chunk). PRODUCT is the type of both factors of both products, and one tile of keys serves both.

    A chunk beyond the end of a short queue, or of the keys that count, writes (-inf, 0, 0).
    """
    tiles += 6 * tl.program_id(0)
    index, chunk = tl.load(tiles), tl.load(tiles + 2)
    keys = _counted(tl.load(tiles + 1), valid_len, index)
    first, rows, term = tl.load(tiles + 3), tl.load(tiles + 4), tl.load(tiles + 5)
    scale = LOG2_E / _temperature(temperature, temperatures, term)
    queue = _pick(queues, index)

    # Large offsets are scalars: tensors of 64-bit ones would cost the registers that the products need.
    n, key, d = tl.arange(0, BLOCK_N), tl.arange(0, BLOCK_K), tl.arange(0, BLOCK_D)
    cells = n[:, None] * D + d[None, :]
    mask = (n < rows)[:, None]
    if D != BLOCK_D:
        mask &= (d < D)[None, :]
    q = tl.load(queries + first.to(tl.int64) * D + cells, mask, 0.0).to(PRODUCT)
    m = tl.full([BLOCK_N], float("-inf"), tl.float32)
    z = tl.zeros([BLOCK_N], tl.float32)
    if GRAD:
        o = tl.zeros([BLOCK_N, BLOCK_D], tl.float32)
    start = tl.program_id(1) * chunk
    end = tl.minimum(start + chunk, keys)
    for k in tl.range(start, end, BLOCK_K):
        inside = key < end - k
        known = inside[:, None]
        if D != BLOCK_D:
            known &= (d < D)[None, :]
        x = tl.load(queue + tl.cast(k, tl.int64) * D + (key[:, None] * D + d[None, :]), known, 0.0).to(PRODUCT)
        if BLOCK_K == 16:  # the queries come from shared memory: in registers, split into three, they would spill
            s = tl.trans(tl.dot(x, tl.trans(q), input_precision=PRECISION))
        else:
            s = tl.dot(q, tl.trans(x), input_precision=PRECISION)
        s = tl.where(inside[None, :], s, float("-inf"))
        highest = tl.maximum(m, shift_of(tl.max(s, 1), scale))
        # One multiply-add for each logit: scaling the queries instead would round them.
        p = tl.exp2(tl.fma(s, tl.full(s.shape, scale, tl.float32), tl.broadcast_to(-highest[:, None], s.shape)))
        shrink = tl.exp2(m - highest)
        z = z * shrink + tl.sum(p, 1)
        if GRAD:
            o = tl.dot(p.to(PRODUCT), x, o * shrink[:, None], input_precision=PRECISION)
        m = highest
    cell = tl.program_id(1).to(tl.int64) * total + first
    tl.store(maxima + cell + n, m, n < rows)
    tl.store(sums + cell + n, z, n < rows)
    if GRAD:
        tl.store(products + cell * D + cells, o, mask)


@triton.jit(do_not_specialize=["total"])
def merge(
    tiles,
    queries,
    positives,
    valid_len,
    temperature,
    temperatures,
    maxima,
    sums,
    products,
    losses,
    shares,
    grads,
    total,
    D: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,
    GRAD: tl.constexpr,
):
    """Program (tile, BLOCK_N of its rows): merges the chunks that hold keys in order, then adds the positive.

    loss = softplus(l - s) and the negatives' share p = sigmoid(l - s) for l = log sum_j e^{q.x_j/tau}, s = q.k/tau;
    grad = p / tau (O - k) with the mean negative O. Without negatives l = -inf, and all three are zero.
    """
    tiles += 6 * tl.program_id(0)
    chunk, first = tl.load(tiles + 2), tl.load(tiles + 3)
    keys = _counted(tl.load(tiles + 1), valid_len, tl.load(tiles))
    n, d = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N), tl.arange(0, BLOCK_D)
    valid = n < tl.load(tiles + 4)
    inverse = 1 / _temperature(temperature, temperatures, tl.load(tiles + 5))
    row = (first + n).to(tl.int64)
    cells = row[:, None] * D + d[None, :]
    mask = valid[:, None] & (d < D)[None, :]

    m = tl.load(maxima + row, valid, 0.0)
    z = tl.load(sums + row, valid, 1.0)
    if GRAD:
        o = tl.load(products + cells, mask, 0.0)
    for chunk_index in range(1, tl.cdiv(keys, chunk)):
        before = total.to(tl.int64) * chunk_index
        m_next = tl.load(maxima + before + row, valid, 0.0)
        highest = tl.maximum(m, m_next)
        shrink, shrink_next = tl.exp2(m - highest), tl.exp2(m_next - highest)
        z = z * shrink + tl.load(sums + before + row, valid, 1.0) * shrink_next
        if GRAD:
            o_next = tl.load(products + before * D + cells, mask, 0.0)
            o = o * shrink[:, None] + o_next * shrink_next[:, None]
        m = highest

    z = tl.where(z == 0, 1.0, tl.where(z < float("inf"), z, float("nan")))  # no negatives: m = -inf does the rest
    q = tl.load(queries + cells, mask, 0.0).to(tl.float32)
    k = tl.load(positives + cells, mask, 0.0).to(tl.float32)
    match = tl.sum(q * k, 1) * inverse
    match = tl.where(tl.abs(match) < float("inf"), match, float("nan"))  # an infinite one would give a loss of 0
    difference = (m + tl.log2(z)) * LN_2 - match
    small = tl.exp2(-tl.abs(difference) * LOG2_E)
    share = tl.where(difference < 0, small, 1.0) / (1 + small)
    # max(d, 0) + log(1 + e^-|d|), but a NaN stays one
    tl.store(losses + row, tl.where(difference < 0, 0.0, difference) + log1p(small), valid)
    tl.store(shares + row, share, valid)
    if GRAD:
        tl.store(grads + cells, (share * inverse)[:, None] * (o / z[:, None] - k), mask)


@triton.jit
def reduce_terms(values, terms, results, MEAN: tl.constexpr, BLOCK_N: tl.constexpr):
    """One program for a term: the sum or mean of its rows' values; terms int32 [T, 2]: first row, rows."""
    terms += 2 * tl.program_id(0)
    first, rows = tl.load(terms), tl.load(terms + 1)
    sums = tl.zeros([BLOCK_N], tl.float32)
    for start in range(0, rows, BLOCK_N):
        n = start + tl.arange(0, BLOCK_N)
        sums += tl.load(values + first.to(tl.int64) + n, n < rows, 0.0)
    result = tl.sum(sums, 0)
    tl.store(results + tl.program_id(0), result / rows.to(tl.float32) if MEAN else result)


@triton.jit(do_not_specialize=["upstream_stride"])
def scale_rows(
    tiles,
    terms,
    upstream,
    upstream_stride,
    grads,
    shares,
    queries,
    temperature,
    temperatures,
    d_queries,
    d_positives,
    d_temperatures,
    D: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,
    REDUCTION: tl.constexpr,
):
    """Program (tile, BLOCK_N of its rows): derivatives of a row's loss, times its upstream gradient g.

    g grad, -g (p / tau) q, and -g (q . grad) / tau for the temperature, of which reduce_terms makes sums. What is None
    is not wanted; queries are only read for the last two.
    """
    tiles += 6 * tl.program_id(0)
    first, term = tl.load(tiles + 3), tl.load(tiles + 5)
    n, d = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N), tl.arange(0, BLOCK_D)
    valid = n < tl.load(tiles + 4)
    inverse = 1 / _temperature(temperature, temperatures, term)
    row = (first + n).to(tl.int64)
    cells = row[:, None] * D + d[None, :]
    mask = valid[:, None] & (d < D)[None, :]
    if REDUCTION == "none":
        g = tl.load(upstream + row * upstream_stride, valid, 0.0)
    else:
        g = tl.load(upstream + term.to(tl.int64) * upstream_stride)
        g = g / tl.load(terms + 2 * term + 1).to(tl.float32) if REDUCTION == "mean" else g
        g = tl.full([BLOCK_N], 1.0, tl.float32) * g
    grad = tl.load(grads + cells, mask, 0.0)
    if d_queries is not None:
        tl.store(d_queries + cells, (g[:, None] * grad).to(d_queries.dtype.element_ty), mask)
    if d_positives is not None or d_temperatures is not None:
        q = tl.load(queries + cells, mask, 0.0).to(tl.float32)
        if d_positives is not None:
            share = tl.load(shares + row, valid, 0.0)
            value = -(g * share * inverse)[:, None] * q
            tl.store(d_positives + cells, value.to(d_positives.dtype.element_ty), mask)
        if d_temperatures is not None:
            tl.store(d_temperatures + row, -g * tl.sum(q * grad, 1) * inverse, valid)
