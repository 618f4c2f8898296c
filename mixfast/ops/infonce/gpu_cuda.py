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
from mixfast.ops._native import DTYPES, REDUCTIONS
from mixfast.ops.infonce._operators import Terms, empty_gradients
from mixfast.ops.infonce.cpu_native import adjacent, queue_table, term_table

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
    terms: Terms,
    positives: Sequence[Tensor],
    queues: Sequence[Tensor],
    queue_index: Sequence[int],
    valid_len: Tensor | None,
    need_grad: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """(losses, grad_queries, negative_share) as `_operators.forward` describes them."""
    first, place = terms.queries[0], _native.place(terms.queries[0])
    rows, matches, counts = adjacent(terms.queries), adjacent(positives), terms.row_counts()
    dim, total, reduction = first.shape[-1], sum(counts), REDUCTIONS[terms.reduction]
    losses = first.new_empty(total if terms.reduction == "none" else len(counts), dtype=torch.float32)
    grad_queries = first.new_empty((total if need_grad else 0, dim), dtype=torch.float32)
    negative_share = first.new_empty(total, dtype=torch.float32)
    products = factors(first.dtype, queues[0].dtype)
    keys = [len(queue) for queue in queues]
    floats = _C.infonce_workspace(counts, list(queue_index), keys, dim, products, need_grad, reduction, place[0])
    workspace = first.new_empty(floats, dtype=torch.float32)
    valid_len = None if valid_len is None else valid_len.contiguous()
    _C.infonce_forward(
        term_table(rows, matches, queue_index),
        terms.temperatures,
        _scale(terms.temperature),
        DTYPES[first.dtype],
        queue_table(queues, keys),
        DTYPES[queues[0].dtype],
        0 if valid_len is None else valid_len.data_ptr(),
        dim,
        reduction,
        products,
        losses.data_ptr(),
        grad_queries.data_ptr(),
        negative_share.data_ptr(),
        workspace.data_ptr(),
        *place,
    )
    return losses, grad_queries, negative_share


def backward(
    terms: Terms, grad_losses: Tensor, grad_queries: Tensor, negative_share: Tensor, needs: Sequence[bool]
) -> tuple[Tensor, Tensor, Tensor]:
    """(d_queries, d_positives, d_temperature) as `_operators.backward` describes them."""
    rows = adjacent(terms.queries)
    d_queries, d_positives, d_temperature = gradients = empty_gradients(terms, grad_queries, needs)
    _C.infonce_backward(
        term_table(rows),
        terms.temperatures,
        _scale(terms.temperature),
        DTYPES[rows[0].dtype],
        grad_queries.shape[1],
        REDUCTIONS[terms.reduction],
        grad_losses.data_ptr(),
        grad_losses.stride(0),
        grad_queries.data_ptr(),
        negative_share.data_ptr(),
        d_queries.data_ptr(),
        d_positives.data_ptr(),
        d_temperature.data_ptr(),
        *_native.place(rows[0]),
    )
    return gradients


def _scale(temperature: Tensor | None) -> tuple[int, int, int]:
    """Address, stride and dtype of a tensor of temperatures."""
    return (
        (0, 0, 0) if temperature is None else (temperature.data_ptr(), temperature.stride(0), DTYPES[temperature.dtype])
    )
