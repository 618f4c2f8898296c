"""multi_queue_infonce in CUDA C++ (csrc/infonce/cuda.cu), on the current stream of the device.

Takes D up to 256, any number of terms and queues, any strides, and mixed dtypes. Nothing waits for the device or is
copied to it: addresses, sizes and temperatures travel as kernel arguments, so a call may be captured in a graph.
"""

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from mixfast.ops import _native
from mixfast.ops._native import REDUCTIONS

LARGEST_DIM = 256  # registers hold a tile of products [rows, D]
HALF, BFLOAT16, SPLIT = 0, 1, 2  # csrc/infonce/cuda.h
KERNELS = {"ampere": 0, "hopper": 1}  # the main kernel: by mma.sync, or by TMA and wgmma on sm_90; as there
_C: Any = _native.cuda


unavailable = _native.cuda_unavailable


def why_not(device_type: str, dtype: torch.dtype, queue_dtype: torch.dtype, dim: int = 1) -> str | None:
    if device_type != "cuda":
        return f"it takes CUDA tensors; these are on {device_type}"
    if torch.float64 in (dtype, queue_dtype):
        return "it has no float64; backend='reference' has"
    return f"it takes D up to {LARGEST_DIM}; got {dim}" if dim > LARGEST_DIM else None


def factors(dtype: torch.dtype, queue_dtype: torch.dtype) -> int:
    """How matrix products are made, by what they multiply.

    Of float16 or bfloat16 where all operands are so. Else, as torch's settings allow products of float32: in TF32, to
    which float16 is equal for entries below 65504 (those of unit rows are below one), or of numbers split into two
    float16, in three products, which keeps 22 bits of entries below 4094; larger ones make the row's loss NaN.
    """
    if dtype == queue_dtype == torch.float16:
        return HALF
    if dtype == queue_dtype == torch.bfloat16:
        return BFLOAT16
    if torch.float32 in (dtype, queue_dtype) and torch.backends.cuda.matmul.fp32_precision == "tf32":
        return HALF
    return SPLIT


if _C:
    _C.infonce_use(factors)


def kernels() -> list[str]:
    """Those of KERNELS that the current GPU can run; a table in csrc/infonce/cuda.cu names the faster."""
    hopper = _C.infonce_has_hopper() and torch.cuda.get_device_capability() == (9, 0)
    return list(KERNELS) if hopper else ["ampere"]


@contextlib.contextmanager
def kernel(name: str) -> Iterator[None]:
    """All calls of this process take one of `kernels()`, whatever the table says: for tests and benchmarks."""
    _C.infonce_use_kernel(KERNELS[name])
    try:
        yield
    finally:
        _C.infonce_use_kernel(-1)


def forward(
    queries: Sequence[Tensor],
    positives: Sequence[Tensor],
    queues: Sequence[Tensor],
    queue_index: list[int],
    valid_len: Tensor | None,
    temperature: Tensor | None,
    temperatures: list[float],
    reduction: str,
    need_grad: bool,
) -> tuple[Tensor, Tensor | None, Tensor]:
    """(losses, grad_queries, negative_share) as `_operators.forward` describes them."""
    scale = temperatures if temperature is None else temperature
    return _C.infonce_forward(  # type: ignore[no-any-return]
        queries, positives, queues, queue_index, valid_len, scale, REDUCTIONS[reduction], need_grad
    )


def backward(
    grad_losses: Tensor,
    grad_queries: Tensor,
    negative_share: Tensor,
    queries: Sequence[Tensor],
    temperature: Tensor | None,
    temperatures: list[float],
    reduction: str,
    needs: Sequence[bool],
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """(d_queries, d_positives, d_temperature) as `_operators.backward` describes them."""
    scale = temperatures if temperature is None else temperature
    return _C.infonce_backward(  # type: ignore[no-any-return]
        grad_losses, grad_queries, negative_share, queries, scale, REDUCTIONS[reduction], *needs
    )
