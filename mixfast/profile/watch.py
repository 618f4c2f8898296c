"""Finer parts than the loop's own laps: the functions that a step calls are replaced while it is watched.

Training itself knows nothing of this and pays nothing for it. A function is replaced wherever a module holds it, so a
method from elsewhere is seen as well; what no entry names stays in the lap around it.
"""

import functools
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch

from mixfast.losses import infonce_sum, minus_cosine, nt_xent_sum
from mixfast.methods.byol import BYOL
from mixfast.methods.byol_unmix import BYOLUnMix
from mixfast.models import Encoder
from mixfast.models.ema import update_ema_
from mixfast.models.heads import region_vectors
from mixfast.models.shuffle import encode_shuffled
from mixfast.run.clock import Clock
from mixfast.run.engine import check_finite
from mixfast.run.log import Meter
from mixfast.run.monitor import record
from mixfast.run.state import Run

QUERY, KEY, BACKWARD = "query forward", "key forward", "backward"  # the parts that the bare encoder has too
RECORD = "record"  # what happens once per record, not at every step
Name = str | Callable[[], str]


def forward() -> str:
    """The part of an encoder pass: queries and online networks have a gradient, keys and targets none."""
    return QUERY if torch.is_grad_enabled() else KEY


FUNCTIONS: tuple[tuple[Callable[..., Any], str], ...] = (
    (encode_shuffled, "shuffle"),  # less the encoder pass inside it; so everywhere
    (region_vectors, "pooling"),
    (infonce_sum, "losses"),
    (nt_xent_sum, "losses"),
    (minus_cosine, "losses"),
    (update_ema_, "EMA"),
    (check_finite, RECORD),
    (record, RECORD),
)
MEMBERS: tuple[tuple[type, str, Name], ...] = (
    (Encoder, "__call__", forward),
    (Encoder, "pool", forward),
    (BYOL, "predict", "heads"),
    (BYOLUnMix, "predict", "heads"),
    (Run, "views", "augment"),
    (Meter, "add", "logging"),
)


@contextmanager
def watched(run: Run, clock: Clock) -> Iterator[None]:
    """Within the block the run's laps go to `clock`, and so do the parts inside them."""

    def timed(function: Callable[..., Any], name: Name) -> Callable[..., Any]:
        @functools.wraps(function)
        def call(*args: Any, **kwargs: Any) -> Any:
            with clock.inside(name if isinstance(name, str) else name()):
                return function(*args, **kwargs)

        return call

    kind = type(run.method)
    mix = kind.views

    def views(self: Any, images: Any, augment: Callable[..., Any], generators: Any) -> Any:
        with clock.inside("mix"):
            return mix(self, images, timed(augment, "augment"), generators)

    with ExitStack() as undo:
        for function, part in FUNCTIONS:
            _replace_everywhere(undo, function, timed(function, part))
        for owner, attribute, name in MEMBERS:
            _replace(undo, owner, attribute, timed(getattr(owner, attribute), name))
        _replace(undo, kind, "views", views)
        _replace(undo, run, "clock", clock)
        yield


def _replace_everywhere(undo: ExitStack, function: Callable[..., Any], by: Callable[..., Any]) -> None:
    for module in list(sys.modules.values()):
        for name, value in list(getattr(module, "__dict__", {}).items()):
            if value is function:
                _replace(undo, module, name, by)


def _replace(undo: ExitStack, owner: Any, name: str, by: Any) -> None:
    if name in vars(owner):
        undo.callback(setattr, owner, name, vars(owner)[name])
    else:  # inherited
        undo.callback(delattr, owner, name)
    setattr(owner, name, by)


class Ledger(Clock):
    """A clock that keeps what its records have read.

    Args:
        device: where the steps run.
        busy: on a CPU count the processor's seconds for this process, not the wall's: of use beside other processes.
    """

    def __init__(self, device: torch.device, busy: bool = False):
        self._busy = busy and device.type == "cpu"
        super().__init__(device)
        self._kept: dict[str, float] = {}

    def _now(self) -> Any:
        return time.process_time() if self._busy else super()._now()

    def seconds(self) -> dict[str, float]:
        parts = super().seconds()
        for name, value in parts.items():
            self._kept[name] = self._kept.get(name, 0.0) + value
        return parts

    def drain(self) -> dict[str, float]:
        """Seconds by part since the last call of this method."""
        self.seconds()
        parts, self._kept = self._kept, {}
        return parts
