"""The operators of multi_queue_infonce as torch sees them, and their derivative.

The two operators are not differentiable themselves: tensor lists in a differentiable operator's schema cost 130
microseconds a call, a `torch.autograd.Function` around plain operators costs three. N counts the rows of all terms,
term after term; statistics are float32, or float64 for float64.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from mixfast.ops import _dispatch, _native
from mixfast.ops._derivatives import no_second, present
from mixfast.ops._eager import is_plain, plain_apply
from mixfast.ops._register import define, refuse_vmap
from mixfast.ops.infonce import _checks

NAME = "multi_queue_infonce"
Three = tuple[Tensor, Tensor, Tensor]


def row_counts(tensors: Sequence[Tensor] | Tensor) -> list[int]:
    """Rows of each term; a single tensor [T, N, D], also in a list, stands for T terms."""
    first = tensors if isinstance(tensors, Tensor) else tensors[0]
    if first.dim() == 3:
        return [first.shape[1]] * first.shape[0]
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
    losses, grad_queries, negative_share = run(
        *(queries, positives, queues, queue_index, valid_len, temperature, temperatures, reduction, need_grad)
    )
    return losses, _or_no_rows(grad_queries, negative_share, queries[0].shape[-1]), negative_share


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
    dim, run = grad_queries.shape[1], _dispatch.module(NAME, backend).backward
    d_queries, d_positives, d_temperature = run(
        *(grad_losses, grad_queries, negative_share, queries, temperature, temperatures, reduction, needs)
    )
    return (
        _or_no_rows(d_queries, queries[0], dim),
        _or_no_rows(d_positives, queries[0], dim),
        _or_no_rows(d_temperature, negative_share),
    )


def _or_no_rows(tensor: Tensor | None, like: Tensor, *shape: int) -> Tensor:
    return like.new_empty((0, *shape)) if tensor is None else tensor


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
    _checks.check_values(valid_len, temperature, keys)


def _check_fake(valid_len: Tensor | None, temperature: Tensor | None, keys: list[int]) -> None:
    pass


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
refuse_vmap(
    f"{NAME}: vmap is not supported. Pass the mapped dimension as further terms: queries and positives are "
    "sequences of T tensors [N, D] or tensors [T, N, D].",
    forward,
    backward,
    check,
)


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
        ctx.options = call.temperatures, call.reduction, call.backend, positives
        return losses

    @staticmethod
    def backward(ctx: Any, grad_losses: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        return _gradients(ctx, grad_losses, *ctx.saved_tensors)


def _gradients(
    ctx: Any,
    grad_losses: Tensor,
    grad_queries: Tensor,
    negative_share: Tensor,
    temperature: Any,
    *tensors: Tensor,
) -> tuple[Tensor | None, ...]:
    queries = list(tensors)
    temperatures, reduction, backend, positives = ctx.options
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
    grads += _split(d_positives, queries) if needs[1] else [None] * terms
    grads = no_second(NAME, grads, present(grad_losses, temperature, *queries, *positives))
    return None, grads[0], None, *grads[1:]


class _Ready(torch.autograd.Function):
    """The same of a call that a compiled module has made (csrc/infonce/bind_results.h): its losses, the
    tensors to be saved, of which the first holds gradients [N, D] and shares [N], and its options.

    The positives are among the options: their values are not needed, only what they depend on, if a second derivative
    is asked for. Saving them would cost each call a microsecond.
    """

    @staticmethod
    def forward(
        ctx: Any, made: tuple[Tensor, Sequence[Tensor | None], Any], temperature: Any, terms: int, *tensors: Tensor
    ) -> Tensor:
        losses, saved, ctx.options = made
        ctx.save_for_backward(*saved)
        return losses

    @staticmethod
    def backward(ctx: Any, grad_losses: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        saved, options = ctx.saved_tensors, ctx.options
        grads = _native.LOADED[options[2]].infonce_gradient(grad_losses, saved, options, ctx.needs_input_grad)
        if grads is None:
            kept, *others = saved
            rows = kept.shape[0] // (others[1].shape[-1] + 1)
            grads = _gradients(ctx, grad_losses, kept[:-rows].view(rows, -1), kept[-rows:], *others)
        return grads  # type: ignore[no-any-return]


_apply = plain_apply(_Ready)


def direct(*arguments: Any) -> Tensor | None:
    """The losses in one call of a compiled module, which looks at all arguments; None if it cannot take them.

    The arguments are queries, positives, queues, queue_index, temperature, valid_len, reduction and backend.
    """
    for native in _native.LOADED.values():
        losses = native.multi_queue_infonce(_apply, *arguments)
        if losses is not None:
            return losses  # type: ignore[no-any-return]
    return None


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
