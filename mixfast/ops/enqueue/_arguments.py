"""Tensors as the compiled kernels of enqueue_ take them."""

from typing import Any

from torch import Tensor

from mixfast.ops._native import DTYPES


def arguments(queues: list[Tensor], keys: list[Tensor], pointers: list[Tensor], normalize: bool) -> tuple[Any, ...]:
    """Addresses, sizes and dtypes of contiguous `keys`, of queues, and of `pointers`, Q tensors []."""
    return (
        [queue.data_ptr() for queue in queues],
        [queue.size(0) for queue in queues],
        DTYPES[queues[0].dtype],
        [rows.data_ptr() for rows in keys],
        [rows.size(0) for rows in keys],
        DTYPES[keys[0].dtype],
        [pointer.data_ptr() for pointer in pointers],
        queues[0].size(1),
        normalize,
    )
