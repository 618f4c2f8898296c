"""The operators of multi_queue_infonce as torch sees them, and their derivative.

The two operators are not differentiable themselves: tensor lists in a differentiable operator's schema cost 130
microseconds a call, a `torch.autograd.Function` around plain operators costs three. N counts the rows of all terms,
term after term; statistics are float32, or float64 for float64.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from mixfast.ops._check import statistics_dtype
from mixfast.ops._derivatives import differentiable, keep, no_second, present, recorded, refuse_tangents
from mixfast.ops._register import by_backend, define, map_in_turn, packed, refuse_vmap
from mixfast.ops.infonce import _checks

NAME = "multi_queue_infonce"
Three = tuple[Tensor, Tensor, Tensor]


class Terms(NamedTuple):
    """What both passes ask of the terms."""

    queries: Sequence[Tensor]  # T tensors [N_t, D], or a single one [T, N, D]
    temperature: Tensor | None  # [T]
    temperatures: Sequence[float]  # T numbers, or none if there is a tensor
    reduction: str

    def row_counts(self) -> list[int]:
        """Rows of each term."""
        first = self.queries[0]
        if first.dim() == 3:
            return [first.shape[1]] * first.shape[0]
        return [query.shape[0] for query in self.queries]


def _forward_fake(
    terms: Terms, positives: Any, queues: Any, queue_index: Any, valid_len: Any, need_grad: bool, backend: str
) -> Three:
    counts, first = terms.row_counts(), terms.queries[0]
    total, statistics = sum(counts), statistics_dtype(first.dtype)
    losses = first.new_empty(total if terms.reduction == "none" else len(counts), dtype=statistics)
    grad_queries = first.new_empty((total if need_grad else 0, first.shape[-1]), dtype=statistics)
    return losses, grad_queries, first.new_empty(total, dtype=statistics)


def _backward_fake(
    terms: Terms, grad_losses: Any, grad_queries: Tensor, negative_share: Any, needs: Sequence[bool], backend: str
) -> Three:
    return empty_gradients(terms, grad_queries, needs)


def empty_gradients(terms: Terms, grad_queries: Tensor, needs: Sequence[bool]) -> Three:
    """The results of a backward pass; one that `needs` leaves out has no rows."""
    (total, dim), first = grad_queries.shape, terms.queries[0]
    return (
        first.new_empty((total if needs[0] else 0, dim)),
        first.new_empty((total if needs[1] else 0, dim)),
        grad_queries.new_empty(len(terms.row_counts()) if needs[2] else 0),
    )


# -> losses [N] for reduction "none", else [T]; grad_queries [N, D], the derivative of each row's own loss with respect
# to its query ([0, D] unless need_grad); negative_share [N], the probability that falls on the negatives.
_TERMS = "Tensor[] queries, Tensor? temperature, float[] temperatures, str reduction"
forward = define(
    f"{NAME}_forward({_TERMS}, Tensor[] positives, Tensor[] queues, int[] queue_index, Tensor? valid_len, "
    "bool need_grad, str backend) -> (Tensor, Tensor, Tensor)",
    packed(Terms, by_backend(NAME, "forward")),
    packed(Terms, _forward_fake),
)
# -> d_queries, d_positives [N, D] in the dtype of queries, d_temperature [T]; one that `needs` leaves out has no rows.
backward = define(
    f"{NAME}_backward({_TERMS}, Tensor grad_losses, Tensor grad_queries, Tensor negative_share, bool[] needs, "
    "str backend) -> (Tensor, Tensor, Tensor)",
    packed(Terms, by_backend(NAME, "backward")),
    packed(Terms, _backward_fake),
)
check_values = define(
    f"{NAME}_check(Tensor? valid_len, Tensor? temperature, SymInt[] keys) -> ()",
    _checks.check_values,
    lambda *arguments: None,
)
refuse_vmap(
    f"{NAME}: vmap is not supported. Pass the mapped dimension as further terms: queries and positives are "
    "sequences of T tensors [N, D] or tensors [T, N, D].",
    forward,
    check_values,
)
map_in_turn(backward)


class _Infonce:
    """Differentiable in queries, positives and a tensor temperature."""

    @staticmethod
    def forward(options: Any, against: Any, temperature: Tensor | None, terms: int, *tensors: Tensor) -> Three:
        (numbers, reduction, backend), queries, positives = options, tensors[:terms], tensors[terms:]
        return forward(queries, temperature, numbers, reduction, positives, *against, True, backend)  # type: ignore[no-any-return]

    @staticmethod
    def save(ctx: Any, inputs: tuple[Any, ...], outputs: Any) -> None:
        options, _, temperature, terms, *tensors = inputs
        keep(ctx, temperature, *outputs[1:], *tensors[:terms])
        ctx.options, ctx.positives = options, tensors[terms:]  # whose values are not needed, only what they depend on

    @staticmethod
    def backward(ctx: Any, grad_losses: Tensor) -> tuple[Tensor | None, ...]:
        temperature, grad_queries, negative_share, *queries = ctx.saved_tensors
        numbers, reduction, backend = ctx.options
        terms, wanted = len(queries), ctx.needs_input_grad
        needs = [any(wanted[4 : 4 + terms]), any(wanted[4 + terms :]), wanted[2]]
        with torch.no_grad():
            d_queries, d_positives, d_temperature = backward(
                queries, temperature, numbers, reduction, grad_losses, grad_queries, negative_share, needs, backend
            )
        grads: list[Tensor | None] = [d_temperature.to(temperature.dtype) if needs[2] else None]
        grads += _split(d_queries, queries) if needs[0] else [None] * terms
        grads += _split(d_positives, queries) if needs[1] else [None] * terms
        grads = no_second(NAME, grads, present(grad_losses, temperature, *queries, *ctx.positives))
        return None, None, grads[0], None, *grads[1:]

    @staticmethod
    def jvp(ctx: Any, *tangents: Any) -> tuple[Tensor]:
        temperature, grad_queries, negative_share, *queries = ctx.saved_tensors
        numbers, reduction, _ = ctx.options
        _, _, d_temperature, _, *d_rows = tangents
        terms = Terms(queries, temperature, numbers, reduction)
        with torch.no_grad():
            made = _tangent(terms, grad_queries, negative_share, d_temperature, d_rows)
        (tangent,) = no_second(NAME, [made], present(*ctx.saved_tensors, *ctx.positives, *tangents))
        assert tangent is not None
        return (tangent,)


def _tangent(
    terms: Terms, grad_queries: Tensor, negative_share: Tensor, d_temperature: Tensor | None, d_rows: Sequence[Tensor]
) -> Tensor:
    """Tangents of the losses: per row three scalar products with its derivatives, which the package docstring gives."""
    counts, queries = terms.row_counts(), [row for tensor in terms.queries for row in _terms(tensor)]
    d_queries, d_positives = _halves([row for tensor in d_rows for row in _terms(tensor)])
    gradients, shares = grad_queries.split_with_sizes(counts), negative_share.split_with_sizes(counts)
    losses = []
    for t, (query, gradient, share) in enumerate(zip(queries, gradients, shares, strict=True)):
        tau = terms.temperatures[t] if terms.temperature is None else terms.temperature[t].to(share.dtype)
        rows = (gradient * d_queries[t]).sum(1) - share / tau * (query.to(share.dtype) * d_positives[t]).sum(1)
        if d_temperature is not None:
            rows = rows - (query * gradient).sum(1) / tau * d_temperature[t]
        losses.append(rows)
    if terms.reduction == "none":
        return torch.cat(losses)
    return torch.stack([rows.mean() if terms.reduction == "mean" else rows.sum() for rows in losses])


def _terms(tensor: Tensor) -> Sequence[Tensor]:
    """[T, N, D] or [N, D] as tensors [N, D]."""
    return tensor.unbind() if tensor.dim() == 3 else (tensor,)


def _halves(tensors: list[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
    return tensors[: len(tensors) // 2], tensors[len(tensors) // 2 :]


_apply = differentiable(NAME, _Infonce, results=1)


def check_tensor_values(valid_len: Tensor | None, temperature: list[float] | Tensor, queues: Sequence[Tensor]) -> None:
    """On the CPU, raises if valid_len or a tensor of temperatures holds what it must not."""
    tensor = temperature.detach() if isinstance(temperature, Tensor) else None
    if valid_len is not None or tensor is not None:
        check_values(valid_len, tensor, [queue.shape[0] for queue in queues])


def _distinct(tensors: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """Under torch.compile, which refuses a tensor that is given twice: views of it."""
    if not torch.compiler.is_compiling():
        return tensors
    return tuple(t.view_as(t) if any(t is before for before in tensors[:i]) else t for i, t in enumerate(tensors))


def _split(rows: Tensor, like: Sequence[Tensor]) -> Sequence[Tensor]:
    """[N, D] as tensors of the shapes of `like`."""
    if like[0].dim() == 3:
        return [rows.view_as(like[0])]
    return rows.split_with_sizes([tensor.shape[0] for tensor in like])


def losses(
    queries: Sequence[Tensor] | Tensor,
    positives: Sequence[Tensor] | Tensor,
    queues: Sequence[Tensor],
    queue_index: Sequence[int],
    valid_len: Tensor | None,
    temperature: list[float] | Tensor,
    reduction: str,
    backend: str,
) -> Tensor:
    """[T], or [N] for reduction "none", with derivatives."""
    if isinstance(queries, Tensor) and isinstance(positives, Tensor):
        queries, positives = (queries,), (positives,)  # read in place as T terms
    tensor, numbers = (temperature, []) if isinstance(temperature, Tensor) else (None, temperature)
    inputs, terms, against = _distinct((*queries, *positives)), len(queries), (queues, queue_index, valid_len)
    refuse_tangents(NAME, queues=queues)
    if recorded(*inputs, tensor):
        return _apply((numbers, reduction, backend), against, tensor, terms, *inputs)  # type: ignore[no-any-return]
    return forward(inputs[:terms], tensor, numbers, reduction, inputs[terms:], *against, False, backend)[0]  # type: ignore[no-any-return]
