"""nt_xent in Triton (gpu_triton_kernels.py), its only fast backend on a GPU."""

from typing import Any

import torch
from torch import Tensor

from mixfast.ops import _triton
from mixfast.ops._triton import architecture, factors, power_of_two, row_constants, unavailable
from mixfast.ops.ntxent._operators import Problem

__all__ = ["backward", "forward", "unavailable", "why_not"]

LARGEST_DIM, LARGEST_EXACT_DIM = 256, 128  # registers hold a tile of products [BLOCK_ROWS, D]
BLOCK_ROWS = 64  # usual number of rows of a tile; the matrix instruction of sm_90 needs it with four warps
PROGRAMS = 384  # largest number of programs: three for each multiprocessor of a large GPU
SHORTEST_CHUNK = 128  # smallest number of rows of a chunk
_LAUNCH = {"num_warps": 4, "enable_fp_fusion": True}


def why_not(device_type: str, dtype: torch.dtype, dim: int) -> str | None:
    reason = _triton.why_not(device_type, dtype)
    if reason is not None:
        return reason
    if dim > LARGEST_DIM:
        return f"it takes D up to {LARGEST_DIM}; got {dim}"
    if factors(dtype, dtype) == "bf16x3" and dim > LARGEST_EXACT_DIM:
        return (
            f"it takes D up to {LARGEST_EXACT_DIM} for float32; got {dim}. Convert the views to float16, or allow "
            "torch.backends.cuda.matmul.fp32_precision = 'tf32'"
        )
    return None


def forward(problem: Problem) -> tuple[Tensor, Tensor, Tensor]:
    """(losses, denominators, shares) as `_operators.forward` describes them."""
    from mixfast.ops.ntxent import gpu_triton_kernels as kernels

    rows, excluded, temperature, number, reduction = _read(problem)
    total, dim = rows.shape
    chunk = chunk_size(total)
    constants, launch = pair_constants(architecture(rows.device), dim, factors(rows.dtype, rows.dtype), False)
    tiles, chunks = -(-total // constants["BLOCK_N"]), -(-total // chunk)
    streaming = row_constants(dim)
    maxima, sums = rows.new_empty((2, chunks, total), dtype=torch.float32)
    losses, shares = rows.new_empty((2, total), dtype=torch.float32).unbind()
    denominators = rows.new_empty((2, total), dtype=torch.float32)
    with torch.cuda.device_of(rows):
        kernels.partials[(tiles, chunks)](
            rows, excluded, temperature, number, maxima, sums, total, chunk, **constants, **launch
        )
        kernels.merge[(-(-total // streaming["BLOCK_N"]),)](
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
            **streaming,
            **_LAUNCH,
        )
    return losses if reduction == "none" else _reduced(losses, reduction), denominators, shares


def _read(problem: Problem) -> tuple[Tensor, Tensor | None, Tensor | None, float, str]:
    """The rows of both views, and the other parts of the problem."""
    first, second, excluded, temperature, number, reduction = problem
    excluded = None if excluded is None else excluded.contiguous()
    return torch.cat([first, second]), excluded, temperature, number, reduction


def backward(
    problem: Problem, grad_losses: Tensor, denominators: Tensor, shares: Tensor, need_temperature: bool
) -> tuple[Tensor, Tensor]:
    """(d_rows, d_temperature) as `_operators.backward` describes them."""
    from mixfast.ops.ntxent import gpu_triton_kernels as kernels

    rows, excluded, temperature, number, reduction = _read(problem)
    total, dim = rows.shape
    chunk = chunk_size(total)
    constants, launch = pair_constants(architecture(rows.device), dim, factors(rows.dtype, rows.dtype), True)
    tiles, chunks = -(-total // constants["BLOCK_N"]), -(-total // chunk)
    streaming = row_constants(dim)
    upstream = grad_losses, grad_losses.stride(0) if reduction == "none" else 0
    results = rows.new_empty((chunks, total, dim), dtype=torch.float32)
    d_rows = torch.empty_like(rows)
    d_temperatures = rows.new_empty(total, dtype=torch.float32) if need_temperature else None
    with torch.cuda.device_of(rows):
        kernels.products[(tiles, chunks)](
            rows,
            excluded,
            temperature,
            number,
            *upstream,
            denominators,
            results,
            total,
            chunk,
            REDUCTION=reduction,
            **constants,
            **launch,
        )
        kernels.combine[(-(-total // streaming["BLOCK_N"]),)](
            rows,
            temperature,
            number,
            *upstream,
            shares,
            results,
            d_rows,
            d_temperatures,
            total,
            chunks,
            REDUCTION=reduction,
            **streaming,
            **_LAUNCH,
        )
    return d_rows, denominators.new_empty(0) if d_temperatures is None else _reduced(d_temperatures, "sum")


def _reduced(values: Tensor, reduction: str) -> Tensor:
    from mixfast.ops.ntxent import gpu_triton_kernels as kernels

    result = values.new_empty(())
    with torch.cuda.device_of(values):
        kernels.reduce[(1,)](values, result, len(values), MEAN=reduction == "mean", BLOCK_N=1024, **_LAUNCH)
    return result


def chunk_size(total: int) -> int:
    """Rows per chunk, from shapes alone and not from the device: the number of chunks decides the last bits."""
    chunks = max(PROGRAMS // -(-total // BLOCK_ROWS), 1)
    return max(-(-total // (64 * chunks)) * 64, SHORTEST_CHUNK)


# The constants of each kernel. scripts/triton_report.py compiles with the same.


def pair_constants(architecture: int, dim: int, factors: str, need_grad: bool) -> tuple[dict[str, Any], dict[str, Any]]:
    """Constants and launch options of the kernels that multiply rows with rows, chosen from docs/triton-report.md."""
    import triton.language as tl

    block_d = power_of_two(dim, least=16)
    exact, narrow_types = factors in ("bf16x3", "ieee"), factors in ("fp16", "bf16")
    halved = exact and architecture not in (90, 100)  # mma.sync takes both halves of both operands from registers
    block_n, block_k = BLOCK_ROWS, 64 if narrow_types and block_d <= 128 else 32
    if need_grad:  # two weights for each score, and a tile of products
        block_n, block_k = 32 if halved else BLOCK_ROWS, 32 if narrow_types else 16
    elif halved and block_d > 64:
        block_k = 16
    constants = {
        **{"D": dim, "BLOCK_N": block_n, "BLOCK_K": block_k, "BLOCK_D": block_d},
        "PRODUCT": tl.float32 if exact else tl.bfloat16 if factors == "bf16" else tl.float16,
        "PRECISION": factors if exact else None,
    }
    if need_grad:
        constants["SCALED"] = constants["PRODUCT"] == tl.float16
    narrow = architecture in (86, 89, 120)  # 99 KiB of shared memory
    launch = {
        "num_stages": 2 if exact or narrow or architecture == 100 else 3,
        "num_warps": 8 if block_d > 128 or (block_d > 64 and (exact or (need_grad and not narrow_types))) else 4,
        "enable_fp_fusion": True,
    }
    return constants, launch
