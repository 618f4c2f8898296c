"""Tensors as the compiled kernels of multi_queue_infonce take them: addresses, sizes and strides."""

from collections.abc import Sequence
from typing import NamedTuple

from torch import Tensor


class Terms(NamedTuple):
    """Where the rows of the terms lie. `kept` holds copies of tensors whose rows had no adjacent elements."""

    kept: list[Tensor]
    rows: list[int]
    addresses: list[int]
    strides: list[int]  # between rows, in elements


def terms(tensors: Sequence[Tensor]) -> Terms:
    """T tensors [N_t, D], or a single [T, N, D]."""
    kept = [each if each.is_contiguous() or each.stride(-1) == 1 else each.contiguous() for each in tensors]
    first = kept[0]
    if first.ndim == 3:
        (count, each_rows, _), (outer, inner, _), start = first.shape, first.stride(), first.data_ptr()
        step = outer * first.element_size()
        return Terms(kept, [each_rows] * count, [start + t * step for t in range(count)], [inner] * count)
    rows, addresses, dim = [each.shape[0] for each in kept], [each.data_ptr() for each in kept], first.shape[1]
    return Terms(kept, rows, addresses, [dim if each.is_contiguous() else each.stride(0) for each in kept])
