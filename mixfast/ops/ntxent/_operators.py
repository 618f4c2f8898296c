"""The operators of nt_xent as torch sees them, and their derivative.

Neither operator is differentiable itself; a `torch.autograd.Function` joins them, as in multi_queue_infonce. N counts
the rows of one view; statistics are float32, or float64 for float64.
"""

from typing import Any

import torch
from torch import Tensor

from mixfast.ops import _dispatch
from mixfast.ops._derivatives import no_second, present
from mixfast.ops._register import define, refuse_vmap

NAME = "nt_xent"
Three = tuple[Tensor, Tensor, Tensor]


def _forward(
    first: Tensor,
    second: Tensor,
    excluded: Tensor | None,
    temperature: Tensor | None,
    number: float,
    reduction: str,
    backend: str,
) -> Three:
    run = _dispatch.module(NAME, backend).forward
    return run(first, second, excluded, temperature, number, reduction)


def _forward_fake(
    first: Tensor,
    second: Tensor,
    excluded: Tensor | None,
    temperature: Tensor | None,
    number: float,
    reduction: str,
    backend: str,
) -> Three:
    statistics = torch.float64 if first.dtype == torch.float64 else torch.float32
    anchors = 2 * first.shape[0]
    losses = first.new_empty(anchors if reduction == "none" else (), dtype=statistics)
    return losses, first.new_empty(anchors, dtype=statistics), first.new_empty(anchors, dtype=statistics)


def _backward(
    grad_losses: Tensor,
    denominators: Tensor,
    shares: Tensor,
    first: Tensor,
    second: Tensor,
    excluded: Tensor | None,
    temperature: Tensor | None,
    number: float,
    reduction: str,
    need_temperature: bool,
    backend: str,
) -> tuple[Tensor, Tensor]:
    run = _dispatch.module(NAME, backend).backward
    views = first, second
    return run(grad_losses, denominators, shares, *views, excluded, temperature, number, reduction, need_temperature)


def _backward_fake(
    grad_losses: Tensor,
    denominators: Tensor,
    shares: Tensor,
    first: Tensor,
    second: Tensor,
    excluded: Tensor | None,
    temperature: Tensor | None,
    number: float,
    reduction: str,
    need_temperature: bool,
    backend: str,
) -> tuple[Tensor, Tensor]:
    d_rows = first.new_empty((2 * first.shape[0], first.shape[1]))
    return d_rows, denominators.new_empty(() if need_temperature else 0)


# -> losses [2N] for reduction "none", else []; denominators [2N], the base-2 logarithm of the sum over j, the positive
# included; shares [2N], the part of that sum that falls on the negatives.
forward = define(
    f"{NAME}_forward(Tensor first, Tensor second, Tensor? excluded, Tensor? temperature, float number, str reduction, "
    "str backend) -> (Tensor, Tensor, Tensor)",
    _forward,
    _forward_fake,
)
# -> d_rows [2N, D] in the dtype of the views; d_temperature [], or [0] if it is not needed.
backward = define(
    f"{NAME}_backward(Tensor grad_losses, Tensor denominators, Tensor shares, Tensor first, Tensor second, "
    "Tensor? excluded, Tensor? temperature, float number, str reduction, bool need_temperature, str backend)"
    " -> (Tensor, Tensor)",
    _backward,
    _backward_fake,
)
refuse_vmap(f"{NAME}: vmap is not supported. Call it once for each pair of views.", forward, backward)


class _NtXent(torch.autograd.Function):
    """Differentiable in both views and a tensor temperature."""

    @staticmethod
    def forward(
        ctx: Any, options: tuple[float, str, str], excluded: Tensor | None, temperature: Tensor | None, *views: Tensor
    ) -> Tensor:
        losses, denominators, shares = _run(views, excluded, temperature, options)
        ctx.save_for_backward(denominators, shares, *views, excluded, temperature)
        ctx.options = options
        return losses

    @staticmethod
    def backward(ctx: Any, grad_losses: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        denominators, shares, first, second, excluded, temperature = ctx.saved_tensors
        number, reduction, backend = ctx.options
        wanted = ctx.needs_input_grad[2:]
        arguments = (grad_losses, denominators, shares, first, second, excluded, temperature, number, reduction)
        with torch.no_grad():
            d_rows, d_temperature = backward(*arguments, wanted[0], backend)
        d_first, d_second = d_rows.chunk(2)
        found = (d_temperature.to(temperature.dtype) if wanted[0] else None, d_first, d_second)
        grads = [grad if need else None for grad, need in zip(found, wanted, strict=True)]
        return None, None, *no_second(NAME, grads, present(grad_losses, first, second, temperature))


def _run(
    views: tuple[Tensor, ...], excluded: Tensor | None, temperature: Tensor | None, options: tuple[float, str, str]
) -> Three:
    (first, second), (number, reduction, backend) = views, options
    return forward(first, second, excluded, temperature, number, reduction, backend)


def losses(
    first: Tensor, second: Tensor, excluded: Tensor | None, temperature: float | Tensor, reduction: str, backend: str
) -> Tensor:
    """[2N] for reduction "none", else [], with derivatives."""
    tensor, number = (temperature, 0.0) if isinstance(temperature, Tensor) else (None, temperature)
    options = number, reduction, backend
    if second is first and torch.compiler.is_compiling():  # which refuses a tensor that is given twice
        second = first.view_as(first)
    if torch.is_grad_enabled() and (
        first.requires_grad or second.requires_grad or (tensor is not None and tensor.requires_grad)
    ):
        return _NtXent.apply(options, excluded, tensor, first, second)  # type: ignore[no-any-return]
    return _run((first, second), excluded, tensor, options)[0]
