"""A network that follows another: exponential moving average of its parameters."""

import copy
from typing import TypeVar

import torch
from torch import Tensor, nn

from mixfast.spans import span

Module = TypeVar("Module", bound=nn.Module)


def follower(source: Module) -> Module:
    """A copy of `source` that no optimiser touches: same weights and buffers, parameters without gradient."""
    return copy.deepcopy(source).requires_grad_(False)


@span("EMA")
@torch.no_grad()
def update_ema_(target: nn.Module, source: nn.Module, momentum: float | Tensor) -> None:
    """target <- momentum * target + (1 - momentum) * source, for parameters only.

    Buffers are not averaged: the target's batch norms have statistics of their own batches. A `momentum` that changes
    from step to step must be a scalar tensor on the device, so that a step recorded as a CUDA graph can be replayed.
    """
    targets: list[Tensor] = list(target.parameters())
    sources: list[Tensor] = list(source.parameters())
    if isinstance(momentum, Tensor):
        weights = [(1 - momentum).to(targets[0].dtype)] * len(targets)
        torch._foreach_lerp_(targets, sources, weights)  # type: ignore[list-item]  # torch's stub has one overload
    else:
        torch._foreach_lerp_(targets, sources, 1 - momentum)
