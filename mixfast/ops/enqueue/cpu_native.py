"""enqueue_ on CPU in C++ (csrc/enqueue): checks are done, addresses and sizes go out."""

import torch
from torch import Tensor

from mixfast.ops import _native

TYPES = {torch.float32: 0, torch.float64: 1, torch.float16: 2, torch.bfloat16: 3}  # csrc/common/matrix.h


def unavailable() -> str | None:
    return None if _native.cpu else _native.cpu_error


def why_not(device_type: str, dtype: torch.dtype, queue_dtype: torch.dtype) -> str | None:
    return None if device_type == "cpu" else f"it runs on CPU tensors; these are on {device_type}"


def enqueue(queues: list[Tensor], keys: list[Tensor], pointers: list[Tensor], normalize: bool) -> None:
    """Writes in place; `keys` are contiguous, `pointers` Q tensors []."""
    _native.cpu.enqueue(  # type: ignore[union-attr]
        [queue.data_ptr() for queue in queues],
        [queue.size(0) for queue in queues],
        TYPES[queues[0].dtype],
        [rows.data_ptr() for rows in keys],
        [rows.size(0) for rows in keys],
        TYPES[keys[0].dtype],
        [pointer.data_ptr() for pointer in pointers],
        queues[0].size(1),
        normalize,
        torch.get_num_threads(),
    )
