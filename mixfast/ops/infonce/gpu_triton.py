"""multi_queue_infonce in Triton (gpu_triton_kernels.py): for a torch with CUDA on a machine without a compiler."""

import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from mixfast.ops import _triton
from mixfast.ops._triton import architecture, factors, power_of_two, row_constants, unavailable
from mixfast.ops.infonce._operators import Terms, empty_gradients

__all__ = ["backward", "forward", "unavailable", "why_not"]

LARGEST_DIM, LARGEST_EXACT_DIM = 256, 128  # registers hold a tile of products [BLOCK_ROWS, D]
BLOCK_ROWS = 64  # rows of a tile; four warps need them for the matrix instruction of sm_90
PROGRAMS = 384  # chunks are cut for at most so many programs, three for each multiprocessor of a large GPU
PARTIAL_BYTES = 8 << 20  # and for at most so much memory, unless one chunk needs more
SHORTEST_CHUNK = 512  # keys
_LAUNCH = {"num_warps": 4, "enable_fp_fusion": True}


def why_not(device_type: str, dtype: torch.dtype, queue_dtype: torch.dtype, dim: int) -> str | None:
    reason = _triton.why_not(device_type, dtype, queue_dtype)
    if reason is not None:
        return reason
    if dim > LARGEST_DIM:
        return f"it takes D up to {LARGEST_DIM}; got {dim}"
    if factors(dtype, queue_dtype) == "bf16x3" and dim > LARGEST_EXACT_DIM:
        return (
            f"it takes D up to {LARGEST_EXACT_DIM} for float32 or mixed dtypes; got {dim}. Convert all to float16, or "
            "allow torch.backends.cuda.matmul.fp32_precision = 'tf32'"
        )
    return None


