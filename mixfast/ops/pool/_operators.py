"""The pooling operators as torch sees them: schemas, fake outputs, derivatives of any order in both modes, vmap.

Autocast leaves them alone: they run in the dtype of `features`, and their sums are in float32 at least.
"""

import functools
from typing import Any

import torch
from torch import Tensor

from mixfast.ops._check import statistics_dtype
from mixfast.ops._derivatives import differentiable, keep, recorded, refuse_tangents
from mixfast.ops._register import LIBRARY, by_backend, define
from mixfast.ops.pool import _checks

NAME = "masked_upsample_pool"
Pair = tuple[Tensor, Tensor]


def is_channels_last(maps: Tensor) -> bool:
    """Whether `maps` [B, C, h, w] lie in memory as [B, h, w, C], and not just as well as [B, C, h, w]."""
    return not maps.is_contiguous() and maps.is_contiguous(memory_format=torch.channels_last)


def dense(features: Tensor) -> tuple[Tensor, bool]:
    """The maps as they are, if they are contiguous or channels last, else a copy; and whether channels are last."""
    channels_last = is_channels_last(features)
    return (features if channels_last else features.contiguous()), channels_last


def empty_maps(like: Tensor, h: int, w: int, channels_last: bool) -> Tensor:
    """[B, C, h, w] for the gradient of maps whose results are [B, C]."""
    layout = torch.channels_last if channels_last else torch.contiguous_format
    return torch.empty((*like.shape, h, w), dtype=like.dtype, device=like.device, memory_format=layout)


def _pooled_fake(features: Tensor, *rest: Any) -> Pair:
    shape = features.shape[:2]
    return features.new_empty(shape), features.new_empty(shape)


def _forward_fake(features: Tensor, regions: Tensor, *rest: Any) -> tuple[Tensor, Tensor, Tensor]:
    shape = (regions.shape[0], 2, *features.shape[2:])
    return *_pooled_fake(features), features.new_empty(shape, dtype=statistics_dtype(features.dtype))


def _backward_fake(
    grad_inside: Tensor, grad_outside: Tensor, weights: Tensor, channels_last: bool, backend: str
) -> Tensor:
    h, w = weights.shape[2:]
    return empty_maps(grad_inside, h, w, channels_last)


def _weights_fake(regions: Tensor, height: int, width: int, h: int, w: int, dtype: torch.dtype, backend: str) -> Tensor:
    return regions.new_empty((regions.shape[0], 2, h, w), dtype=dtype)


_forward = by_backend(NAME, "forward")
# The plain operators have no derivative: the Functions of those with one call them. `plain_forward` gives the weights
# besides.
pool_operator = define(
    f"{NAME}(Tensor features, Tensor regions, SymInt height, SymInt width, str backend) -> (Tensor, Tensor)",
    lambda *arguments: _forward(*arguments)[:2],
    _pooled_fake,
)
plain_forward = define(
    f"{NAME}_plain_forward(Tensor features, Tensor regions, SymInt height, SymInt width, str backend)"
    " -> (Tensor, Tensor, Tensor)",
    _forward,
    _forward_fake,
)
backward_operator = define(
    f"{NAME}_backward(Tensor grad_inside, Tensor grad_outside, Tensor weights, bool channels_last, str backend)"
    " -> Tensor",
    by_backend(NAME, "backward"),
    _backward_fake,
)
plain_backward = define(
    f"{NAME}_plain_backward(Tensor grad_inside, Tensor grad_outside, Tensor weights, bool channels_last, str backend)"
    " -> Tensor",
    by_backend(NAME, "backward"),
    _backward_fake,
)
weighted_operator = define(
    "weighted_pool(Tensor features, Tensor weights, str backend) -> (Tensor, Tensor)",
    by_backend(NAME, "pool"),
    _pooled_fake,
)
plain_weighted = define(
    f"{NAME}_plain_weighted(Tensor features, Tensor weights, str backend) -> (Tensor, Tensor)",
    by_backend(NAME, "pool"),
    _pooled_fake,
)
weights_operator = define(
    "region_weights(Tensor regions, SymInt height, SymInt width, SymInt h, SymInt w, ScalarType dtype, str backend)"
    " -> Tensor",
    by_backend(NAME, "weights"),
    _weights_fake,
)
check = define(
    "check_regions(Tensor regions, SymInt height, SymInt width) -> ()",
    lambda regions, height, width: _checks.check_values(NAME, regions, height, width),
    lambda *arguments: None,
)


