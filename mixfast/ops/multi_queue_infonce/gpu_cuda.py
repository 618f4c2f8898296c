"""multi_queue_infonce in CUDA C++ (csrc/multi_queue_infonce/cuda.cu), on the current stream of the device.

Takes D up to 256, any number of terms and queues, any strides, and mixed dtypes. Nothing waits for the device or is
copied to it: addresses, sizes and temperatures travel as kernel arguments, so a call may be captured in a graph.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from mixfast.ops import _native
from mixfast.ops._native import DTYPES, REDUCTIONS
from mixfast.ops.multi_queue_infonce._arguments import terms

LARGEST_DIM = 256  # registers hold a tile of products [rows, D]
HALF, BFLOAT16, SPLIT = 0, 1, 2  # csrc/multi_queue_infonce/cuda.h
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
) -> tuple[Tensor, Tensor, Tensor]:
    """(losses, grad_queries, negative_share) as `_operators.forward` describes them."""
    anchors, matches = terms(queries), terms(positives)
    first, kind = queries[0], factors(queries[0].dtype, queues[0].dtype)
    total, dim, keys = sum(anchors.rows), first.size(-1), [queue.size(0) for queue in queues]
    losses = first.new_empty(total if reduction == "none" else len(anchors.rows), dtype=torch.float32)
    grad_queries = first.new_empty((total if need_grad else 0, dim), dtype=torch.float32)
    negative_share = first.new_empty(total, dtype=torch.float32)
    floats = _C.infonce_workspace(anchors.rows, queue_index, keys, dim, kind, need_grad, REDUCTIONS[reduction])
    workspace = first.new_empty(floats, dtype=torch.float32)
    lengths = None if valid_len is None else valid_len.contiguous()
    _C.infonce_forward(
        *(anchors.rows, anchors.addresses, anchors.strides, matches.addresses, matches.strides, queue_index),
        *(temperatures, *_scale(temperature), DTYPES[first.dtype]),
        *([queue.data_ptr() for queue in queues], keys, [queue.stride(0) for queue in queues]),
        *([queue.stride(1) for queue in queues], DTYPES[queues[0].dtype], _address(lengths)),
        *(dim, REDUCTIONS[reduction], kind, losses.data_ptr(), grad_queries.data_ptr() if need_grad else 0),
        *(negative_share.data_ptr(), workspace.data_ptr(), *_native.place(first)),
    )
    return losses, grad_queries, negative_share


def backward(
    grad_losses: Tensor,
    grad_queries: Tensor,
    negative_share: Tensor,
    queries: Sequence[Tensor],
    temperature: Tensor | None,
    temperatures: list[float],
    reduction: str,
    needs: list[bool],
) -> tuple[Tensor, Tensor, Tensor]:
    """(d_queries, d_positives, d_temperature) as `_operators.backward` describes them."""
    anchors, (total, dim) = terms(queries), grad_queries.shape
    d_queries, d_positives = (queries[0].new_empty((total if need else 0, dim)) for need in needs[:2])
    d_temperature = grad_queries.new_empty(len(anchors.rows) if needs[2] else 0)
    wanted = (each if need else None for each, need in zip((d_queries, d_positives, d_temperature), needs, strict=True))
    _C.infonce_backward(
        *(anchors.rows, anchors.addresses, anchors.strides, temperatures, *_scale(temperature)),
        *(DTYPES[queries[0].dtype], dim, REDUCTIONS[reduction], grad_losses.data_ptr(), grad_losses.stride(0)),
        *(grad_queries.data_ptr(), negative_share.data_ptr(), *map(_address, wanted), *_native.place(grad_queries)),
    )
    return d_queries, d_positives, d_temperature


def _address(tensor: Tensor | None) -> int:
    return 0 if tensor is None else tensor.data_ptr()


def _scale(temperature: Tensor | None) -> tuple[int, int, int]:
    """A tensor of temperatures, the distance of its entries, and its type."""
    return (
        (0, 0, 0) if temperature is None else (temperature.data_ptr(), temperature.stride(0), DTYPES[temperature.dtype])
    )
