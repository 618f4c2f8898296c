"""The operator of enqueue_ as torch sees it: it changes its arguments and returns nothing."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from mixfast.ops import _dispatch
from mixfast.ops._register import LIBRARY, define, refuse_vmap

NAME = "enqueue"


def _enqueue(
    queues: Sequence[Tensor], keys: Sequence[Tensor], pointers: Sequence[Tensor], normalize: bool, backend: str
) -> None:
    places = list(pointers[0].unbind()) if pointers[0].ndim else list(pointers)
    rows = [each.contiguous() for each in keys]
    _dispatch.module(NAME, backend).enqueue(list(queues), rows, places, normalize)


def _enqueue_fake(
    queues: Sequence[Tensor], keys: Sequence[Tensor], pointers: Sequence[Tensor], normalize: bool, backend: str
) -> None:
    return None


# pointers are one tensor [Q], or Q tensors [].
enqueue = define(
    f"{NAME}_(Tensor(a!)[] queues, Tensor[] keys, Tensor(b!)[] pointers, bool normalize, str backend) -> ()",
    _enqueue,
    _enqueue_fake,
)
refuse_vmap(f"{NAME}_: vmap is not supported. Pass the mapped dimension as further queues.", enqueue)


def _count_versions(keyset: Any, queues: Sequence[Tensor], keys: Any, pointers: Sequence[Tensor], *rest: Any) -> None:
    """Autograd then notices that a queue which it has saved is no longer the same."""
    torch.autograd.graph.increment_version([*queues, *pointers])
    with torch._C._AutoDispatchBelowADInplaceOrView():
        enqueue.redispatch(keyset & torch._C._after_ADInplaceOrView_keyset, queues, keys, pointers, *rest)


LIBRARY.impl(f"{NAME}_", _count_versions, "ADInplaceOrView", with_keyset=True)
