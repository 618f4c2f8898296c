"""Builds from one rule for an operation's derivatives the `torch.autograd.Function`s that torch needs.

First derivatives are computed from saved statistics. Differentiating them again would silently lose terms, so that
second derivatives raise an error.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

from mixfast.ops._register import LIBRARY


def forward_mode() -> bool:
    """Whether tensors may carry tangents: inside torch.func.jvp or a dual level. torch.compile guards on the result."""
    return forward_ad._current_level >= 0


def _transformed() -> bool:
    """Whether torch.func.grad, jvp or the like is running."""
    levels = torch._C._functorch.get_interpreter_stack() or []
    kinds = torch._C._functorch.TransformType
    return any(level.key() in (kinds.Grad, kinds.Jvp) for level in levels)


# torch.compile takes the result at the time of tracing as a constant; see `_dispatch.choose`.
_transformed._dynamo_marked_constant = True  # type: ignore[attr-defined]


def recorded(*tensors: Tensor | None) -> bool:
    """Whether a call must be recorded for derivatives; `tensors` are all inputs that have derivatives."""
    if torch._C._are_functorch_transforms_active() or forward_mode():
        return True
    return torch.is_grad_enabled() and any([tensor is not None and tensor.requires_grad for tensor in tensors])


def keep(ctx: Any, *tensors: Tensor | None) -> None:
    """Save tensors for derivatives in reverse mode, and in forward mode where it is active."""
    ctx.save_for_backward(*tensors)
    if forward_mode():
        ctx.save_for_forward(*tensors)


def differentiable(name: str, rule: Any, results: int | None = None, operator: Any = None) -> Callable[..., Any]:
    """A function of the rule's inputs that returns its first `results` outputs, with derivatives in both modes.

    A rule is a class of four static methods:
        forward(*inputs): returns a tuple: the results, then further tensors that the derivatives are computed from.
        save(ctx, inputs, outputs): stores what `backward` and `jvp` read; tensors by `keep`.
        backward(ctx, *grads): returns a tuple with a gradient, or None, for each input.
        jvp(ctx, *tangents): returns a tuple with a tangent for each result. `tangents` has one entry for each input:
            a tensor for a tensor (zeros if it has no tangent), None for anything else.

    One of three Functions is applied. The transforms of torch.func need one with `setup_context`, which costs 70
    microseconds more per call, and torch.compile needs one without `jvp`; eager calls take the third. If an `operator`
    with the same inputs and results is given, it is made differentiable and used under torch.compile.
    """

    def forward(ctx: Any, *inputs: Any) -> Any:
        outputs = rule.forward(*inputs)
        rule.save(ctx, inputs, outputs)
        return outputs[0] if results == 1 else outputs[:results]

    def setup_context(ctx: Any, inputs: tuple[Any, ...], outputs: tuple[Tensor, ...]) -> None:
        further = [] if results is None else outputs[results:]
        ctx.mark_non_differentiable(*further)
        ctx.further = len(further)
        rule.save(ctx, inputs, outputs)

    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        return rule.backward(ctx, *grads[:results])

    def jvp(ctx: Any, *tangents: Any) -> tuple[Tensor | None, ...]:
        return *rule.jvp(ctx, *tangents), *[None] * ctx.further

    def function(**methods: Any) -> Any:
        members = {key: staticmethod(method) for key, method in methods.items()}
        return type(rule.__name__, (torch.autograd.Function,), {"generate_vmap_rule": True, **members})

    @functools.cache
    def transformed() -> Callable[..., Any]:
        off = torch.compiler.disable  # imports torch._dynamo, which torch.func has imported already
        methods = {"forward": rule.forward, "setup_context": setup_context, "backward": off(backward), "jvp": jvp}
        apply: Callable[..., Any] = off(function(**methods).apply)
        return apply

    eager = function(forward=forward, backward=rule.backward, jvp=rule.jvp)
    compiled = operator or function(forward=forward, backward=rule.backward).apply
    if operator:
        LIBRARY.impl(operator, eager.apply, "Autograd")

    def call(*inputs: Any) -> Any:
        if torch.compiler.is_compiling():
            _refuse_compiled(name)
            return compiled(*inputs)
        if torch._C._are_functorch_transforms_active():
            outputs = transformed()(*inputs)
            return outputs[0] if results == 1 else outputs[:results]
        return eager.apply(*inputs)

    return call


def _refuse_compiled(name: str) -> None:
    if torch.compiler.is_compiling() and (forward_mode() or _transformed()):
        raise NotImplementedError(
            f"{name}: torch.func.grad, jvp and the like are not implemented inside of torch.compile, which would drop "
            "the derivative. Call them outside of the compiled function, or use backend='reference'."
        )


class _NoSecond:
    """Returns the first `count` tensors as functions of all tensors, whose derivative raises an error."""

    @staticmethod
    def forward(name: str, count: int, *tensors: Tensor) -> tuple[Tensor, ...]:
        return tuple([tensor.detach() for tensor in tensors[:count]])

    @staticmethod
    def save(ctx: Any, inputs: tuple[Any, ...], outputs: tuple[Tensor, ...]) -> None:
        ctx.name = inputs[0]

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        raise NotImplementedError(
            f"{ctx.name}: second derivatives are not implemented. Use backend='reference', which has them, or drop "
            "create_graph=True."
        )

    jvp = backward


_no_second = differentiable("second derivatives", _NoSecond)


def present(*tensors: Tensor | None) -> list[Tensor]:
    return [tensor for tensor in tensors if tensor is not None]


def no_second(name: str, derivatives: Sequence[Tensor | None], inputs: Sequence[Tensor]) -> list[Tensor | None]:
    """Return first derivatives so that differentiating them again raises an error, wherever that would be recorded.

    `inputs` must be all tensors that a derivative depends on: for an omitted one, the second derivative would silently
    be 0.
    """
    if not (torch.is_grad_enabled() or forward_mode()):
        return list(derivatives)
    made = present(*derivatives)
    blocked = iter(_no_second(name, len(made), *made, *inputs))
    return [None if derivative is None else next(blocked) for derivative in derivatives]


class _NoTangent(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(message: str, tensor: Tensor) -> Tensor:
        return tensor.new_zeros(())

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        (ctx.message, _) = inputs

    @staticmethod
    def jvp(ctx: Any, *tangents: Any) -> Tensor:
        raise NotImplementedError(ctx.message)


def refuse_tangents(operation: str, backend: str | None = "reference", **inputs: Any) -> None:
    """Raise if one of `inputs` (tensors or sequences of tensors) has a tangent, which the operation would ignore.

    `backend` is the backend that has this derivative, for the message; None if there is none.
    """
    if not forward_mode():
        return
    _refuse_compiled(operation)
    advice = "" if backend is None else f", or use backend={backend!r}, which has them"
    for name, value in inputs.items():
        for tensor in value if isinstance(value, (list, tuple)) else present(value):
            if tensor.is_floating_point():
                message = f"{operation}: forward-mode derivatives with respect to {name} are not implemented. "
                _NoTangent.apply(f"{message}Detach it{advice}.", tensor)


def refuse_derivatives(operation: str, **inputs: Tensor) -> None:
    """Raise if one of `inputs` has a tangent, or requires a gradient while gradients are recorded."""
    for name, tensor in inputs.items():
        if tensor.requires_grad and torch.is_grad_enabled():
            raise ValueError(f"{operation}: {name} receives no gradient, but it requires one. Pass {name}.detach().")
    refuse_tangents(operation, None, **inputs)
