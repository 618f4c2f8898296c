"""The pooling operators as torch sees them: schemas, fake outputs, derivatives to any order, vmap.

Autocast leaves them alone: they run in the dtype of `features`, and their sums are in float32 at least.
"""

from typing import Any

import torch
from torch import Tensor

from mixfast.ops import _dispatch, _native
from mixfast.ops._eager import is_plain, plain_apply
from mixfast.ops._register import LIBRARY, define
from mixfast.ops.pool import _checks
from mixfast.ops.pool._arguments import empty_maps, sums_dtype

NAME = "masked_upsample_pool"
Pair = tuple[Tensor, Tensor]


def is_channels_last(maps: Tensor) -> bool:
    """Whether `maps` [B, C, h, w] lie in memory as [B, h, w, C], and not just as well as [B, C, h, w]."""
    return not maps.is_contiguous() and maps.is_contiguous(memory_format=torch.channels_last)


def _forward(features: Tensor, regions: Tensor, height: int, width: int, backend: str) -> tuple[Tensor, Tensor, Tensor]:
    return _dispatch.module(NAME, backend).forward(features, regions, height, width)


def _forward_fake(
    features: Tensor, regions: Tensor, height: int, width: int, backend: str
) -> tuple[Tensor, Tensor, Tensor]:
    b, c, h, w = features.shape
    weights = features.new_empty((regions.shape[0], 2, h, w), dtype=sums_dtype(features.dtype))
    return features.new_empty((b, c)), features.new_empty((b, c)), weights


def _backward(grad_inside: Tensor, grad_outside: Tensor, weights: Tensor, channels_last: bool, backend: str) -> Tensor:
    return _dispatch.module(NAME, backend).backward(grad_inside, grad_outside, weights, channels_last)


def _backward_fake(
    grad_inside: Tensor, grad_outside: Tensor, weights: Tensor, channels_last: bool, backend: str
) -> Tensor:
    h, w = weights.shape[2:]
    return empty_maps(grad_inside, h, w, channels_last)


def _pool(features: Tensor, weights: Tensor, backend: str) -> Pair:
    return _dispatch.module(NAME, backend).pool(features, weights)


def _pool_fake(features: Tensor, weights: Tensor, backend: str) -> Pair:
    shape = features.shape[:2]
    return features.new_empty(shape), features.new_empty(shape)


def _weights(regions: Tensor, height: int, width: int, h: int, w: int, dtype: torch.dtype, backend: str) -> Tensor:
    return _dispatch.module(NAME, backend).weights(regions, height, width, h, w, dtype)


def _weights_fake(regions: Tensor, height: int, width: int, h: int, w: int, dtype: torch.dtype, backend: str) -> Tensor:
    return regions.new_empty((regions.shape[0], 2, h, w), dtype=dtype)


def _check(regions: Tensor, height: int, width: int) -> None:
    if regions.device.type == "cpu":
        _checks.check_values(NAME, regions, height, width)


def _check_fake(regions: Tensor, height: int, width: int) -> None:
    pass


forward = define(
    f"{NAME}(Tensor features, Tensor regions, SymInt height, SymInt width, str backend) -> (Tensor, Tensor, Tensor)",
    _forward,
    _forward_fake,
)
backward = define(
    f"{NAME}_backward(Tensor grad_inside, Tensor grad_outside, Tensor weights, bool channels_last, str backend)"
    " -> Tensor",
    _backward,
    _backward_fake,
)
pool = define("weighted_pool(Tensor features, Tensor weights, str backend) -> (Tensor, Tensor)", _pool, _pool_fake)
weights = define(
    "region_weights(Tensor regions, SymInt height, SymInt width, SymInt h, SymInt w, ScalarType dtype, str backend)"
    " -> Tensor",
    _weights,
    _weights_fake,
)
check = define("check_regions(Tensor regions, SymInt height, SymInt width) -> ()", _check, _check_fake)


# Derivatives. Everything is linear in the features, so three operators close under differentiation:
# the gradient of a pooling is `backward`, and the gradient of `backward` is a pooling with the same weights.


