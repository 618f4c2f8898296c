"""enqueue_ in Triton (gpu_triton_kernels.py): for a torch with CUDA on a machine without a compiler."""

from typing import Any

import torch
from torch import Tensor

from mixfast.ops._triton import power_of_two, unavailable, why_not

__all__ = ["enqueue", "unavailable", "why_not"]

_LAUNCH = {"num_warps": 4, "enable_fp_fusion": True}


def enqueue(queues: list[Tensor], keys: list[Tensor], pointers: list[Tensor], normalize: bool) -> None:
    """Writes in place; `keys` are contiguous, `pointers` Q tensors []."""
    from mixfast.ops.enqueue import gpu_triton_kernels as kernels

    sizes, counts = tuple(queue.shape[0] for queue in queues), tuple(rows.shape[0] for rows in keys)
    constants = enqueue_constants(queues[0].shape[1], normalize)
    with torch.cuda.device_of(queues[0]):
        kernels.enqueue[(max(-(-max(counts) // constants["BLOCK_N"]), 1), len(queues))](
            tuple(queues), tuple(keys), tuple(pointers), sizes, counts, **constants, **_LAUNCH
        )


def enqueue_constants(dim: int, normalize: bool) -> dict[str, Any]:
    """Tiles of 2048 numbers. scripts/triton_report.py compiles with the same."""
    block_d = power_of_two(dim, least=16)
    return {"D": dim, "BLOCK_N": max(2048 // block_d, 1), "BLOCK_D": block_d, "NORMALIZE": normalize}
