"""The interface of a method: `Method`, and `Step`, the result of one training step."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from mixfast.augment import Augment
from mixfast.losses import Term
from mixfast.models import Encoder
from mixfast.rng import Generators


@dataclass(frozen=True)
class Step:
    """Result of one training step."""

    loss: Tensor  # scalar to differentiate
    parts: dict[str, Tensor]  # detached scalars for the log, on the device
    carry: dict[str, Tensor]  # [n, ...] each: what `Method.update` takes once the gradient has been computed
    terms: Sequence[Term] = ()  # of a loss with queues: for diagnostics, and their weights
    weight: float = 1.0  # of a loss without `terms`: the sum of its terms' weights

    def total_weight(self) -> Tensor:
        """The sum of the terms' weights, a float32 scalar on the device; per-row weights count with their mean.

        loss / total_weight is the weighted mean of the terms, the number that is printed beside the chance level.
        """
        total = torch.zeros((), dtype=torch.float32, device=self.loss.device)
        for weight in [term.weight for term in self.terms] or [self.weight]:
            total = total + (weight.detach().mean() if isinstance(weight, Tensor) else weight)
        return total


class Method(nn.Module):
    """A self-supervised method. A file that defines a subclass and names it METHOD is all it takes to add one.

    The training loop calls, per optimiser step: `begin`; then for each (micro-)batch `views`, `step` and backward of
    the loss; then the optimiser, and `update` with the carries of all micro-batches, concatenated along dimension 0.
    None of them waits for the device. `state_dict()` holds all state but the generators.

    Args:
        config: options of the method, an instance of its `Config`.
        make_encoder: makes a new encoder.
        generators: the run's named random generators.
    """

    Config: type[Any]  # frozen dataclass of the method's options
    summary: str  # one line for lists and help

    encoder: Encoder  # the trained network: what evaluation uses and what is exported

    def __init__(self, config: Any, make_encoder: Callable[[], Encoder], generators: Generators):
        """Build the networks on `generators.device`; draw from generators["weights"] and ["queue"]."""
        super().__init__()
        self.config = config

    @classmethod
    def check(cls, config: Any, batch: int) -> None:
        """Raise ConfigError if `config` cannot work with `batch` images per optimiser step."""

    @classmethod
    def follows_progress(cls, config: Any) -> bool:
        """Whether a step depends on the `progress` of `begin`: a run can then not be made longer or shorter."""
        return False

    @classmethod
    def candidates(cls, config: Any, batch: int) -> int | None:
        """The number of rows among which a contrastive term looks for its positive; None: the loss has no such term.

        For a network that gives every image the same vector each term is ln(candidates), the chance level.

        Args:
            batch: images per call of `step`.
        """
        return None

    def views(self, images: Tensor, augment: Augment, generators: Generators) -> dict[str, Tensor]:
        """Turn uint8 images [B, 3, H, W] into all inputs of `step`, without parameters; draws from generators["mix"].

        `augment(images, count=2)` makes `count` random, normalised float32 views of each image in one call: the first
        by the recipe of the first view, the others by that of the second (the same unless options say otherwise).
        `.crops` of the result holds the crops of the views, for `mixfast.augment.geometry`. The report shows entries of
        shape [B, 3, H, W]; the boxes of an entry "name" are int64 [B, 4] or [B, M, 4] under "boxes_name".
        """
        raise NotImplementedError

    def begin(self, progress: Tensor) -> None:
        """Called once before each optimiser step; networks that follow another by moving average move here.

        Args:
            progress: share of the run's optimiser steps that are done, in [0, 1), for schedules. A float64 scalar
                tensor on the device, which gets a new value before every step. Compute with it on the device, so that a
                step can be recorded as a CUDA graph. A method that reads it must return True in `follows_progress`.
        """

    def step(self, views: dict[str, Tensor], generators: Generators) -> Step:
        """The loss of these views. Changes nothing but batch-norm statistics; draws from generators["shuffle"]."""
        raise NotImplementedError

    def negatives(self) -> Mapping[str, Tensor]:
        """The keys [K, D] of each queue that the terms of a `Step` name."""
        return {}

    def update(self, carry: dict[str, Tensor]) -> None:
        """Move the queues; called after each optimiser step with the `carry` that `step` returned, [B, D] by name."""