def _save_forward(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    ctx.save_for_backward(output[2])
    ctx.mark_non_differentiable(output[2])
    ctx.channels_last, ctx.backend = is_channels_last(inputs[0]), inputs[4]


def _forward_gradient(ctx: Any, grad_inside: Tensor, grad_outside: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
    grad = backward(grad_inside, grad_outside, ctx.saved_tensors[0], ctx.channels_last, ctx.backend)
    return grad, None, None, None, None


def _save_pool(ctx: Any, inputs: tuple[Any, ...], output: Pair) -> None:
    ctx.save_for_backward(inputs[1])
    ctx.channels_last, ctx.backend = is_channels_last(inputs[0]), inputs[2]


def _pool_gradient(ctx: Any, grad_inside: Tensor, grad_outside: Tensor) -> tuple[Tensor | None, ...]:
    grad = backward(grad_inside, grad_outside, ctx.saved_tensors[0], ctx.channels_last, ctx.backend)
    return grad, None, None


def _save_backward(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.save_for_backward(inputs[2])
    ctx.backend = inputs[4]


def _backward_gradient(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    return *pool(grad, ctx.saved_tensors[0], ctx.backend), None, None, None


torch.library.register_autograd(forward, _forward_gradient, setup_context=_save_forward, lib=LIBRARY)
torch.library.register_autograd(pool, _pool_gradient, setup_context=_save_pool, lib=LIBRARY)
torch.library.register_autograd(backward, _backward_gradient, setup_context=_save_backward, lib=LIBRARY)


class Pool(torch.autograd.Function):
    """Results that are there, as a function of plain features: a quarter of the overhead of the operator's own."""

    @staticmethod
    def forward(ctx: Any, features: Tensor, made: tuple[Tensor, Tensor, Tensor, bool, str]) -> Pair:
        inside, outside, weights, *ctx.how = made
        ctx.save_for_backward(weights)
        return inside, outside

    @staticmethod
    def backward(ctx: Any, grad_inside: Tensor, grad_outside: Tensor) -> Any:  # type: ignore[override]
        (weights,), (channels_last, backend) = ctx.saved_tensors, ctx.how
        given, native = (grad_inside, grad_outside, weights, channels_last), _native.LOADED.get(backend)
        grad = native.pool_gradient(*given) if native else None
        if grad is None:
            plain = not torch.is_grad_enabled() and is_plain((grad_inside, grad_outside, weights))
            grad = (_backward if plain else backward)(*given, backend)
        return grad, None


_apply = plain_apply(Pool)


def direct(features: Tensor, regions: Tensor, output_size: tuple[int, int] | None, backend: str) -> Pair | None:
    """Both means in one call of a compiled module, which looks at all arguments; None if it cannot take them."""
    for native in _native.LOADED.values():
        results = native.masked_upsample_pool(_apply, features, regions, output_size, backend)
        if results is not None:
            return results  # type: ignore[no-any-return]
    return None


def masked_upsample_pool(features: Tensor, regions: Tensor, height: int, width: int, backend: str) -> Pair:
    """Both means, with their derivative."""
    if not is_plain((features, regions)):
        inside, outside, _ = forward(features, regions, height, width, backend)
        return inside, outside
    results = _forward(features.detach(), regions, height, width, backend)
    if features.requires_grad and torch.is_grad_enabled():
        inside, outside = _apply(features, (*results, is_channels_last(features), backend))
        return inside, outside
    return results[:2]


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


def _map_forward(info: Any, dims: Any, features: Tensor, regions: Tensor, *rest: Any) -> tuple[Any, Any]:
    size, batch = info.batch_size, _batch(features, dims[0])
    folded = _copies(size, dims[0], features).flatten(0, 1)
    outputs = forward(folded, _fold(size, dims[1], regions, batch), *rest)
    return tuple(_unfold(size, output) for output in outputs), (0, 0, 0)


def _map_backward(
    info: Any, dims: Any, grad_inside: Tensor, grad_outside: Tensor, weights: Tensor, *rest: Any
) -> tuple[Any, Any]:
    size, batch = info.batch_size, _batch(grad_inside, dims[0])
    grads = [_copies(size, dim, g).flatten(0, 1) for g, dim in zip((grad_inside, grad_outside), dims, strict=False)]
    return _unfold(size, backward(*grads, _fold(size, dims[2], weights, batch), *rest)), 0


def _map_pool(info: Any, dims: Any, features: Tensor, weights: Tensor, backend: str) -> tuple[Any, Any]:
    size, batch = info.batch_size, _batch(features, dims[0])
    folded = _copies(size, dims[0], features).flatten(0, 1)
    outputs = pool(folded, _fold(size, dims[1], weights, batch), backend)
    return tuple(_unfold(size, output) for output in outputs), (0, 0)


def _map_weights(info: Any, dims: Any, regions: Tensor, *rest: Any) -> tuple[Any, Any]:
    return weights(regions.movedim(dims[0], 0).flatten(0, 1), *rest).unflatten(0, (info.batch_size, -1)), 0


def _map_check(info: Any, dims: Any, regions: Tensor, *rest: Any) -> tuple[Any, Any]:
    return check(regions.movedim(dims[0], 0).flatten(0, 1), *rest), None


for operator, rule in (
    (forward, _map_forward),
    (backward, _map_backward),
    (pool, _map_pool),
    (weights, _map_weights),
    (check, _map_check),
):
    torch.library.register_vmap(operator, rule, lib=LIBRARY)
