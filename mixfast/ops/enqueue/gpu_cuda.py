"""enqueue_ in CUDA C++ (csrc/enqueue/cuda.cu), on the current stream of the device."""

import torch
from torch import Tensor

from mixfast.ops import _native
from mixfast.ops.enqueue._arguments import arguments

unavailable = _native.cuda_unavailable


def why_not(device_type: str, dtype: torch.dtype, queue_dtype: torch.dtype) -> str | None:
    return None if device_type == "cuda" else f"it takes CUDA tensors; these are on {device_type}"


def enqueue(queues: list[Tensor], keys: list[Tensor], pointers: list[Tensor], normalize: bool) -> None:
    """Writes in place; `keys` are contiguous, `pointers` Q tensors []."""
    _native.cuda.enqueue(  # type: ignore[union-attr]
        *arguments(queues, keys, pointers, normalize), *_native.place(queues[0])
    )