# Derivatives. Everything is linear in the features, so three rules close under differentiation: the gradient of a
# pooling is `backward`, the gradient of `backward` is a pooling with the same weights, and a tangent goes through the
# same operation as the tensor itself.


class _Pool:
    """`masked_upsample_pool`."""

    @staticmethod
    def forward(features: Tensor, *rest: Any) -> tuple[Tensor, Tensor, Tensor]:
        return plain_forward(features, *rest)  # type: ignore[no-any-return]

    @staticmethod
    def save(ctx: Any, inputs: tuple[Any, ...], outputs: tuple[Tensor, ...]) -> None:
        keep(ctx, outputs[2])
        ctx.options = _layout(inputs[0]), inputs[-1]

    @staticmethod
    def backward(ctx: Any, grad_inside: Tensor, grad_outside: Tensor) -> tuple[Tensor | None, ...]:
        return spread(grad_inside, grad_outside, *ctx.saved_tensors, *ctx.options), None, None, None, None

    @staticmethod
    def jvp(ctx: Any, d_features: Tensor, *rest: Any) -> Pair:
        (weights,), (_, backend) = ctx.saved_tensors, ctx.options
        return pool(d_features, weights, backend)


class _Weighted:
    """`weighted_pool`."""

    @staticmethod
    def forward(features: Tensor, weights: Tensor, backend: str) -> Pair:
        return plain_weighted(features, weights, backend)  # type: ignore[no-any-return]

    @staticmethod
    def save(ctx: Any, inputs: tuple[Any, ...], outputs: Any) -> None:
        features, weights, backend = inputs
        keep(ctx, weights)
        ctx.options = _layout(features), backend

    @staticmethod
    def backward(ctx: Any, grad_inside: Tensor, grad_outside: Tensor) -> tuple[Tensor | None, ...]:
        return spread(grad_inside, grad_outside, *ctx.saved_tensors, *ctx.options), None, None

    jvp = _Pool.jvp


class _Spread:
    """The gradient of both."""

    @staticmethod
    def forward(grad_inside: Tensor, grad_outside: Tensor, weights: Tensor, *rest: Any) -> tuple[Tensor]:
        return (plain_backward(grad_inside, grad_outside, weights, *rest),)

    @staticmethod
    def save(ctx: Any, inputs: tuple[Any, ...], outputs: Any) -> None:
        _, _, weights, *ctx.options = inputs
        keep(ctx, weights)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        (weights,), (_, backend) = ctx.saved_tensors, ctx.options
        return *pool(grad, weights, backend), None, None, None

    @staticmethod
    def jvp(ctx: Any, d_inside: Tensor, d_outside: Tensor, *rest: Any) -> tuple[Tensor]:
        return (spread(d_inside, d_outside, *ctx.saved_tensors, *ctx.options),)


_pool = differentiable(NAME, _Pool, 2, pool_operator)
_weighted = differentiable("weighted_pool", _Weighted, 2, weighted_operator)
_spread = differentiable(NAME, _Spread, 1, backward_operator)


def _layout(features: Tensor) -> bool:
    """The layout of the gradient; contiguous under vmap, which does not tell the other."""
    return not torch._C._are_functorch_transforms_active() and is_channels_last(features)


def masked_upsample_pool(features: Tensor, regions: Tensor, height: int, width: int, backend: str) -> Pair:
    """[B, C] each, with derivatives."""
    refuse_tangents(NAME, regions=regions)
    if recorded(features) or torch.compiler.is_compiling():
        return _pool(features, regions, height, width, backend)  # type: ignore[no-any-return]
    return plain_forward(features, regions, height, width, backend)[:2]  # type: ignore[no-any-return]


def weighted_pool(features: Tensor, weights: Tensor, backend: str) -> Pair:
    """[B, C] each, with derivatives."""
    refuse_tangents("weighted_pool", weights=weights)
    return pool(features, weights, backend)


