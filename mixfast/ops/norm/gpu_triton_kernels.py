# mypy: allow-untyped-defs
"""Triton kernels of split_batch_norm: sums of chunks, their merging, and the pass that writes; forward and backward.

Maps     [B, C, P] of P = H W pixels; the element (n, c, p) lies at (n C P) + c stride_c + p stride_p
Groups   s holds samples s, s + S ...; a step is BLOCK_P pixels of one sample, a chunk is `chunk` steps of a group
Partials [S, K, C] of K chunks; statistics and their gradients [S, C]
Sums     in float32, in an order fixed by the shapes; every cell has one writer: the same bits on every run
Checked  tests/ops/test_triton_interpreted.py by value, scripts/triton_report.py for all architectures
"""

import triton
import triton.language as tl


@triton.jit
def _step(step, group, steps, groups, BLOCK_P: tl.constexpr):
    """(sample, first pixel) of a step of a group, of which each sample has `steps`."""
    return (step // steps) * groups + group, (step % steps) * BLOCK_P


@triton.jit
def _count(step, steps, pixels, BLOCK_P: tl.constexpr):
    """Numbers of a channel in the steps before this one."""
    return (step // steps) * pixels + tl.minimum((step % steps) * BLOCK_P, pixels)


@triton.jit
def _tile(sample, start, c, channels, pixels, stride_c, stride_p, BLOCK_P: tl.constexpr):
    """Offsets [BLOCK_P, BLOCK_C] from the first of the maps, and which are inside."""
    p = start + tl.arange(0, BLOCK_P)
    offsets = tl.cast(sample, tl.int64) * channels * pixels + (p[:, None] * stride_p + c[None, :] * stride_c)
    return offsets, (p < pixels)[:, None] & (c < channels)[None, :]


@triton.jit
def _upstream(dy, y, cells, inside):
    """The gradient that arrives at the norm, in float32: zero where the result y of a ReLU is; y may be None."""
    upstream = tl.load(dy + cells, inside, 0.0).to(tl.float32)
    if y is not None:
        upstream = tl.where(tl.load(y + cells, inside, 0.0) <= 0, 0.0, upstream)
    return upstream


@triton.jit(do_not_specialize=["groups", "steps", "chunk", "chunks", "total"])
def moments(
    x,
    means,
    squares,
    groups,
    channels,
    pixels,
    stride_c,
    stride_p,
    steps,
    chunk,
    chunks,
    total,
    BLOCK_P: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """Program (chunk, tile of channels, group): the mean of a chunk, and its sum of (x - mean)^2.

    Sums are of differences to the mean of the chunk's first step, a part of the chunk: they hardly cancel.
    """
    c = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)
    group, first = tl.program_id(2), tl.program_id(0) * chunk
    end = tl.minimum(first + chunk, total)
    sample, start = _step(first, group, steps, groups, BLOCK_P)
    cells, inside = _tile(sample, start, c, channels, pixels, stride_c, stride_p, BLOCK_P)
    values = tl.load(x + cells, inside, 0.0).to(tl.float32)
    shift = tl.sum(values, 0) / tl.minimum(pixels - start, BLOCK_P).to(tl.float32)
    plain = tl.zeros([BLOCK_P, BLOCK_C], tl.float32)
    square = tl.zeros([BLOCK_P, BLOCK_C], tl.float32)
    for step in tl.range(first, end):
        sample, start = _step(step, group, steps, groups, BLOCK_P)
        cells, inside = _tile(sample, start, c, channels, pixels, stride_c, stride_p, BLOCK_P)
        values = tl.load(x + cells, inside, 0.0).to(tl.float32)
        apart = tl.where(inside, values - shift[None, :], 0.0)
        plain += apart
        square += apart * apart
    count = (_count(end, steps, pixels, BLOCK_P) - _count(first, steps, pixels, BLOCK_P)).to(tl.float32)
    rest = tl.sum(plain, 0)
    cells = (group * chunks + tl.program_id(0)) * channels + c
    tl.store(means + cells, shift + rest / count, c < channels)
    tl.store(squares + cells, tl.sum(square, 0) - rest * rest / count, c < channels)


@triton.jit(do_not_specialize=["steps", "chunk", "chunks", "total", "eps"])
def merge_moments(
    means,
    squares,
    group_means,
    inverses,
    variances,
    channels,
    pixels,
    steps,
    chunk,
    chunks,
    total,
    eps,
    BLOCK_P: tl.constexpr,
    BLOCK_K: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """Program (tile of channels, group): mean, 1 / sqrt(variance + eps) and unbiased variance of a group."""
    c, k = tl.program_id(0) * BLOCK_C + tl.arange(0, BLOCK_C), tl.arange(0, BLOCK_K)
    group = tl.program_id(1)
    inside = (k < chunks)[:, None] & (c < channels)[None, :]
    cells = (group * chunks + k)[:, None] * channels + c[None, :]
    mean, square = tl.load(means + cells, inside, 0.0), tl.load(squares + cells, inside, 0.0)
    first, end = tl.minimum(k * chunk, total), tl.minimum((k + 1) * chunk, total)
    counts = (_count(end, steps, pixels, BLOCK_P) - _count(first, steps, pixels, BLOCK_P)).to(tl.float32)[:, None]
    count = _count(total, steps, pixels, BLOCK_P).to(tl.float32)
    shift = tl.load(means + group * chunks * channels + c, c < channels, 0.0)  # the first chunk's
    group_mean = shift + tl.sum(tl.where(inside, mean - shift[None, :], 0.0) * counts, 0) / count
    apart = tl.where(inside, mean - group_mean[None, :], 0.0)
    variance = tl.sum(square + counts * apart * apart, 0)
    cells = group * channels + c
    tl.store(group_means + cells, group_mean, c < channels)
    tl.store(inverses + cells, tl.div_rn(1.0, tl.sqrt_rn(variance / count + eps)), c < channels)
    tl.store(variances + cells, variance / (count - 1), c < channels)


@triton.jit
def _sum_of_groups(values, groups, channels, c, mask):
    total = tl.zeros(c.shape, tl.float32)
    for group in range(0, groups):
        total += tl.load(values + group * channels + c, mask, 0.0)
    return total


@triton.jit
def _move(running, values, momentum, groups, channels, c, mask):
    """Moves a running statistic towards the mean of its values in the groups."""
    new = _sum_of_groups(values, groups, channels, c, mask) / groups.to(tl.float32)
    old = tl.load(running + c, mask, 0.0)
    tl.store(running + c, old * (1 - momentum) + new * momentum, mask)


@triton.jit(do_not_specialize=["groups", "steps", "chunk", "total", "momentum"])
def normalise(
    x,
    residual,
    y,
    weight,
    bias,
    means,
    inverses,
    variances,
    running_mean,
    running_var,
    groups,
    channels,
    pixels,
    stride_c,
    stride_p,
    steps,
    chunk,
    total,
    momentum,
    BLOCK_P: tl.constexpr,
    BLOCK_C: tl.constexpr,
    RELU: tl.constexpr,
):
    """Program (chunk, tile of channels, group): y of a chunk, to which a residual is added unless that is None.

    The first of a tile moves the running statistics.
    """
    c = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)
    group, first = tl.program_id(2), tl.program_id(0) * chunk
    mean = tl.load(means + group * channels + c, c < channels, 0.0)[None, :]
    scale = tl.load(inverses + group * channels + c, c < channels, 0.0)
    scale = (scale * tl.load(weight + c, c < channels, 0.0))[None, :]
    shift = tl.load(bias + c, c < channels, 0.0)[None, :]
    for step in tl.range(first, tl.minimum(first + chunk, total)):
        sample, start = _step(step, group, steps, groups, BLOCK_P)
        cells, inside = _tile(sample, start, c, channels, pixels, stride_c, stride_p, BLOCK_P)
        values = tl.load(x + cells, inside, 0.0).to(tl.float32)
        result = (values - mean) * scale + shift
        if residual is not None:
            result += tl.load(residual + cells, inside, 0.0).to(tl.float32)
        if RELU:
            result = tl.where(result < 0, 0.0, result)
        tl.store(y + cells, result.to(y.dtype.element_ty), inside)
    if running_mean is not None:
        mine = c < tl.where(tl.program_id(0) + group == 0, channels, 0)
        _move(running_mean, means, momentum, groups, channels, c, mine)
        _move(running_var, variances, momentum, groups, channels, c, mine)


@triton.jit(do_not_specialize=["groups", "steps", "chunk", "chunks", "total"])
def products(
    dy,
    x,
    y,
    masked,
    means,
    inverses,
    plain_sums,
    weighted_sums,
    groups,
    channels,
    pixels,
    stride_c,
    stride_p,
    steps,
    chunk,
    chunks,
    total,
    BLOCK_P: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """Program (chunk, tile of channels, group): the sums of g and of g h, h = (x - mean) inverse.

    g is dy, but zero where y is, unless y is None. It is written to `masked`, unless that is None.
    """
    c = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)
    group, first = tl.program_id(2), tl.program_id(0) * chunk
    mean = tl.load(means + group * channels + c, c < channels, 0.0)[None, :]
    plain = tl.zeros([BLOCK_P, BLOCK_C], tl.float32)
    weighted = tl.zeros([BLOCK_P, BLOCK_C], tl.float32)
    for step in tl.range(first, tl.minimum(first + chunk, total)):
        sample, start = _step(step, group, steps, groups, BLOCK_P)
        cells, inside = _tile(sample, start, c, channels, pixels, stride_c, stride_p, BLOCK_P)
        upstream = _upstream(dy, y, cells, inside)
        if masked is not None:
            tl.store(masked + cells, upstream.to(masked.dtype.element_ty), inside)
        values = tl.load(x + cells, inside, 0.0).to(tl.float32)
        plain += upstream
        weighted += upstream * tl.where(inside, values - mean, 0.0)
    inverse = tl.load(inverses + group * channels + c, c < channels, 0.0)
    cells = (group * chunks + tl.program_id(0)) * channels + c
    tl.store(plain_sums + cells, tl.sum(plain, 0), c < channels)
    tl.store(weighted_sums + cells, tl.sum(weighted, 0) * inverse, c < channels)


@triton.jit(do_not_specialize=["chunks"])
def merge_products(
    plain_sums,
    weighted_sums,
    plain,
    weighted,
    channels,
    chunks,
    BLOCK_K: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """Program (tile of channels, group): both sums of a group."""
    c, k = tl.program_id(0) * BLOCK_C + tl.arange(0, BLOCK_C), tl.arange(0, BLOCK_K)
    group = tl.program_id(1)
    inside = (k < chunks)[:, None] & (c < channels)[None, :]
    cells = (group * chunks + k)[:, None] * channels + c[None, :]
    tl.store(plain + group * channels + c, tl.sum(tl.load(plain_sums + cells, inside, 0.0), 0), c < channels)
    tl.store(weighted + group * channels + c, tl.sum(tl.load(weighted_sums + cells, inside, 0.0), 0), c < channels)


@triton.jit(do_not_specialize=["groups", "steps", "chunk", "total"])
def gradient(
    dy,
    x,
    y,
    dx,
    weight,
    means,
    inverses,
    plain,
    weighted,
    d_weight,
    d_bias,
    groups,
    channels,
    pixels,
    stride_c,
    stride_p,
    steps,
    chunk,
    total,
    BLOCK_P: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """Program (chunk, tile of channels, group): dx of a chunk. The first of a tile writes the parameters' gradients."""
    c = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)
    group, first = tl.program_id(2), tl.program_id(0) * chunk
    count = _count(total, steps, pixels, BLOCK_P).to(tl.float32)
    own = group * channels + c
    mean, inverse = tl.load(means + own, c < channels, 0.0)[None, :], tl.load(inverses + own, c < channels, 0.0)
    scale = (inverse * tl.load(weight + c, c < channels, 0.0))[None, :]
    shift = (tl.load(plain + own, c < channels, 0.0) / -count)[None, :]
    slope = (tl.load(weighted + own, c < channels, 0.0) * inverse / -count)[None, :]
    for step in tl.range(first, tl.minimum(first + chunk, total)):
        sample, start = _step(step, group, steps, groups, BLOCK_P)
        cells, inside = _tile(sample, start, c, channels, pixels, stride_c, stride_p, BLOCK_P)
        upstream = _upstream(dy, y, cells, inside)
        values = tl.load(x + cells, inside, 0.0).to(tl.float32)
        grad = scale * (upstream + shift + (values - mean) * slope)
        tl.store(dx + cells, grad.to(dx.dtype.element_ty), inside)
    mine = c < tl.where(tl.program_id(0) + group == 0, channels, 0)
    tl.store(d_weight + c, _sum_of_groups(weighted, groups, channels, c, mine), mine)
    tl.store(d_bias + c, _sum_of_groups(plain, groups, channels, c, mine), mine)
