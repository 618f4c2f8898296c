"""The operators of multi_queue_infonce as torch sees them, and their derivative.

The two operators are not differentiable themselves: tensor lists in a differentiable operator's schema cost 130
microseconds a call, a `torch.autograd.Function` around plain operators costs three. N counts the rows of all terms,
term after term; statistics are float32, or float64 for float64.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from mixfast.ops import _dispatch
from mixfast.ops._derivatives import no_second
from mixfast.ops._eager import is_plain
from mixfast.ops._register import LIBRARY, define
from mixfast.ops.multi_queue_infonce import _checks

NAME = "multi_queue_infonce"
Three = tuple[Tensor, Tensor, Tensor]


def row_counts(tensors: Sequence[Tensor]) -> list[int]:
    """Rows of each term; a single tensor [T, N, D] stands for T terms."""
    if tensors[0].dim() == 3:
        return [tensors[0].shape[1]] * tensors[0].shape[0]
    return [tensor.shape[0] for tensor in tensors]


def _forward(
    queries: Sequence[Tensor],
    positives: Sequence[Tensor],
    queues: Sequence[Tensor],
    queue_index: Sequence[int],
    valid_len: Tensor | None,
    temperature: Tensor | None,
    temperatures: list[float],
    reduction: str,
    need_grad: bool,
    backend: str,
) -> Three:
    run = _dispatch.module(NAME, backend).forward
    return run(queries, positives, queues, queue_index, valid_len, temperature, temperatures, reduction, need_grad)


def _forward_fake(
    queries: Sequence[Tensor],
    positives: Sequence[Tensor],
    queues: Sequence[Tensor],
    queue_index: Sequence[int],
    valid_len: Tensor | None,
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


def _check(valid_len: Tensor | None, temperature: Tensor | None, keys: list[int]) -> None:
    if valid_len is not None and valid_len.device.type == "cpu":
        _checks.check_valid_len_values(valid_len.tolist(), keys)
    if temperature is not None and temperature.device.type == "cpu":
        _checks.check_temperature_values(temperature.tolist())


def _check_fake(valid_len: Tensor | None, temperature: Tensor | None, keys: list[int]) -> None:
    pass


def _no_vmap(*_: Any) -> tuple[Any, Any]:
    raise NotImplementedError(
        f"{NAME}: vmap is not supported. Pass the mapped dimension as further terms: queries and positives are "
        "sequences of T tensors [N, D] or tensors [T, N, D]."
    )


# -> losses [N] for reduction "none", else [T]; grad_queries [N, D], the derivative of each row's own loss with respect
# to its query ([0, D] unless need_grad); negative_share [N], the probability that falls on the negatives.
forward = define(
    f"{NAME}_forward(Tensor[] queries, Tensor[] positives, Tensor[] queues, int[] queue_index, Tensor? valid_len, "
    "Tensor? temperature, float[] temperatures, str reduction, bool need_grad, str backend)"
    " -> (Tensor, Tensor, Tensor)",
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
check = define(f"{NAME}_check(Tensor? valid_len, Tensor? temperature, SymInt[] keys) -> ()", _check, _check_fake)
for operator in (forward, backward, check):
    torch.library.register_vmap(operator, _no_vmap, lib=LIBRARY)


class _Call(NamedTuple):
    """What a call is made of besides the tensors that autograd follows."""

    queues: Sequence[Tensor]
    queue_index: Sequence[int]
    valid_len: Tensor | None
    temperatures: list[float]  # empty if there is a tensor of them
    reduction: str
    backend: str


class _Infonce(torch.autograd.Function):
    """Differentiable in queries, positives and a tensor temperature."""

    @staticmethod
    def forward(ctx: Any, call: _Call, temperature: Tensor | None, terms: int, *tensors: Tensor) -> Tensor:
        queries, positives = tensors[:terms], tensors[terms:]
        losses, grad_queries, negative_share = _run(call, queries, positives, temperature, True)
        ctx.save_for_backward(grad_queries, negative_share, temperature, *queries)
        ctx.options = call.temperatures, call.reduction, call.backend
        return losses

    @staticmethod
    def backward(ctx: Any, grad_losses: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        grad_queries, negative_share, temperature, *queries = ctx.saved_tensors
        temperatures, reduction, backend = ctx.options
        terms, wanted = len(queries), ctx.needs_input_grad
        needs = [any(wanted[3 : 3 + terms]), any(wanted[3 + terms :]), wanted[1]]
        arguments = (grad_losses, grad_queries, negative_share, queries, temperature, temperatures, reduction, needs)
        if torch.is_grad_enabled() or not is_plain((grad_losses, grad_queries, *queries)):
            with torch.no_grad():
                d_queries, d_positives, d_temperature = backward(*arguments, backend)
        else:
            d_queries, d_positives, d_temperature = _backward(*arguments, backend)
        grads: list[Tensor | None] = [d_temperature.to(temperature.dtype) if needs[2] else None]
        grads += _split(d_queries, queries) if needs[0] else [None] * terms
        grads += _split(d_positives, queries) if needs[1] else [None] * (len(wanted) - 3 - terms)
        grads = no_second(NAME, grads, (grad_losses, *queries))
        return None, grads[0], None, *grads[1:]


def _run(
    call: _Call, queries: Sequence[Tensor], positives: Sequence[Tensor], temperature: Tensor | None, need_grad: bool
) -> Three:
    queues, queue_index, valid_len, temperatures, reduction, backend = call
    plain = is_plain((*queries, *positives, *queues)) and (temperature is None or is_plain((temperature,)))
    run = _forward if plain else forward
    return run(
        *(queries, positives, queues, queue_index, valid_len, temperature, temperatures, reduction, need_grad, backend)
    )


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
    call = _Call(queues, queue_index, valid_len, numbers, reduction, backend)
    inputs = _distinct((*queries, *positives))
    if torch.is_grad_enabled() and (
        any(each.requires_grad for each in inputs) or (tensor is not None and tensor.requires_grad)
    ):
        return _Infonce.apply(call, tensor, len(queries), *inputs)  # type: ignore[no-any-return]
    return _run(call, inputs[: len(queries)], inputs[len(queries) :], tensor, False)[0]


def check_values(queues: Sequence[Tensor], valid_len: Tensor | None, temperature: list[float] | Tensor) -> None:
    """On the CPU, raises if valid_len or a temperature tensor holds what it must not."""
    tensor = temperature.detach() if isinstance(temperature, Tensor) else None
    if valid_len is not None or tensor is not None:
        check(valid_len, tensor, [queue.shape[0] for queue in queues])