def weights(regions: Tensor, *rest: Any) -> Tensor:
    """[B, 2, h, w], without derivatives."""
    refuse_tangents("region_weights", regions=regions)
    return weights_operator(regions, *rest)  # type: ignore[no-any-return]


def pool(features: Tensor, weights: Tensor, backend: str) -> Pair:
    """`weighted_pool` with weights that are known to have no tangent."""
    run = _weighted if recorded(features) or torch.compiler.is_compiling() else plain_weighted
    return run(features, weights, backend)  # type: ignore[no-any-return]


def spread(grad_inside: Tensor, grad_outside: Tensor, *rest: Any) -> Tensor:
    """The gradient [B, C, h, w] of both, with derivatives."""
    run = _spread if recorded(grad_inside, grad_outside) else plain_backward
    return run(grad_inside, grad_outside, *rest)  # type: ignore[no-any-return]


# vmap: the mapped dimension joins the batch, and one call does the work of all.


def _fold(size: int, dim: int | None, tensor: Tensor, batch: int) -> Tensor:
    """`tensor` with its mapped dimension, or `size` copies, folded into the leading one of `batch` (or 1: shared)."""
    if dim is None:
        if tensor.shape[0] == 1:
            return tensor
        return tensor.expand(size, *tensor.shape).flatten(0, 1)
    tensor = tensor.movedim(dim, 0)
    return tensor.expand(size, batch, *tensor.shape[2:]).flatten(0, 1)


def _unfold(size: int, tensor: Tensor) -> Tensor:
    if tensor.shape[0] == 1:
        return tensor.expand(size, *tensor.shape)
    return tensor.unflatten(0, (size, -1))


def _batch(tensor: Tensor, dim: int | None) -> int:
    return tensor.shape[0] if dim is None else tensor.movedim(dim, 0).shape[1]


def _copies(size: int, dim: int | None, tensor: Tensor) -> Tensor:
    """The mapped dimension first, as `size` copies if there is none."""
    return tensor.expand(size, *tensor.shape) if dim is None else tensor.movedim(dim, 0)


def _map_pooling(operator: Any, info: Any, dims: Any, features: Tensor, *rest: Any) -> tuple[Any, Any]:
    """vmap of an operator on features and regions (or weights) [B or 1, ...]."""
    size, batch = info.batch_size, _batch(features, dims[0])
    folded = _copies(size, dims[0], features).flatten(0, 1)
    outputs = operator(folded, _fold(size, dims[1], rest[0], batch), *rest[1:])
    return tuple(_unfold(size, output) for output in outputs), (0,) * len(outputs)


def _map_backward(
    operator: Any, info: Any, dims: Any, grad_inside: Tensor, grad_outside: Tensor, weights: Tensor, *rest: Any
) -> tuple[Any, Any]:
    size, batch = info.batch_size, _batch(grad_inside, dims[0])
    grads = [_copies(size, dim, g).flatten(0, 1) for g, dim in zip((grad_inside, grad_outside), dims, strict=False)]
    return _unfold(size, operator(*grads, _fold(size, dims[2], weights, batch), *rest)), 0


def _map_weights(info: Any, dims: Any, regions: Tensor, *rest: Any) -> tuple[Any, Any]:
    return weights_operator(regions.movedim(dims[0], 0).flatten(0, 1), *rest).unflatten(0, (info.batch_size, -1)), 0


def _map_check(info: Any, dims: Any, regions: Tensor, *rest: Any) -> tuple[Any, Any]:
    return check(regions.movedim(dims[0], 0).flatten(0, 1), *rest), None


for operator in (pool_operator, plain_forward, weighted_operator, plain_weighted):
    torch.library.register_vmap(operator, functools.partial(_map_pooling, operator), lib=LIBRARY)
for operator in (backward_operator, plain_backward):
    torch.library.register_vmap(operator, functools.partial(_map_backward, operator), lib=LIBRARY)
for operator, rule in ((weights_operator, _map_weights), (check, _map_check)):
    torch.library.register_vmap(operator, rule, lib=LIBRARY)
