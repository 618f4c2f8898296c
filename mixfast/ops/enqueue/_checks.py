"""Argument checks of enqueue_. They read shapes and types, and no tensor's values."""

from typing import Any, NoReturn

import torch
from torch import Tensor

NAME = "enqueue_"
FLOATS = (torch.float32, torch.float16, torch.bfloat16, torch.float64)


def _type_error(message: str) -> NoReturn:
    raise TypeError(f"{NAME}: {message}")


def _value_error(message: str) -> NoReturn:
    raise ValueError(f"{NAME}: {message}")


def _check_matrix(name: str, tensor: Any) -> None:
    if not isinstance(tensor, Tensor):
        _type_error(f"{name} must be a tensor; got {type(tensor).__name__}.")
    if tensor.dtype not in FLOATS:
        _type_error(f"{name} must be float16, bfloat16, float32 or float64; got {tensor.dtype}.")
    if tensor.layout is not torch.strided or tensor.ndim != 2:
        _value_error(f"{name} must be a dense matrix [rows, D]; got {tensor.layout} {list(tensor.shape)}.")


def check_queues(queues: Any) -> None:
    """A sequence of contiguous tensors [K_q, D] that agree in D, dtype and device."""
    if not isinstance(queues, (list, tuple)):
        _type_error(f"queues must be a sequence of tensors [K, D]; got {type(queues).__name__}. Pass [queue].")
    if not queues:
        _value_error("queues must hold at least one queue; got none.")
    for q, queue in enumerate(queues):
        name = f"queues[{q}]"
        _check_matrix(name, queue)
        if min(queue.shape) < 1:
            _value_error(f"{name} needs at least one row and one dimension; got {list(queue.shape)}.")
        if queue.shape[1] != queues[0].shape[1]:
            _value_error(f"all queues must share D = {queues[0].shape[1]}; got {name} {list(queue.shape)}.")
        if queue.dtype != queues[0].dtype:
            _type_error(f"all queues must share one dtype, {queues[0].dtype}; got {queue.dtype} for {name}.")
        if queue.device != queues[0].device:
            _value_error(f"all queues must be on one device, {queues[0].device}; got {queue.device} for {name}.")
        if not queue.is_contiguous():
            _value_error(f"{name} must be contiguous, as it is written in place; got strides {queue.stride()}.")
        if queue.requires_grad:
            _value_error(f"{name} is written in place and must not require a gradient. Pass {name}.detach().")


def check_keys(keys: Any, queues: Any) -> None:
    """One tensor [B_q, D] for each queue, of one dtype, with no more rows than the queue."""
    if not isinstance(keys, (list, tuple)):
        _type_error(f"keys must be a sequence of tensors [B, D]; got {type(keys).__name__}. Pass [keys].")
    if len(keys) != len(queues):
        _value_error(f"keys must hold one tensor for each of the {len(queues)} queues; got {len(keys)}.")
    for q, (rows, queue) in enumerate(zip(keys, queues, strict=True)):
        name = f"keys[{q}]"
        _check_matrix(name, rows)
        if rows.shape[1] != queue.shape[1]:
            _value_error(f"{name} must be [B, D] with D = {queue.shape[1]} as in queues; got {list(rows.shape)}.")
        if rows.shape[0] > queue.shape[0]:
            _value_error(
                f"{name} has {rows.shape[0]} rows, more than the {queue.shape[0]} of queues[{q}]: some would be "
                "overwritten at once. Use a longer queue."
            )
        if rows.dtype != keys[0].dtype:
            _type_error(f"all keys must share one dtype, {keys[0].dtype}; got {rows.dtype} for {name}.")
        if rows.device != queue.device:
            _value_error(f"{name} must be on the device of queues, {queue.device}; got {rows.device}.")


def check_pointers(pointers: Any, queues: Any) -> None:
    """An int64 tensor [Q], or a sequence of Q int64 tensors []."""
    count = len(queues)
    if isinstance(pointers, Tensor):
        if pointers.shape != (count,):
            _value_error(f"pointers must be [Q] = [{count}] or {count} tensors []; got {list(pointers.shape)}.")
        each = [pointers]
    else:
        if not isinstance(pointers, (list, tuple)):
            _type_error(f"pointers must be an int64 tensor [Q] or Q of []; got {type(pointers).__name__}.")
        if len(pointers) != count:
            _value_error(f"pointers must hold one tensor for each of the {count} queues; got {len(pointers)}.")
        each = list(pointers)
        for q, pointer in enumerate(each):
            if not isinstance(pointer, Tensor) or pointer.ndim != 0:
                got = list(pointer.shape) if isinstance(pointer, Tensor) else type(pointer).__name__
                _value_error(f"pointers[{q}] must be a tensor []; got {got}.")
    for pointer in each:
        if pointer.dtype != torch.int64:
            _type_error(f"pointers must be int64; got {pointer.dtype}.")
        if pointer.device != queues[0].device:
            _value_error(f"pointers must be on the device of queues, {queues[0].device}; got {pointer.device}.")
