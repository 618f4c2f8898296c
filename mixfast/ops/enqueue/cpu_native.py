"""enqueue_ on CPU in C++ (csrc/enqueue): checks are done, addresses and sizes go out."""

import torch
from torch import Tensor

from mixfast.ops import _native
from mixfast.ops.enqueue._arguments import arguments

unavailable = _native.cpu_unavailable


def why_not(device_type: str, dtype: torch.dtype, queue_dtype: torch.dtype) -> str | None:
    return None if device_type == "cpu" else f"it runs on CPU tensors; these are on {device_type}"


def enqueue(queues: list[Tensor], keys: list[Tensor], pointers: list[Tensor], normalize: bool) -> None:
    """Writes in place; `keys` are contiguous, `pointers` Q tensors []."""
    _native.cpu.enqueue(  # type: ignore[union-attr]
        *arguments(queues, keys, pointers, normalize), torch.get_num_threads()
    )
