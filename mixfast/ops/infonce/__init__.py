"""InfoNCE losses of several terms against several queues, with their gradients from one pass over the queues.

For a row with query q, positive k, negatives x_j and temperature tau:
    s = q.k / tau,  l = log sum_j e^{q.x_j / tau},  loss = softplus(l - s),  p = sigmoid(l - s)
    dloss/dq = (p / tau) (O - k),  dloss/dk = -(p / tau) q,  dloss/dtau = -(q . dloss/dq) / tau
where O = sum_j e^{q.x_j / tau - l} x_j. All are by-products of the loss, and a row's depend on its own query only:
whatever the reduction and the upstream gradient, the backward pass multiplies rows by numbers.
"""

from collections.abc import Sequence
from typing import Literal, overload

from torch import Tensor

from mixfast.ops import _dispatch
from mixfast.ops._check import autocast_rows, in_autocast
from mixfast.ops.infonce import _checks, _operators, reference

NAME = "multi_queue_infonce"
Rows = Sequence[Tensor] | Tensor


@overload
def multi_queue_infonce(
    queries: Rows,
    positives: Rows,
    queues: Sequence[Tensor],
    queue_index: Sequence[int],
    *,
    temperature: float | Sequence[float] | Tensor = 0.1,
    valid_len: Tensor | None = None,
    reduction: Literal["mean", "sum"] = "mean",
    backend: str = "auto",
) -> Tensor: ...
@overload
def multi_queue_infonce(
    queries: Rows,
    positives: Rows,
    queues: Sequence[Tensor],
    queue_index: Sequence[int],
    *,
    temperature: float | Sequence[float] | Tensor = 0.1,
    valid_len: Tensor | None = None,
    reduction: Literal["none"],
    backend: str = "auto",
) -> list[Tensor]: ...
@overload
def multi_queue_infonce(
    queries: Rows,
    positives: Rows,
    queues: Sequence[Tensor],
    queue_index: Sequence[int],
    *,
    temperature: float | Sequence[float] | Tensor = 0.1,
    valid_len: Tensor | None = None,
    reduction: str,
    backend: str = "auto",
) -> Tensor | list[Tensor]: ...
def multi_queue_infonce(
    queries: Rows,
    positives: Rows,
    queues: Sequence[Tensor],
    queue_index: Sequence[int],
    *,
    temperature: float | Sequence[float] | Tensor = 0.1,
    valid_len: Tensor | None = None,
    reduction: str = "mean",
    backend: str = "auto",
) -> Tensor | list[Tensor]:
    """InfoNCE of T terms, each of which contrasts its queries with its positives and with the keys of one queue.

    The loss of a row is -log( e^{q.k/tau} / (e^{q.k/tau} + sum_j e^{q.queue_j/tau}) ). Rows of terms that share a queue
    are processed together, and the N x K logits never exist (except in the reference backend). The same bits on every
    run and for any number of threads. Works under torch.compile and torch.func. Under autocast queries and positives
    are converted like the input of a loss on a CPU (float32) and of a matrix product on a GPU (float16).

    Args:
        queries: T tensors [N_t, D], or one tensor [T, N, D]; float16, bfloat16, float32 or float64. Usually unit rows.
        positives: the same shapes and dtype as queries; row n belongs to query n.
        queues: Q tensors [K_q, D], K_q >= 1, of one dtype, which may differ from that of queries (float64 goes with
            float64 only). They receive no gradient, and must not require one. Any strides: `queue.T` of a queue that
            lies in memory as [D, K] is read in place on a CPU and by "cuda"; "triton" makes one copy of it.
        queue_index: T integers in [0, Q), the queue of each term.
        temperature: tau, a positive number, T numbers, or a floating tensor [T] or [], which may require a gradient.
        valid_len: None, or [Q] int64 on the device of the queues, whose values a captured graph reads anew: only the
            first valid_len[q] keys of queue q count, the others may be NaN. 0 gives a loss of 0 without gradients.
        reduction: "mean" or "sum" over the rows of a term, or "none".
        backend: "auto", or a name from `mixfast.backends()`, which then runs or raises.

    Returns:
        [T] for "mean" and "sum"; a list of T tensors [N_t] for "none". float32, or float64 for float64.
        Differentiable with respect to queries, positives and temperature. A second derivative raises
        NotImplementedError, except in the reference backend.

    Raises:
        TypeError, ValueError: an argument of the wrong kind, dtype, shape or device; on the CPU also an entry
            of a temperature tensor that is not positive, or of valid_len outside [0, K_q]. A GPU would have to wait for
            these values: there valid_len is clamped, and a temperature is taken as it is.
        RuntimeError: the named backend cannot run this call.
        NotImplementedError: vmap over the operation, a second derivative, one in forward mode with respect to queues,
            or torch.func.grad, jvp and the like inside of torch.compile.
    """
    if in_autocast():
        queries, positives = autocast_rows(queries), autocast_rows(positives)
    rows = _checks.check_rows(queries, positives)
    queue_dtype = _checks.check_queues(queues, rows)
    _checks.check_queue_index(queue_index, len(rows.counts), len(queues))
    temperature = _checks.check_temperature(temperature, rows)
    _checks.check_valid_len(valid_len, len(queues), rows)
    _checks.check.reduction(reduction)
    device_type = rows.device.type
    chosen = _dispatch.choose(NAME, backend, device_type, rows.dtype, queue_dtype, _dispatch.constant_dim(rows.dim))
    if chosen == "reference":
        _operators.check_tensor_values(valid_len, temperature, queues)
        losses = reference.losses(queries, positives, queues, queue_index, valid_len, temperature, reduction)
    else:
        losses = _operators.losses(queries, positives, queues, queue_index, valid_len, temperature, reduction, chosen)
    return list(losses.split_with_sizes(rows.counts)) if reduction == "none" else losses
