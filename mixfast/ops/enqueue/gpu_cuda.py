"""enqueue_ in CUDA C++ (csrc/enqueue/cuda.cu), on the current stream of the device."""

import torch
from torch import Tensor

from mixfast.ops import _native
from mixfast.ops.enqueue.cpu_native import TYPES


def unavailable() -> str | None:
    if _native.cuda is None:
        return _native.cuda_error
    return None if torch.cuda.is_available() else "torch finds no CUDA device"


def why_not(device_type: str, dtype: torch.dtype, queue_dtype: torch.dtype) -> str | None:
    return None if device_type == "cuda" else f"it takes CUDA tensors; these are on {device_type}"


def enqueue(queues: list[Tensor], keys: list[Tensor], pointers: list[Tensor], normalize: bool) -> None:
    """Writes in place; `keys` are contiguous, `pointers` Q tensors []."""
    _native.cuda.enqueue(  # type: ignore[union-attr]
        [queue.data_ptr() for queue in queues],
        [queue.size(0) for queue in queues],
        TYPES[queues[0].dtype],
        [rows.data_ptr() for rows in keys],
        [rows.size(0) for rows in keys],
        TYPES[keys[0].dtype],
        [pointer.data_ptr() for pointer in pointers],
        queues[0].size(1),
        normalize,
        queues[0].get_device(),
        torch.cuda.current_stream(queues[0].device).cuda_stream,
    )
