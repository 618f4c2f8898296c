"""What methods with a momentum encoder and queues share: the follower, the queues, and when they move."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from mixfast.errors import ConfigError
from mixfast.losses import Term, infonce_sum, unit
from mixfast.methods.bases.method import Method, Step
from mixfast.models import Encoder
from mixfast.models.ema import follower, update_ema_
from mixfast.models.queue import FeatureQueue, push_all_
from mixfast.models.shuffle import encode_shuffled
from mixfast.rng import Generators


@dataclass(frozen=True)
class MomentumConfig:
    temperature: float = 0.1  # cosines are divided by it
    queue_size: int = 4096  # past keys in each queue; a multiple of the batch (twice the batch if symmetric)
    ema: float = 0.99  # share of the key encoder that survives one step
    symmetric: bool = False  # add the same loss with the two views' roles exchanged; doubles the cost

    def __post_init__(self) -> None:
        check(self.temperature > 0, "temperature", "above 0", self.temperature)
        check(self.queue_size >= 1, "queue_size", "at least 1", self.queue_size)
        check(0 <= self.ema <= 1, "ema", "in [0, 1]", self.ema)


def check(holds: bool, name: str, expected: str, got: object) -> None:
    """Raise ConfigError for option `name` of a method unless `holds`."""
    if not holds:
        raise ConfigError(f"method.{name} must be {expected}; got {got!r}")


class MomentumMethod(Method):
    """Query encoder, key encoder that follows it, and one queue of `queue_size` keys per name in `queue_names`."""

    def __init__(
        self,
        config: Any,
        make_encoder: Callable[[], Encoder],
        generators: Generators,
        queue_names: Iterable[str],
    ):
        super().__init__(config, make_encoder, generators)
        self.encoder = make_encoder()
        self.key_encoder = follower(self.encoder)
        dim = self.encoder.dim
        self.queues = nn.ModuleDict(
            {name: FeatureQueue(dim, config.queue_size, generators["queue"]) for name in queue_names}
        )

    @classmethod
    def check(cls, config: Any, batch: int) -> None:
        rows = batch * (2 if config.symmetric else 1)
        if config.queue_size % rows:
            raise ConfigError(
                f"method.queue_size must be a multiple of the {rows} keys enqueued per step (the batch of {batch}"
                f"{', both views as method.symmetric is set' if config.symmetric else ''}); got {config.queue_size}. "
                f"{max(1, round(config.queue_size / rows)) * rows} would do."
            )

    @classmethod
    def candidates(cls, config: Any, batch: int) -> int:
        return 1 + int(config.queue_size)

    def begin(self, progress: Tensor) -> None:
        """Move the key encoder, before the forward passes of the step (as in MoCo's code)."""
        update_ema_(self.key_encoder, self.encoder, self.config.ema)

    def update(self, carry: dict[str, Tensor]) -> None:
        """Enqueue this step's keys. Earlier, a query would meet its own positive among its negatives."""
        if carry:
            push_all_([self._queue(name) for name in carry], list(carry.values()))

    def directions(self) -> list[tuple[str, str, str]]:
        """(suffix of the terms' names, view of the queries, view of the keys) of each direction of the loss."""
        return [("", "query", "key"), ("_swapped", "key", "query")][: 2 if self.config.symmetric else 1]

    def query(self, view: Tensor) -> Tensor:
        """Unit embeddings [B, D] of a view [B, 3, H, W], with gradient."""
        return unit(self.encoder(view).z)

    def key(self, view: Tensor, generator: torch.Generator) -> Tensor:
        """The same by the key encoder, in shuffled order and without gradient."""
        return unit(encode_shuffled(self.key_encoder, view, generator).z)

    def total(self, terms: Sequence[Term], keys: Sequence[Mapping[str, Tensor]], lam: Tensor | None = None) -> Step:
        """The step's result, from its terms and what every direction enqueues by queue; lam [B] is for the log."""
        loss, parts = infonce_sum(terms, self.negatives(), self.config.temperature)
        if lam is not None:
            parts["lam"] = lam.mean()
        return Step(loss, parts, {name: torch.cat([side[name] for side in keys]) for name in self.queues}, terms)

    def negatives(self) -> dict[str, Tensor]:
        """Each queue's keys [K, D], by name."""
        return {name: self._queue(name).keys for name in self.queues}

    def _queue(self, name: str) -> FeatureQueue:
        queue = self.queues[name]
        assert isinstance(queue, FeatureQueue)
        return queue
