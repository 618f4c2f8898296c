"""The operators of multi_queue_infonce as torch sees them, and their derivative.

The two operators are not differentiable themselves: tensor lists in a differentiable operator's schema cost 130
microseconds a call, a `torch.autograd.Function` around plain operators costs three. N counts the rows of all terms,
term after term; statistics are float32, or float64 for float64.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from mixfast.ops import _dispatch
from mixfast.ops._register import LIBRARY, define

NAME = "multi_queue_infonce"
Three = tuple[Tensor, Tensor, Tensor]


def row_counts(tensors: Sequence[Tensor]) -> list[int]:
    """Rows of each term; a single tensor [T, N, D] stands for T terms."""
    if tensors[0].dim() == 3:
        return [tensors[0].shape[1]] * tensors[0].shape[0]
    return [tensor.shape[0] for tensor in tensors]


def _forward(
    queries: list[Tensor],
    positives: list[Tensor],
    queues: list[Tensor],
    queue_index: list[int],
    temperature: Tensor | None,
    temperatures: list[float],
    reduction: str,
    need_grad: bool,
    backend: str,
) -> Three:
    run = _dispatch.module(NAME, backend).forward
    return run(queries, positives, queues, queue_index, temperature, temperatures, reduction, need_grad)


def _forward_fake(
    queries: list[Tensor],
    positives: list[Tensor],
    queues: list[Tensor],
    queue_index: list[int],
    temperature: Tensor | None,
    temperatures: list[float],
    reduction: str,
    need_grad: bool,
    backend: str,
) -> Three:
    counts, first = row_counts(queries), queries[0]
    statistics = torch.float64 if first.dtype == torch.float64 else torch.float32
    total = sum(counts)
    losses = first.new_empty(total if reduction == "none" else len(counts), dtype=statistics)
    grad_queries = first.new_empty((total if need_grad else 0, first.shape[-1]), dtype=statistics)
    return losses, grad_queries, first.new_empty(total, dtype=statistics)


def _backward(
    grad_losses: Tensor,
    grad_queries: Tensor,
    negative_share: Tensor,
    queries: list[Tensor],
    temperature: Tensor | None,
    temperatures: list[float],
    reduction: str,
    needs: list[bool],
    backend: str,
) -> Three:
    run = _dispatch.module(NAME, backend).backward
    return run(grad_losses, grad_queries, negative_share, queries, temperature, temperatures, reduction, needs)


def _backward_fake(
    grad_losses: Tensor,
    grad_queries: Tensor,
    negative_share: Tensor,
    queries: list[Tensor],
    temperature: Tensor | None,
    temperatures: list[float],
    reduction: str,
    needs: list[bool],
    backend: str,
) -> Three:
    total, dim = grad_queries.shape
    d_queries = queries[0].new_empty((total if needs[0] else 0, dim))
    d_positives = queries[0].new_empty((total if needs[1] else 0, dim))
    return d_queries, d_positives, grad_queries.new_empty(len(row_counts(queries)) if needs[2] else 0)


def _no_vmap(*_: Any) -> tuple[Any, Any]:
    raise NotImplementedError(
        f"{NAME}: vmap is not supported. Pass the mapped dimension as further terms: queries and positives are "
        "sequences of T tensors [N, D] or tensors [T, N, D]."
    )


# -> losses [N] for reduction "none", else [T]; grad_queries [N, D], the derivative of each row's own loss with respect
# to its query ([0, D] unless need_grad); negative_share [N], the probability that falls on the negatives.
forward = define(
    f"{NAME}_forward(Tensor[] queries, Tensor[] positives, Tensor[] queues, int[] queue_index, Tensor? temperature, "
    "float[] temperatures, str reduction, bool need_grad, str backend) -> (Tensor, Tensor, Tensor)",
    _forward,
    _forward_fake,
)
# -> d_queries, d_positives [N, D] in the dtype of queries, d_temperature [T]; one that `needs` leaves out has no rows.
backward = define(
    f"{NAME}_backward(Tensor grad_losses, Tensor grad_queries, Tensor negative_share, Tensor[] queries, "
    "Tensor? temperature, float[] temperatures, str reduction, bool[] needs, str backend) -> (Tensor, Tensor, Tensor)",
    _backward,
    _backward_fake,
)
for operator in (forward, backward):
    torch.library.register_vmap(operator, _no_vmap, lib=LIBRARY)


class _NoSecondDerivative(torch.autograd.Function):
    """Passes first derivatives on. They are made of saved numbers, so a second one would silently lack terms."""

    @staticmethod
    def forward(ctx: Any, count: int, *tensors: Tensor) -> tuple[Tensor, ...]:
        return tuple(tensor.detach() for tensor in tensors[:count])

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        raise NotImplementedError(
            f"{NAME}: second derivatives are not implemented. Use backend='reference', which has them, or drop "
            "create_graph=True."
        )


class _Infonce(torch.autograd.Function):
    """Differentiable in queries, positives and a tensor temperature. `queues` are a tuple, and stay out of autograd."""

    @staticmethod
    def forward(ctx: Any, call: tuple[Any, ...], temperature: Tensor | None, terms: int, *tensors: Tensor) -> Tensor:
        queues, queue_index, temperatures, reduction, backend = call
        queries = tensors[:terms]
        losses, grad_queries, negative_share = forward(
            queries, tensors[terms:], queues, queue_index, temperature, temperatures, reduction, True, backend
        )
        ctx.save_for_backward(grad_queries, negative_share, temperature, *queries)
        ctx.options = temperatures, reduction, backend
        return losses

    @staticmethod
    def backward(ctx: Any, grad_losses: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        grad_queries, negative_share, temperature, *queries = ctx.saved_tensors
        temperatures, reduction, backend = ctx.options
        terms, wanted = len(queries), ctx.needs_input_grad
        needs = [any(wanted[3 : 3 + terms]), any(wanted[3 + terms :]), wanted[1]]
        with torch.no_grad():
            d_queries, d_positives, d_temperature = backward(
                grad_losses, grad_queries, negative_share, queries, temperature, temperatures, reduction, needs, backend
            )
        grads: list[Tensor | None] = [d_temperature.to(temperature.dtype) if needs[2] else None]
        for need, grad in ((needs[0], d_queries), (needs[1], d_positives)):
            grads += _split(grad, queries) if need else [None] * terms
        if torch.is_grad_enabled():
            present = [grad for grad in grads if grad is not None]
            blocked = iter(_NoSecondDerivative.apply(len(present), *present, grad_losses, *queries))
            grads = [None if grad is None else next(blocked) for grad in grads]
        return None, grads[0], None, *grads[1:]


def _split(rows: Tensor, like: Sequence[Tensor]) -> list[Tensor | None]:
    """[N, D] as tensors of the shapes of `like`."""
    if like[0].dim() == 3:
        return [rows.view_as(like[0])]
    return list(rows.split([tensor.shape[0] for tensor in like]))


def losses(
    queries: Sequence[Tensor] | Tensor,
    positives: Sequence[Tensor] | Tensor,
    queues: Sequence[Tensor],
    queue_index: Sequence[int],
    temperature: list[float] | Tensor,
    reduction: str,
    backend: str,
) -> Tensor:
    """[T], or [N] for reduction "none", with derivatives."""
    if isinstance(queries, Tensor) and isinstance(positives, Tensor):
        queries, positives = (queries,), (positives,)  # read in place as T terms
    tensor, numbers = (temperature, []) if isinstance(temperature, Tensor) else (None, temperature)
    inputs = (*queries, *positives)
    if torch.is_grad_enabled() and (
        any(each.requires_grad for each in inputs) or (tensor is not None and tensor.requires_grad)
    ):
        call = (queues, queue_index, numbers, reduction, backend)
        return _Infonce.apply(call, tensor, len(queries), *inputs)  # type: ignore[no-any-return]
    arguments = (tuple(queries), tuple(positives), queues, queue_index, tensor, numbers, reduction, False, backend)
    result: Tensor = forward(*arguments)[0]
    return result
