"""When a backend may be called directly. The way through torch's dispatcher costs 8 microseconds more, each time."""

from collections.abc import Iterable

import torch
from torch import Tensor, nn

_PLAIN = {Tensor, nn.Parameter}
_KEYS = torch._C.DispatchKey
_ALWAYS = torch._C.DispatchKeySet(_KEYS.BackendSelect).raw_repr()
# What torch's dispatcher includes in every call: this, outside and inside of inference mode, unless something is on.
_NOTHING_ON = {_ALWAYS, _ALWAYS | torch._C.DispatchKeySet(_KEYS.ADInplaceOrView).raw_repr()}


def is_plain(tensors: Iterable[Tensor]) -> bool:
    """Whether all that an operator would do for these tensors is to call its backend.

    It does more while something is traced, transformed or watched (torch.compile, torch.func, batched gradients, a mode
    that sees every operator), and for tensors that are no plain memory: those of a subclass, and lazily negated ones.
    """
    if torch.compiler.is_compiling() or torch._C._dispatch_tls_local_include_set().raw_repr() not in _NOTHING_ON:
        return False
    for tensor in tensors:  # noqa: SIM110  all() of a generator would take twice the time
        if type(tensor) not in _PLAIN or tensor.is_neg():
            return False
    return True
