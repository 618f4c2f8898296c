"""The operators of nt_xent as torch sees them, and their derivative.

Neither operator is differentiable itself; a `torch.autograd.Function` joins them, as in multi_queue_infonce. N counts
the rows of one view; statistics are float32, or float64 for float64.
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor

from mixfast.ops._check import statistics_dtype
from mixfast.ops._derivatives import differentiable, keep, no_second, present, recorded
from mixfast.ops._register import by_backend, define, map_in_turn, packed, refuse_vmap

NAME = "nt_xent"


class Problem(NamedTuple):
    """The arguments of a call, which both passes take."""

    first: Tensor  # [N, D]
    second: Tensor
    excluded: Tensor | None  # [2N]
    temperature: Tensor | None  # []
    number: float  # the temperature, if `temperature` is None
    reduction: str


def _forward_fake(problem: Problem, backend: str) -> tuple[Tensor, Tensor, Tensor]:
    first, anchors = problem.first, 2 * problem.first.shape[0]
    statistics = statistics_dtype(first.dtype)
    losses = first.new_empty(anchors if problem.reduction == "none" else (), dtype=statistics)
    return losses, first.new_empty((2, anchors), dtype=statistics), first.new_empty(anchors, dtype=statistics)


def _backward_fake(
    problem: Problem, grad_losses: Tensor, denominators: Tensor, shares: Tensor, need_temperature: bool, backend: str
) -> tuple[Tensor, Tensor]:
    rows, dim = problem.first.shape
    return problem.first.new_empty((2 * rows, dim)), denominators.new_empty(() if need_temperature else 0)


_PROBLEM = "Tensor first, Tensor second, Tensor? excluded, Tensor? temperature, float number, str reduction"
# -> losses, [2N] for reduction "none", else []; denominators [2, 2N], two numbers that sum to log2 of the sum over
# negatives and positive; shares [2N], the negatives' part of that sum.
forward = define(
    f"{NAME}_forward({_PROBLEM}, str backend) -> (Tensor, Tensor, Tensor)",
    packed(Problem, by_backend(NAME, "forward")),
    packed(Problem, _forward_fake),
)
# -> d_rows [2N, D] in the dtype of the views; d_temperature [], or [0] if it is not needed.
backward = define(
    f"{NAME}_backward({_PROBLEM}, Tensor grad_losses, Tensor denominators, Tensor shares, bool need_temperature, "
    "str backend) -> (Tensor, Tensor)",
    packed(Problem, by_backend(NAME, "backward")),
    packed(Problem, _backward_fake),
)
refuse_vmap(f"{NAME}: vmap is not supported. Call it once for each pair of views.", forward)
map_in_turn(backward)


class _NtXent:
    """Differentiable in both views and a tensor temperature."""

    @staticmethod
    def forward(backend: str, *problem: Any) -> tuple[Tensor, Tensor, Tensor]:
        return forward(*problem, backend)  # type: ignore[no-any-return]

    @staticmethod
    def save(ctx: Any, inputs: tuple[Any, ...], outputs: tuple[Tensor, ...]) -> None:
        backend, *tensors, number, reduction = inputs
        keep(ctx, *tensors, *outputs[1:])
        ctx.options, ctx.backend = (number, reduction), backend

    @staticmethod
    def backward(ctx: Any, grad_losses: Tensor) -> tuple[Tensor | None, ...]:
        first, second, excluded, temperature, *made = ctx.saved_tensors
        _, *wanted = ctx.needs_input_grad[:5]
        with torch.no_grad():
            problem = first, second, excluded, temperature, *ctx.options
            d_rows, d_temperature = backward(*problem, grad_losses, *made, wanted[3], ctx.backend)
        derivatives = *d_rows.chunk(2), None, d_temperature.to(temperature.dtype) if wanted[3] else None
        grads = [grad if need else None for grad, need in zip(derivatives, wanted, strict=True)]
        return None, *no_second(NAME, grads, present(grad_losses, first, second, temperature)), None, None

    @staticmethod
    def jvp(ctx: Any, *tangents: Any) -> tuple[Tensor]:
        """Tangent of the reduced loss, from its gradient; losses per anchor would need another pass over all pairs."""
        first, second, excluded, temperature, *made = ctx.saved_tensors
        if ctx.options[1] == "none":
            raise NotImplementedError(
                f"{NAME}: forward-mode derivatives are not implemented for reduction='none'. Use reduction='mean' or "
                "'sum', or backend='reference', which has them."
            )
        _, d_first, d_second, _, d_temperature, *_ = tangents
        with torch.no_grad():
            problem, upstream = (first, second, excluded, temperature, *ctx.options), made[0].new_ones(())
            grads, slope = backward(*problem, upstream, *made, temperature is not None, ctx.backend)
            tangent = (grads.to(upstream.dtype) * torch.cat([d_first, d_second])).sum()
            if temperature is not None:
                tangent = tangent + slope * d_temperature
        (loss,) = no_second(NAME, [tangent], present(first, second, temperature, d_first, d_second, d_temperature))
        assert loss is not None
        return (loss,)


_apply = differentiable(NAME, _NtXent, results=1)


def losses(
    first: Tensor, second: Tensor, excluded: Tensor | None, temperature: float | Tensor, reduction: str, backend: str
) -> Tensor:
    """[2N] for reduction "none", else [], with derivatives."""
    tensor, number = (temperature, 0.0) if isinstance(temperature, Tensor) else (None, temperature)
    if second is first and torch.compiler.is_compiling():  # torch.compile refuses the same tensor in two arguments
        second = first.view_as(first)
    problem = Problem(first, second, excluded, tensor, number, reduction)
    if recorded(first, second, tensor):
        return _apply(backend, *problem)  # type: ignore[no-any-return]
    return forward(*problem, backend)[0]  # type: ignore[no-any-return]
