"""Registration of operators in torch's namespace `torch.ops.mixfast`."""

import functools
from collections.abc import Callable
from typing import Any

import torch

from mixfast.ops import _dispatch

LIBRARY = torch.library.Library("mixfast", "DEF")


def define(schema: str, kernel: Callable[..., Any], fake: Callable[..., Any]) -> Any:
    """Registers an operator and returns it, ready to be called.

    Args:
        schema: "name(Tensor x, ...) -> ...", in torch's schema language. No tensor lists in an operator that is
            differentiable itself: they cost 100 microseconds a call as soon as a gradient is wanted.
        kernel: runs on CPU and CUDA tensors. Its outputs alias no input.
        fake: makes outputs of the right shape, dtype, device and memory format without reading values.
    """
    name = schema[: schema.index("(")]
    LIBRARY.define(schema, tags=(torch.Tag.pt2_compliant_tag,))
    for device in ("CPU", "CUDA"):
        LIBRARY.impl(name, kernel, device)
    torch.library.register_fake(f"mixfast::{name}", fake, lib=LIBRARY)
    return getattr(torch.ops.mixfast, name).default


def by_backend(operation: str, function: str) -> Callable[..., Any]:
    """A kernel that calls `function` of the backend that its last argument names, with the other arguments."""

    def kernel(*arguments: Any) -> Any:
        *inputs, backend = arguments
        return getattr(_dispatch.module(operation, backend), function)(*inputs)

    return kernel


def packed(kind: Any, function: Callable[..., Any]) -> Callable[..., Any]:
    """Turn a `function` whose first argument is a NamedTuple `kind` into one that takes the tuple's fields one by one,
    because an operator's arguments cannot be nested."""
    count = len(kind._fields)
    return lambda *arguments: function(kind(*arguments[:count]), *arguments[count:])


def refuse_vmap(message: str, *operators: Any) -> None:
    """Make vmap over any of these operators raise NotImplementedError with this message."""

    def refuse(*_: Any) -> tuple[Any, Any]:
        raise NotImplementedError(message)

    for operator in operators:
        torch.library.register_vmap(operator, refuse, lib=LIBRARY)


def map_in_turn(*operators: Any) -> None:
    """Make vmap over any of these operators call it once per entry: jacrev maps over the gradients of few results."""
    for operator in operators:
        torch.library.register_vmap(operator, functools.partial(_in_turn, operator), lib=LIBRARY)


def _in_turn(operator: Any, info: Any, dims: Any, *arguments: Any) -> tuple[Any, Any]:
    outputs = [operator(*_entry(arguments, dims, i)) for i in range(info.batch_size)]
    stacked = tuple(torch.stack(side) for side in zip(*outputs, strict=True))
    return stacked, (0,) * len(stacked)


def _entry(argument: Any, dim: Any, i: int) -> Any:
    if isinstance(dim, (list, tuple)):
        return [_entry(*pair, i) for pair in zip(argument, dim, strict=True)]
    return argument if dim is None else argument.select(dim, i)
