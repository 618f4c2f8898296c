"""A network that follows another: exponential moving average of its parameters."""

import copy
from typing import TypeVar

import torch
from torch import nn

Module = TypeVar("Module", bound=nn.Module)


def follower(source: Module) -> Module:
    """A copy of `source` that no optimiser touches: same weights and buffers, parameters without gradient."""
    return copy.deepcopy(source).requires_grad_(False)


@torch.no_grad()
def update_ema_(target: nn.Module, source: nn.Module, momentum: float) -> None:
    """target <- momentum * target + (1 - momentum) * source, for parameters only.

    Buffers stay the target's own: its batch norms see other batches than the source's.
    """
    torch._foreach_lerp_(list(target.parameters()), list(source.parameters()), 1 - momentum)
