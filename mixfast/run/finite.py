"""Which of some tensors hold a NaN or an infinity."""

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor


@torch.no_grad()
def not_finite(tensors: Mapping[str, Tensor]) -> dict[str, float]:
    """The largest absolute value, NaN or infinite, of each tensor that holds such a value, by name.

    Waits for the device once.
    """
    looked_at = {name: value for name, value in tensors.items() if value.is_floating_point() and value.numel()}
    if not looked_at:
        return {}
    largest = torch._foreach_norm(list(looked_at.values()), ord=math.inf)  # type: ignore[attr-defined]
    device = largest[0].device
    numbers = torch.stack([number.double().to(device) for number in largest]).tolist()
    return {name: number for name, number in zip(looked_at, numbers, strict=True) if not math.isfinite(number)}


def tensors_of(state: Any, name: str = "") -> dict[str, Tensor]:
    """The tensors in nested dictionaries, by dotted name."""
    if isinstance(state, Tensor):
        return {name: state}
    found: dict[str, Tensor] = {}
    for key, value in state.items() if isinstance(state, dict) else ():
        found |= tensors_of(value, f"{name}.{key}" if name else str(key))
    return found
