# mypy: allow-untyped-defs
"""Triton kernel of enqueue_: all queues in one launch.

Shapes   keys [B_q, D], queues [K_q, D] and pointers [] of Q queues, as tuples with one entry for each
Pointer  bits 40 and up count the programs that have read it: the last one moves it on and clears them. So no program
         waits for another, and nothing has to be prepared between launches
"""

import triton
import triton.language as tl

READERS = tl.constexpr(40)


@triton.jit
def _pick(options, index):
    chosen = options[0]
    for i in tl.static_range(1, len(options)):
        if index == i:
            chosen = options[i]
    return chosen


@triton.jit
def _number(options, index):
    """`_pick` of integers, of which a launch makes constants where they are 1."""
    chosen = tl.cast(options[0], tl.int32)
    for i in tl.static_range(1, len(options)):
        if index == i:
            chosen = tl.cast(options[i], tl.int32)
    return chosen


@triton.jit
def enqueue(
    queues,
    keys,
    pointers,
    sizes,
    counts,
    D: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,
    NORMALIZE: tl.constexpr,
):
    """Program (block of BLOCK_N rows, queue); beyond a queue's rows there is nothing to do."""
    index = tl.program_id(1)
    size, count = _number(sizes, index), _number(counts, index)
    programs = tl.cdiv(count, BLOCK_N)
    if tl.program_id(0) < programs:
        pointer = _pick(pointers, index)
        one = tl.full([], 1, tl.int64) << READERS
        read = tl.atomic_add(pointer, one, sem="relaxed")
        start = (read & (one - 1)) % size
        if (read >> READERS) == programs - 1:
            tl.store(pointer, (start + count) % size)
        n, d = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N), tl.arange(0, BLOCK_D)
        mask = (n < count)[:, None] & (d < D)[None, :]
        rows = tl.load(_pick(keys, index) + n.to(tl.int64)[:, None] * D + d[None, :], mask, 0.0).to(tl.float32)
        if NORMALIZE:
            length = tl.sqrt_rn(tl.sum(rows * rows, 1))
            rows = tl.div_rn(rows, tl.maximum(length, 1e-12)[:, None])
        queue = _pick(queues, index)
        place = (start + n) % size
        tl.store(queue + place[:, None] * D + d[None, :], rows.to(queue.dtype.element_ty), mask)
