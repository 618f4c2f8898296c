"""The tensors of a state: their names, check sums, and NaNs and infinities among them."""

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor


@torch.no_grad()
def not_finite(tensors: Mapping[str, Tensor]) -> dict[str, float]:
    """The tensors that hold a NaN or an infinity, by name, with their largest absolute value (NaN or infinity).

    Waits for the device once.
    """
    floating = {name: value for name, value in tensors.items() if value.is_floating_point() and value.numel()}
    if not floating:
        return {}
    largest = torch._foreach_norm(list(floating.values()), ord=math.inf)  # type: ignore[attr-defined]
    device = largest[0].device
    numbers = torch.stack([number.double().to(device) for number in largest]).tolist()
    return {name: number for name, number in zip(floating, numbers, strict=True) if not math.isfinite(number)}


def tensors_of(state: Any, name: str = "") -> dict[str, Tensor]:
    """The tensors in nested dictionaries, by dotted name."""
    if isinstance(state, Tensor):
        return {name: state}
    tensors: dict[str, Tensor] = {}
    for key, value in state.items() if isinstance(state, dict) else ():
        tensors |= tensors_of(value, f"{name}.{key}" if name else str(key))
    return tensors


def check_sums(tensors: dict[str, Tensor]) -> dict[str, int]:
    """A check sum for each tensor: the sum of its elements, read as integers. Waits for the device once."""
    kinds = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
    sums = [
        tensor.detach().contiguous().flatten().view(kinds[tensor.element_size()]).sum(dtype=torch.int64)
        for tensor in tensors.values()
    ]
    return dict(zip(tensors, torch.stack(sums).tolist() if sums else [], strict=True))
