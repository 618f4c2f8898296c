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
Four = tuple[Tensor, Tensor, Tensor, Tensor]


def dense(x: Tensor) -> Tensor:
    """`x` itself if it is contiguous or channels_last, which the backends read in place; else a copy."""
    return x if x.is_contiguous(memory_format=torch.channels_last) else x.contiguous()


def like(x: Tensor | None, other: Tensor) -> Tensor | None:
    """`x` in the memory format of `other`, which is dense; a copy only where they differ."""
    last = other.is_contiguous(memory_format=torch.channels_last)
    return None if x is None else x.contiguous(memory_format=torch.channels_last if last else torch.contiguous_format)


def empty_results(x: Tensor, weight: Tensor, splits: int) -> Three:
    """Memory for the results of a forward pass over dense maps."""
    means = weight.new_empty((splits, x.shape[1]))
    return torch.empty_like(x), means, torch.empty_like(means)


def empty_gradients(x: Tensor, weight: Tensor, masked: bool) -> Four:
    """Memory for the results of a backward pass over dense maps; d_residual has no numbers unless `masked`."""
    d_residual = torch.empty_like(x) if masked else x.new_empty(0)
    return torch.empty_like(x), torch.empty_like(weight), torch.empty_like(weight), d_residual


_forward, _backward = by_backend(NAME, "forward"), by_backend(NAME, "backward")


def _dense_forward(x: Tensor, weight: Tensor, bias: Tensor, mean: Any, var: Any, residual: Any, *rest: Any) -> Three:
    x = dense(x)
    return _forward(x, weight, bias, mean, var, like(residual, x), *rest)  # type: ignore[no-any-return]


def _dense_backward(dy: Tensor, x: Tensor, y: Tensor | None, *rest: Any) -> Four:
    x = dense(x)
    return _backward(like(dy, x), x, like(y, x), *rest)  # type: ignore[no-any-return]


def _forward_fake(
    x: Tensor, weight: Tensor, bias: Tensor, mean: Any, var: Any, residual: Any, splits: int, *rest: Any
) -> Three:
    return empty_results(dense(x), weight, splits)


def _backward_fake(
    dy: Tensor,
    x: Tensor,
    y: Any,
    weight: Tensor,
    means: Tensor,
    inverses: Tensor,
    splits: int,
    masked: bool,
    *rest: Any,
) -> Four:
    return empty_gradients(dense(x), weight, masked)


# -> y, like x but dense; means [S, C]; inverses [S, C], 1 / sqrt(variance + eps). Updates the running statistics.
forward = define(
    f"{NAME}_forward(Tensor x, Tensor weight, Tensor bias, Tensor(a!)? running_mean, Tensor(b!)? running_var, "
    "Tensor? residual, int splits, float momentum, float eps, bool relu, str backend) -> (Tensor, Tensor, Tensor)",
    _dense_forward,
    _forward_fake,
)
# `y` is given if there was a relu, whose zeros stop dy; what is left of dy is the gradient of the residual, written if
# `masked`. -> dx, like x but dense; d_weight, d_bias [C]; d_residual, like dx, or [0] unless `masked`.
backward = define(
    f"{NAME}_backward(Tensor dy, Tensor x, Tensor? y, Tensor weight, Tensor means, Tensor inverses, int splits, "
    "bool masked, str backend) -> (Tensor, Tensor, Tensor, Tensor)",
    _dense_backward,
    _backward_fake,
)
refuse_vmap(f"{NAME}: vmap is not supported. Call it once for each batch.", forward)
map_in_turn(backward)


class _SplitBatchNorm:
    """Differentiable in x, weight, bias and residual, of the operator's arguments."""

    @staticmethod
    def forward(*inputs: Any) -> Three:
        return forward(*inputs)  # type: ignore[no-any-return]

    @staticmethod
    def save(ctx: Any, inputs: tuple[Any, ...], outputs: Three) -> None:
        x, weight, _bias, _mean, _var, residual, splits, _momentum, _eps, relu, backend = inputs
        y, means, inverses = outputs
        keep(ctx, x, y if relu else None, weight, means, inverses)
        ctx.added, ctx.splits, ctx.backend = residual is not None, splits, backend

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        x, y, weight, *_ = ctx.saved_tensors
        wanted = ctx.needs_input_grad
        masked = wanted[5] and y is not None
        with torch.no_grad():
            *derivatives, d_residual = backward(dy, *ctx.saved_tensors, ctx.splits, masked, ctx.backend)
        grads = [grad if need else None for grad, need in zip(derivatives, wanted[:3], strict=True)]
        *grads, d_residual = no_second(NAME, [*grads, d_residual if masked else None], (dy, x, weight))
        return *grads, None, None, dy if wanted[5] and y is None else d_residual, *[None] * 5

    @staticmethod
    def jvp(ctx: Any, dx: Tensor, d_weight: Tensor, d_bias: Tensor, *rest: Any) -> tuple[Tensor]:
        """The norm's derivative with respect to x is its own adjoint, so `backward` of dx is the tangent by x."""
        x, y, weight, means, inverses = ctx.saved_tensors
        d_residual = rest[2:3] if ctx.added else ()
        with torch.no_grad():
            through_x, *_ = backward(dx, x, None, weight, means, inverses, ctx.splits, False, ctx.backend)
            centred = x.unflatten(0, (-1, ctx.splits)) - means[:, :, None, None]
            normalised = (centred * inverses[:, :, None, None]).flatten(0, 1)
            made = through_x + normalised * d_weight[:, None, None] + d_bias[:, None, None]
            made = sum(d_residual, start=made)
            made = made if y is None else torch.where(y <= 0, 0, made)
        (tangent,) = no_second(NAME, [made.to(x.dtype)], (x, weight, dx, d_weight, d_bias, *d_residual))
        assert tangent is not None
        return (tangent,)


_apply = differentiable(NAME, _SplitBatchNorm, results=1)


def normalise(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    mean: Tensor | None,
    var: Tensor | None,
    residual: Tensor | None,
    *rest: Any,
) -> Tensor:
    """[B, C, H, W], with derivatives; the arguments are the operator's."""
    refuse_tangents(NAME, None, running_mean=mean, running_var=var)
    inputs = x, weight, bias, mean, var, residual, *rest
    if recorded(x, weight, bias, residual):
        return _apply(*inputs)  # type: ignore[no-any-return]
    return forward(*inputs)[0]  # type: ignore[no-any-return]
