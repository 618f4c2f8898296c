"""Writing new keys over the oldest of several ring queues: one call, and on a GPU one launch, for all of them."""

from collections.abc import Sequence

import torch
from torch import Tensor

from mixfast.ops import _dispatch
from mixfast.ops.enqueue import _checks, _operators, reference

NAME = "enqueue"


def enqueue_(
    queues: Sequence[Tensor],
    keys: Sequence[Tensor],
    pointers: Sequence[Tensor] | Tensor,
    *,
    normalize: bool = True,
    backend: str = "auto",
) -> None:
    """Writes the rows of each keys[q] over those of queues[q], from its ring pointer on, and moves the pointer.

    Row i of keys[q] goes to row (pointer + i) mod K_q of the queue, divided by its length (at least 1e-12) if
    `normalize`, and converted to the queue's dtype; the pointer then is (pointer + B_q) mod K_q. Pointers stay on the
    device, so nothing waits for it and a captured graph goes on to the next place at every replay. In place: it changes
    `queues` and `pointers`, under torch.compile too. Whatever reads the queues in the same step must have done so.

    Args:
        queues: Q contiguous tensors [K_q, D] of one dtype, float16, bfloat16, float32 or float64, without gradient.
        keys: Q tensors [B_q, D] of one dtype, which may differ from the queues'; B_q <= K_q. No gradient passes.
        pointers: int64 tensor [Q], or Q tensors [], on the same device; entries in [0, K_q).
        normalize: whether rows are divided by their lengths, in float32 (float64 for float64 keys).
        backend: "auto", or a name from `mixfast.backends()`, which then runs or raises.

    Raises:
        TypeError, ValueError: an argument of the wrong kind, dtype, shape, layout or device.
        RuntimeError: the named backend cannot run this call.
        NotImplementedError: vmap over the operation.
    """
    _checks.check_queues(queues)
    _checks.check_keys(keys, queues)
    _checks.check_pointers(pointers, queues)
    chosen = _dispatch.choose(NAME, backend, queues[0].device.type, keys[0].dtype, queues[0].dtype)
    run = reference.enqueue if chosen == "reference" else _operators.enqueue
    places = [pointers] if isinstance(pointers, Tensor) else list(pointers)
    with torch.no_grad():
        run(list(queues), [rows.detach() for rows in keys], places, bool(normalize), chosen)
