"""nt_xent on CPU in C++ (csrc/ntxent): checks are done, addresses and sizes go out."""

import functools
from typing import Any

import torch
from torch import Tensor

from mixfast.ops import _native
from mixfast.ops._native import DTYPES, REDUCTIONS
from mixfast.ops.ntxent import _checks

unavailable = _native.cpu_unavailable


def why_not(device_type: str, dtype: torch.dtype, dim: int) -> str | None:
    return None if device_type == "cpu" else f"it runs on CPU tensors; these are on {device_type}"


@functools.cache
def instruction_sets() -> list[int]:
    """Codes of the instruction sets that this processor can run, from slow to fast."""
    return _native.cpu.nt_xent_instruction_sets() if _native.cpu else []


def _arguments(
    first: Tensor, second: Tensor, excluded: Tensor | None, temperature: Tensor | None, number: float, reduction: str
) -> tuple[tuple[Tensor | None, ...], tuple[Any, ...]]:
    """What has to live during the call, and the arguments that both directions begin with."""
    if temperature is not None:
        number = temperature.item()
        _checks.check_temperature_value(number)
    views = [view if view.stride(1) == 1 else view.contiguous() for view in (first, second)]
    excluded = None if excluded is None else excluded.contiguous()
    places = [place for view in views for place in (view.data_ptr(), view.stride(0))]
    rows, dim = first.shape
    address = 0 if excluded is None else excluded.data_ptr()
    return (*views, excluded), (*places, DTYPES[first.dtype], rows, dim, address, number, REDUCTIONS[reduction])


def forward(
    first: Tensor,
    second: Tensor,
    excluded: Tensor | None,
    temperature: Tensor | None,
    number: float,
    reduction: str,
    instruction_set: int = -1,
) -> tuple[Tensor, Tensor, Tensor]:
    """(losses, denominators, shares) as `_operators.forward` describes them."""
    _kept, arguments = _arguments(first, second, excluded, temperature, number, reduction)
    anchors = 2 * first.shape[0]
    statistics = torch.float64 if first.dtype == torch.float64 else torch.float32
    losses = torch.empty(anchors if reduction == "none" else (), dtype=statistics)
    denominators, shares = torch.empty(anchors, dtype=statistics), torch.empty(anchors, dtype=statistics)
    refused = _native.cpu.nt_xent_forward(  # type: ignore[union-attr]
        *arguments,
        losses.data_ptr(),
        denominators.data_ptr(),
        shares.data_ptr(),
        *_native.cpu_place(instruction_sets(), instruction_set),
    )
    if refused >= 0 and excluded is not None:
        _checks.refuse_excluded(refused, int(excluded[refused]), anchors)
    return losses, denominators, shares


def backward(
    grad_losses: Tensor,
    denominators: Tensor,
    shares: Tensor,
    first: Tensor,
    second: Tensor,
    excluded: Tensor | None,
    temperature: Tensor | None,
    number: float,
    reduction: str,
    need_temperature: bool,
    instruction_set: int = -1,
) -> tuple[Tensor, Tensor]:
    """(d_rows, d_temperature) as `_operators.backward` describes them."""
    _kept, arguments = _arguments(first, second, excluded, temperature, number, reduction)
    d_rows = torch.empty((2 * first.shape[0], first.shape[1]), dtype=first.dtype)
    d_temperature = torch.empty(() if need_temperature else 0, dtype=denominators.dtype)
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
