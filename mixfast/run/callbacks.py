"""Functions of the calling program that a training calls between two steps."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from torch import nn


class Moment(NamedTuple):
    """The argument of a callback: the position in the training, and the newest values.

    `encoder` is the network in training, not a copy: a callback may read it, but must not change its weights or mode.
    It must not draw from torch's global generator either, but from a generator of its own.
    """

    step: int  # optimiser steps done
    steps: int  # of the whole run
    epoch: int  # epochs done
    epochs: int  # of the whole run
    # after a step: the loss and its terms, float scalars on the device, whose computation may not have ended; after an
    # epoch or an evaluation: the line of metrics.jsonl, numbers and texts
    values: dict[str, Any]
    encoder: nn.Module  # images [B, 3, H, W] -> h [B, C] and z [B, D]
    folder: Path  # of the run


Callback = Callable[[Moment], object]


@dataclass(frozen=True)
class Callbacks:
    """Functions that the training calls, or None. An error in a callback ends the training after the state is saved."""

    step: Callback | None = None  # after every optimiser step
    epoch: Callback | None = None  # after every epoch, when it is evaluated and saved
    evaluation: Callback | None = None  # after every evaluation, including baselines and diagnostics

    def for_kind(self, kind: str) -> Callback | None:
        """The callback for records of a kind: "epoch", or the kind of an evaluation."""
        return self.epoch if kind == "epoch" else self.evaluation
