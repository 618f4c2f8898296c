"""When a backend may be called directly. The way through torch's dispatcher costs 8 microseconds more, each time."""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

_PLAIN = {Tensor, nn.Parameter}
_KEYS = torch._C.DispatchKey
_ALWAYS = torch._C.DispatchKeySet(_KEYS.BackendSelect).raw_repr()
# What torch's dispatcher includes in every call: this, outside and inside of inference mode, unless something is on.
NOTHING_ON = {_ALWAYS, _ALWAYS | torch._C.DispatchKeySet(_KEYS.ADInplaceOrView).raw_repr()}
included = torch._C._dispatch_tls_local_include_set


def nothing_on() -> bool:
    """Whether nothing is traced, transformed or watched: torch.compile, torch.func, batched gradients, a mode that sees
    every operator."""
    return not torch.compiler.is_compiling() and included().raw_repr() in NOTHING_ON


def is_plain(tensors: Iterable[Tensor]) -> bool:
    """Whether all that an operator would do for these tensors is to call its backend.

    It does more while something is on, and for tensors that are no plain memory: those of a subclass, and lazily
    negated ones.
    """
    if not nothing_on():
        return False
    for tensor in tensors:  # noqa: SIM110  all() of a generator would take twice the time
        if type(tensor) not in _PLAIN or tensor.is_neg():
            return False
    return True


def plain_apply(function: type[torch.autograd.Function]) -> Callable[..., Any]:
    """`function.apply` for calls with `nothing_on`: less its look at the arguments for what torch.func has wrapped."""
    return super(torch.autograd.Function, function).apply  # type: ignore[misc, no-any-return]