def forward(
    terms: Terms,
    positives: Sequence[Tensor],
    queues: Sequence[Tensor],
    queue_index: Sequence[int],
    valid_len: Tensor | None,
    need_grad: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """(losses, grad_queries, negative_share) as `_operators.forward` describes them."""
    from mixfast.ops.infonce import gpu_triton_kernels as kernels

    anchors, matches, counts = _rows(terms.queries), _rows(positives), tuple(terms.row_counts())
    queues = tuple(queue.contiguous() for queue in queues)
    valid_len = None if valid_len is None else valid_len.contiguous()
    total, dim = anchors.shape
    kind = factors(anchors.dtype, queues[0].dtype)
    plan = _plan(counts, tuple(queue_index), tuple(queue.shape[0] for queue in queues), dim, anchors.device)
    constants, launch = partials_constants(architecture(anchors.device), dim, kind, need_grad)
    scales = _scales(terms)
    maxima, sums = anchors.new_empty((2, plan.chunks, total), dtype=torch.float32)
    products = anchors.new_empty((plan.chunks, total, dim), dtype=torch.float32) if need_grad else None
    losses, shares = (anchors.new_empty(total, dtype=torch.float32) for _ in range(2))
    grads = anchors.new_empty((total if need_grad else 0, dim), dtype=torch.float32)
    with torch.cuda.device_of(anchors):
        kernels.partials[(plan.tiles.shape[0], plan.chunks)](
            plan.tiles, anchors, queues, valid_len, *scales, maxima, sums, products, total, **constants, **launch
        )
        constants = row_constants(dim)
        kernels.merge[(plan.tiles.shape[0], BLOCK_ROWS // constants["BLOCK_N"])](
            plan.tiles,
            anchors,
            matches,
            valid_len,
            *scales,
            maxima,
            sums,
            products,
            losses,
            shares,
            grads if need_grad else None,
            total,
            GRAD=need_grad,
            **constants,
            **_LAUNCH,
        )
    return _reduced(losses, plan, terms.reduction), grads, shares


def backward(
    terms: Terms, grad_losses: Tensor, grad_queries: Tensor, negative_share: Tensor, needs: Sequence[bool]
) -> tuple[Tensor, Tensor, Tensor]:
    """(d_queries, d_positives, d_temperature) as `_operators.backward` describes them."""
    from mixfast.ops.infonce import gpu_triton_kernels as kernels

    (total, dim), counts = grad_queries.shape, tuple(terms.row_counts())
    anchors = _rows(terms.queries) if needs[1] or needs[2] else None
    plan = _plan(counts, (0,) * len(counts), (1,), dim, grad_queries.device)
    d_queries, d_positives, _ = empty_gradients(terms, grad_queries, needs)
    d_temperatures = grad_queries.new_empty(total if needs[2] else 0)
    wanted = d_queries, d_positives, d_temperatures
    constants = row_constants(dim)
    with torch.cuda.device_of(grad_queries):
        kernels.scale_rows[(plan.tiles.shape[0], BLOCK_ROWS // constants["BLOCK_N"])](
            plan.tiles,
            plan.terms,
            grad_losses,
            grad_losses.stride(0),
            grad_queries,
            negative_share,
            anchors,
            *_scales(terms),
            *(each if need else None for each, need in zip(wanted, needs, strict=True)),
            REDUCTION=terms.reduction,
            **constants,
            **_LAUNCH,
        )
    return d_queries, d_positives, _reduced(d_temperatures, plan, "sum") if needs[2] else d_temperatures


def _scales(terms: Terms) -> tuple[Tensor | None, tuple[float, ...] | None]:
    return None if terms.temperature is None else terms.temperature.contiguous(), tuple(terms.temperatures) or None


def _rows(tensors: Sequence[Tensor]) -> Tensor:
    """The rows of all terms [N, D]; a copy unless they lie there so already."""
    return tensors[0].reshape(-1, tensors[0].shape[-1]).contiguous() if len(tensors) == 1 else torch.cat(list(tensors))


def _reduced(values: Tensor, plan: "Plan", reduction: str) -> Tensor:
    from mixfast.ops.infonce import gpu_triton_kernels as kernels

    if reduction == "none":
        return values
    results = values.new_empty(plan.terms.shape[0])
    with torch.cuda.device_of(values):
        kernels.reduce_terms[(len(results),)](
            values, plan.terms, results, MEAN=reduction == "mean", BLOCK_N=1024, **_LAUNCH
        )
    return results


class Plan(NamedTuple):
    """What each program works on; gpu_triton_kernels.py describes the tables."""

    tiles: Tensor
    terms: Tensor
    chunks: int  # of the longest queue in use


# Kept for good: a captured graph reads the tables for as long as it lives. They follow from shapes, of which a training
# run has few; copying them to the device waits for it, once.
@functools.cache
def _plan(
    counts: tuple[int, ...], queue_index: tuple[int, ...], keys: tuple[int, ...], dim: int, device: torch.device
) -> Plan:
    tiles = sum(-(-count // BLOCK_ROWS) for count in counts)
    sizes = [chunk_size(each, tiles, dim) for each in keys]
    starts = [sum(counts[:t]) for t in range(len(counts))]
    table = []
    for t in sorted(range(len(counts)), key=lambda t: queue_index[t]):
        queue = queue_index[t]
        for row in range(0, counts[t], BLOCK_ROWS):
            rows = min(BLOCK_ROWS, counts[t] - row)
            table.append((queue, keys[queue], sizes[queue], starts[t] + row, rows, t))
    chunks = max(-(-keys[queue] // sizes[queue]) for queue in queue_index)
    terms = list(zip(starts, counts, strict=True))
    tables = (torch.tensor(rows, dtype=torch.int32, device=device) for rows in (table, terms))
    return Plan(next(tables), next(tables), chunks)


def chunk_size(keys: int, tiles: int, dim: int) -> int:
    """Keys of a chunk. From shapes alone, not from the device: the number of chunks decides the last bits."""
    chunks = max(min(PROGRAMS // tiles, PARTIAL_BYTES // (tiles * BLOCK_ROWS * dim * 4)), 1)
    return max(-(-keys // (64 * chunks)) * 64, SHORTEST_CHUNK)


# The constants of each kernel. scripts/triton_report.py compiles with the same.


def partials_constants(
    architecture: int, dim: int, factors: str, need_grad: bool
) -> tuple[dict[str, Any], dict[str, Any]]:
    """The constants of the kernel, and the options of its launch: fixed, from the report, not tuned while running."""
    import triton.language as tl

    block_d = power_of_two(dim, least=16)
    exact = factors in ("bf16x3", "ieee")
    block_k = 64 if factors in ("fp16", "bf16") and block_d <= 128 else 32
    if exact and block_d > 64 and architecture not in (90, 100):
        block_k = 16  # mma.sync takes both halves of both operands from registers
    constants = {
        **{"D": dim, "BLOCK_N": BLOCK_ROWS, "BLOCK_K": block_k, "BLOCK_D": block_d, "GRAD": need_grad},
        "PRODUCT": tl.float32 if exact else tl.bfloat16 if factors == "bf16" else tl.float16,
        "PRECISION": factors if exact else None,
    }
    narrow = architecture in (86, 89, 120)  # 99 KiB of shared memory
    launch = {
        "num_stages": 2 if exact or narrow or architecture == 100 else 3,
        "num_warps": 8 if block_d > 128 or (exact and block_d > 64) else 4,
        "enable_fp_fusion": True,
    }
    return constants, launch
