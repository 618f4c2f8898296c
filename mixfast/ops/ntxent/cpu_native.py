"""nt_xent on CPU in C++ (csrc/ntxent): passes addresses and sizes of checked arguments."""

import functools
from typing import Any

import torch
from torch import Tensor

from mixfast.ops import _native
from mixfast.ops._check import statistics_dtype
from mixfast.ops._native import DTYPES, REDUCTIONS
from mixfast.ops.ntxent._checks import check, refuse_excluded
from mixfast.ops.ntxent._operators import Problem

unavailable = _native.cpu_unavailable


def why_not(device_type: str, dtype: torch.dtype, dim: int) -> str | None:
    return None if device_type == "cpu" else f"it runs on CPU tensors; these are on {device_type}"


@functools.cache
def instruction_sets() -> list[int]:
    """Codes of the instruction sets that this processor can run, from slow to fast."""
    return _native.cpu.nt_xent_instruction_sets() if _native.cpu else []


def _arguments(problem: Problem) -> tuple[tuple[Tensor | None, ...], tuple[Any, ...]]:
    """The tensors that must stay alive during a call, and the arguments that both passes begin with."""
    number = problem.number
    if problem.temperature is not None:
        number = problem.temperature.item()
        check.positive("temperature", number)
    views = [view if view.stride(1) == 1 else view.contiguous() for view in (problem.first, problem.second)]
    excluded = None if problem.excluded is None else problem.excluded.contiguous()
    addresses = [number for view in views for number in (view.data_ptr(), view.stride(0))]
    rows, dim = problem.first.shape
    address, reduction = 0 if excluded is None else excluded.data_ptr(), REDUCTIONS[problem.reduction]
    return (*views, excluded), (*addresses, DTYPES[problem.first.dtype], rows, dim, address, number, reduction)


def forward(problem: Problem, instruction_set: int = -1) -> tuple[Tensor, Tensor, Tensor]:
    """(losses, denominators, shares) as `_operators.forward` describes them."""
    _kept, arguments = _arguments(problem)
    first, excluded, anchors = problem.first, problem.excluded, 2 * problem.first.shape[0]
    statistics = statistics_dtype(first.dtype)
    losses = first.new_empty(anchors if problem.reduction == "none" else (), dtype=statistics)
    denominators, shares = first.new_empty((2, anchors), dtype=statistics), first.new_empty(anchors, dtype=statistics)
    refused = _native.cpu.nt_xent_forward(  # type: ignore[union-attr]
        *arguments,
        losses.data_ptr(),
        denominators.data_ptr(),
        shares.data_ptr(),
        *_native.cpu_place(instruction_sets(), instruction_set),
    )
    if refused >= 0 and excluded is not None:
        refuse_excluded(refused, int(excluded[refused]), anchors)
    return losses, denominators, shares


def backward(
    problem: Problem,
    grad_losses: Tensor,
    denominators: Tensor,
    shares: Tensor,
    need_temperature: bool,
    instruction_set: int = -1,
) -> tuple[Tensor, Tensor]:
    """(d_rows, d_temperature) as `_operators.backward` describes them."""
    _kept, arguments = _arguments(problem)
    rows, dim = problem.first.shape
    d_rows = problem.first.new_empty((2 * rows, dim))
    d_temperature = denominators.new_empty(() if need_temperature else 0)
    _native.cpu.nt_xent_backward(  # type: ignore[union-attr]
        *arguments,
        grad_losses.data_ptr(),
        grad_losses.stride(0) if grad_losses.dim() else 0,
        denominators.data_ptr(),
        shares.data_ptr(),
        d_rows.data_ptr(),
        d_temperature.data_ptr() if need_temperature else 0,
        *_native.cpu_place(instruction_sets(), instruction_set),
    )
    return d_rows, d_temperature
