"""The operators of split_batch_norm as torch sees them, and their derivative.

Neither operator is differentiable itself; a `torch.autograd.Function` joins them, as in nt_xent. Statistics are
float32, or float64 for float64.
"""

from typing import Any

import torch
from torch import Tensor

from mixfast.ops._derivatives import differentiable, keep, no_second, recorded, refuse_tangents
from mixfast.ops._register import by_backend, define, map_in_turn, refuse_vmap

NAME = "split_batch_norm"
Three = tuple[Tensor, Tensor, Tensor]


def dense(x: Tensor) -> Tensor:
    """`x` itself if it is contiguous or channels_last, which the backends read in place; else a copy."""
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


# -> y, like x but dense; means [S, C]; inverses [S, C], 1 / sqrt(variance + eps). Updates the running statistics.
forward = define(
    f"{NAME}_forward(Tensor x, Tensor weight, Tensor bias, Tensor(a!)? running_mean, Tensor(b!)? running_var, "
    "int splits, float momentum, float eps, str backend) -> (Tensor, Tensor, Tensor)",
    _dense_forward,
    _forward_fake,
)
# -> dx, like x but dense; d_weight, d_bias [C].
backward = define(
    f"{NAME}_backward(Tensor dy, Tensor x, Tensor weight, Tensor means, Tensor inverses, int splits, str backend)"
    " -> (Tensor, Tensor, Tensor)",
    _dense_backward,
    _backward_fake,
)
refuse_vmap(f"{NAME}: vmap is not supported. Call it once for each batch.", forward)
map_in_turn(backward)


class _SplitBatchNorm:
    """Differentiable in x, weight and bias, the first three of the operator's arguments."""

    @staticmethod
    def forward(*inputs: Any) -> Three:
        return forward(*inputs)  # type: ignore[no-any-return]

    @staticmethod
    def save(ctx: Any, inputs: tuple[Any, ...], outputs: Three) -> None:
        x, weight, *_, splits, _momentum, _eps, backend = inputs
        keep(ctx, x, weight, *outputs[1:])
        ctx.options = splits, backend

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, *_ = ctx.saved_tensors
        with torch.no_grad():
            derivatives = backward(dy, *ctx.saved_tensors, *ctx.options)
        grads = [grad if need else None for grad, need in zip(derivatives, ctx.needs_input_grad[:3], strict=True)]
        return *no_second(NAME, grads, (dy, x, weight)), *[None] * 6

    @staticmethod
    def jvp(ctx: Any, dx: Tensor, d_weight: Tensor, d_bias: Tensor, *rest: Any) -> tuple[Tensor]:
        """The derivative of y with respect to x is its own adjoint, so that `backward` of dx is the tangent by x."""
        x, weight, means, inverses = ctx.saved_tensors
        splits, _ = ctx.options
        with torch.no_grad():
            through_x, _, _ = backward(dx, *ctx.saved_tensors, *ctx.options)
            centred = x.unflatten(0, (-1, splits)) - means[:, :, None, None]
            normalised = (centred * inverses[:, :, None, None]).flatten(0, 1)
            made = through_x + normalised * d_weight[:, None, None] + d_bias[:, None, None]
        (tangent,) = no_second(NAME, [made.to(x.dtype)], (x, weight, dx, d_weight, d_bias))
        assert tangent is not None
        return (tangent,)


_apply = differentiable(NAME, _SplitBatchNorm, results=1)


def normalise(x: Tensor, weight: Tensor, bias: Tensor, mean: Tensor | None, var: Tensor | None, *rest: Any) -> Tensor:
    """[B, C, H, W], with derivatives; the arguments are the operator's."""
    refuse_tangents(NAME, None, running_mean=mean, running_var=var)
    if recorded(x, weight, bias):
        return _apply(x, weight, bias, mean, var, *rest)  # type: ignore[no-any-return]
    return forward(x, weight, bias, mean, var, *rest)[0]  # type: ignore[no-any-return]
