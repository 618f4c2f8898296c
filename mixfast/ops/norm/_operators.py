"""The operators of split_batch_norm as torch sees them, and their derivative.

Neither operator is differentiable itself; a `torch.autograd.Function` joins them, as in nt_xent. Statistics are
float32, or float64 for float64.
"""

from typing import Any

import torch
from torch import Tensor

from mixfast.ops._derivatives import no_second
from mixfast.ops._register import by_backend, define, refuse_vmap

NAME = "split_batch_norm"
Three = tuple[Tensor, Tensor, Tensor]


def dense(x: Tensor) -> Tensor:
    """As it is if contiguous or channels_last, both of which the backends read where they lie; else a copy."""
    return x if x.is_contiguous(memory_format=torch.channels_last) else x.contiguous()


def like(x: Tensor, other: Tensor) -> Tensor:
    """`x` in the memory format of `other`, which is dense; a copy only where they differ."""
    last = other.is_contiguous(memory_format=torch.channels_last)
    return x.contiguous(memory_format=torch.channels_last if last else torch.contiguous_format)


_forward, _backward = by_backend(NAME, "forward"), by_backend(NAME, "backward")


def _dense_forward(x: Tensor, *rest: Any) -> Three:
    return _forward(dense(x), *rest)  # type: ignore[no-any-return]


def _dense_backward(dy: Tensor, x: Tensor, *rest: Any) -> Three:
    x = dense(x)
    return _backward(like(dy, x), x, *rest)  # type: ignore[no-any-return]


def _forward_fake(
    x: Tensor, weight: Tensor, bias: Tensor, running_mean: Any, running_var: Any, splits: int, *rest: Any
) -> Three:
    means = weight.new_empty((splits, x.shape[1]))
    return torch.empty_like(dense(x)), means, torch.empty_like(means)


def _backward_fake(dy: Tensor, x: Tensor, weight: Tensor, *rest: Any) -> Three:
    return torch.empty_like(dense(x)), torch.empty_like(weight), torch.empty_like(weight)


# -> y, as x but dense; means and inverses [S, C] of 1 / sqrt(variance + eps). Moves the running statistics.
forward = define(
    f"{NAME}_forward(Tensor x, Tensor weight, Tensor bias, Tensor(a!)? running_mean, Tensor(b!)? running_var, "
    "int splits, float momentum, float eps, str backend) -> (Tensor, Tensor, Tensor)",
    _dense_forward,
    _forward_fake,
)
# -> dx, as x but dense; d_weight, d_bias [C].
backward = define(
    f"{NAME}_backward(Tensor dy, Tensor x, Tensor weight, Tensor means, Tensor inverses, int splits, str backend)"
    " -> (Tensor, Tensor, Tensor)",
    _dense_backward,
    _backward_fake,
)
refuse_vmap(f"{NAME}: vmap is not supported. Call it once for each batch.", forward, backward)


class _SplitBatchNorm(torch.autograd.Function):
    """Differentiable in x, weight and bias, the first of the operator's arguments."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, *rest: Any) -> Tensor:
        y, means, inverses = forward(x, weight, *rest)
        ctx.save_for_backward(x, weight, means, inverses)
        *_, splits, _momentum, _eps, backend = rest
        ctx.options = splits, backend
        return y  # type: ignore[no-any-return]

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        x, weight, *_ = ctx.saved_tensors
        with torch.no_grad():
            found = backward(dy, *ctx.saved_tensors, *ctx.options)
        grads = [grad if need else None for grad, need in zip(found, ctx.needs_input_grad[:3], strict=True)]
        return *no_second(NAME, grads, (dy, x, weight)), *[None] * 6


def normalise(x: Tensor, weight: Tensor, bias: Tensor, *rest: Any) -> Tensor:
    """[B, C, H, W], with derivatives; the arguments are the operator's."""
    if torch.is_grad_enabled() and (x.requires_grad or weight.requires_grad or bias.requires_grad):
        return _SplitBatchNorm.apply(x, weight, bias, *rest)  # type: ignore[no-any-return]
    return forward(x, weight, bias, *rest)[0]  # type: ignore[no-any-return]
