"""enqueue_ by its definition, in plain PyTorch, a queue at a time."""

import torch
import torch.nn.functional as F
from torch import Tensor


def unavailable() -> str | None:
    return None


def why_not(device_type: str, dtype: torch.dtype, queue_dtype: torch.dtype) -> str | None:
    return None


def enqueue(queues: list[Tensor], keys: list[Tensor], pointers: list[Tensor], normalize: bool, _backend: str) -> None:
    """Writes in place; `pointers` are one tensor [Q] or Q tensors []."""
    places = list(pointers[0].unbind()) if pointers[0].ndim else pointers
    for queue, rows, pointer in zip(queues, keys, places, strict=True):
        if normalize:
            rows = F.normalize(rows.to(torch.promote_types(rows.dtype, torch.float32)), dim=1, eps=1e-12)
        row = (pointer + torch.arange(len(rows), device=pointer.device)).remainder(len(queue))
        queue.index_copy_(0, row, rows.to(queue.dtype))
        pointer.add_(len(rows)).remainder_(len(queue))
