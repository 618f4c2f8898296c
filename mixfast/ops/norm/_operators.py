"""The operators of split_batch_norm as torch sees them, and their derivative.

Neither operator is differentiable itself; a `torch.autograd.Function` joins them, as in nt_xent. Statistics are
float32, or float64 for float64.
"""

from typing import Any

import torch
from torch import Tensor

from mixfast.ops import _dispatch
from mixfast.ops._derivatives import no_second
from mixfast.ops._register import define, refuse_vmap

NAME = "split_batch_norm"
Three = tuple[Tensor, Tensor, Tensor]
Settings = tuple[int, float, float, str]


def dense(x: Tensor) -> Tensor:
    """As it is if contiguous or channels_last, both of which the backends read where they lie; else a copy."""
    return x if x.is_contiguous(memory_format=torch.channels_last) else x.contiguous()


def like(x: Tensor, other: Tensor) -> Tensor:
    """`x` in the memory format of `other`, which is dense; a copy only where they differ."""
    last = other.is_contiguous(memory_format=torch.channels_last)
    return x.contiguous(memory_format=torch.channels_last if last else torch.contiguous_format)


def _forward(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    splits: int,
    momentum: float,
    eps: float,
    backend: str,
) -> Three:
    run = _dispatch.module(NAME, backend).forward
    return run(dense(x), weight, bias, running_mean, running_var, splits, momentum, eps)


def _forward_fake(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    splits: int,
    momentum: float,
    eps: float,
    backend: str,
) -> Three:
    means = weight.new_empty((splits, x.shape[1]))
    return torch.empty_like(dense(x)), means, torch.empty_like(means)


def _backward(
    dy: Tensor, x: Tensor, weight: Tensor, means: Tensor, inverses: Tensor, splits: int, backend: str
) -> Three:
    x = dense(x)
    return _dispatch.module(NAME, backend).backward(like(dy, x), x, weight, means, inverses, splits)


def _backward_fake(
    dy: Tensor, x: Tensor, weight: Tensor, means: Tensor, inverses: Tensor, splits: int, backend: str
) -> Three:
    return torch.empty_like(dense(x)), torch.empty_like(weight), torch.empty_like(weight)


# -> y, as x but dense; means and inverses [S, C] of 1 / sqrt(variance + eps). Moves the running statistics.
forward = define(
    f"{NAME}_forward(Tensor x, Tensor weight, Tensor bias, Tensor(a!)? running_mean, Tensor(b!)? running_var, "
    "int splits, float momentum, float eps, str backend) -> (Tensor, Tensor, Tensor)",
    _forward,
    _forward_fake,
)
# -> dx, as x but dense; d_weight, d_bias [C].
backward = define(
    f"{NAME}_backward(Tensor dy, Tensor x, Tensor weight, Tensor means, Tensor inverses, int splits, str backend)"
    " -> (Tensor, Tensor, Tensor)",
    _backward,
    _backward_fake,
)
refuse_vmap(f"{NAME}: vmap is not supported. Call it once for each batch.", forward, backward)


class _SplitBatchNorm(torch.autograd.Function):
    """Differentiable in x, weight and bias."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        bias: Tensor,
        running_mean: Tensor | None,
        running_var: Tensor | None,
        settings: Settings,
    ) -> Tensor:
        y, means, inverses = _run(x, weight, bias, running_mean, running_var, settings)
        ctx.save_for_backward(x, weight, means, inverses)
        ctx.splits, ctx.backend = settings[0], settings[3]
        return y

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        x, weight, means, inverses = ctx.saved_tensors
        arguments = dy, x, weight, means, inverses, ctx.splits, ctx.backend
        with torch.no_grad():
            found = backward(*arguments)
        grads = [grad if need else None for grad, need in zip(found, ctx.needs_input_grad[:3], strict=True)]
        return *no_second(NAME, grads, (dy, x, weight)), None, None, None


def _run(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    settings: Settings,
) -> Three:
    return forward(x, weight, bias, running_mean, running_var, *settings)


def normalise(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    settings: Settings,
) -> Tensor:
    """[B, C, H, W], with derivatives."""
    arguments = x, weight, bias, running_mean, running_var, settings
    if torch.is_grad_enabled() and (x.requires_grad or weight.requires_grad or bias.requires_grad):
        return _SplitBatchNorm.apply(*arguments)  # type: ignore[no-any-return]
    return _run(*arguments)[0]
