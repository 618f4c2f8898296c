"""First derivatives that are made of saved numbers, of which a second one would silently lack terms: it raises."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor


class _NoSecondDerivative(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, name: str, count: int, *tensors: Tensor) -> tuple[Tensor, ...]:
        ctx.name = name
        return tuple(tensor.detach() for tensor in tensors[:count])

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        raise NotImplementedError(
            f"{ctx.name}: second derivatives are not implemented. Use backend='reference', which has them, or drop "
            "create_graph=True."
        )


def present(*tensors: Tensor | None) -> list[Tensor]:
    return [tensor for tensor in tensors if tensor is not None]


def no_second(name: str, grads: Sequence[Tensor | None], inputs: Sequence[Tensor]) -> list[Tensor | None]:
    """`grads` as a function of `inputs` whose derivative raises, wherever that derivative would be recorded.

    `inputs` are all that a gradient depends on: with one left out its second derivative would be silently 0.
    """
    if not torch.is_grad_enabled():
        return list(grads)
    made = present(*grads)
    blocked = iter(_NoSecondDerivative.apply(name, len(made), *made, *inputs))
    return [None if grad is None else next(blocked) for grad in grads]
