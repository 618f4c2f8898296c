"""split_batch_norm in training, alone and with the sum and ReLU of a residual network, and what else computes it."""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from mixfast.ops import split_batch_norm

SPLITS = 8


class Inputs(NamedTuple):
    x: Tensor  # [B, C, H, W], requiring a gradient, like weight, bias and residual
    weight: Tensor
    bias: Tensor
    residual: Tensor | None
    running_mean: Tensor
    running_var: Tensor
    upstream: Tensor

    def leaves(self) -> list[Tensor]:
        return [self.x, self.weight, self.bias, *([] if self.residual is None else [self.residual])]


Layer = Callable[[Inputs], Tensor]


def inputs(
    shape: tuple[int, ...],
    dtype: torch.dtype,
    memory_format: torch.memory_format,
    *,
    residual: bool = False,
    generator: torch.Generator,
) -> Inputs:
    def maps() -> Tensor:
        drawn = torch.randn(shape, generator=generator, device=generator.device)
        return drawn.to(dtype).contiguous(memory_format=memory_format)

    zeros, ones = (torch.full(shape[1:2], value, device=generator.device) for value in (0.0, 1.0))
    added = maps().requires_grad_() if residual else None
    x, weight, bias = (tensor.requires_grad_() for tensor in (maps(), ones.clone(), zeros.clone()))
    return Inputs(x, weight, bias, added, zeros, ones, maps())


def by_mixfast(backend: str, splits: int = SPLITS, relu: bool = False) -> Layer:
    """With a ReLU the residual, if there is one, is added before it."""

    def layer(data: Inputs) -> Tensor:
        x, weight, bias, residual, mean, var, _ = data
        added = residual if relu else None
        return split_batch_norm(
            x, weight, bias, mean, var, num_splits=splits, relu=relu, residual=added, backend=backend
        )

    return layer


def ordinary(data: Inputs) -> Tensor:
    """Over the whole batch."""
    return functional.batch_norm(data.x, data.running_mean, data.running_var, data.weight, data.bias, True)


def chunked(data: Inputs) -> Tensor:
    """One call for each group, as a loop over devices would have it, and the outputs put together."""
    groups = [ordinary(data._replace(x=data.x[s::SPLITS])) for s in range(SPLITS)]
    return torch.stack(groups, dim=1).flatten(0, 1)


def followed(layer: Layer) -> Layer:
    """The norm, then torch's sum, if there is a residual, and ReLU."""

    def run(data: Inputs) -> Tensor:
        y = layer(data)
        return y.relu() if data.residual is None else (y + data.residual).relu_()

    return run


def both(layer: Layer, data: Inputs) -> Callable[[], tuple[Tensor, ...]]:
    """Forward and backward."""
    return lambda: torch.autograd.grad(layer(data), data.leaves(), data.upstream)


def copies(data: Inputs) -> Callable[[], object]:
    """Each direction reads its maps and writes one."""
    x = data.x.detach()
    return lambda: (torch.empty_like(x).copy_(x), torch.add(x, data.upstream))
