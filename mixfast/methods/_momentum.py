"""What methods with a momentum encoder and queues share: the follower, the queues, and when they move."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from mixfast.errors import ConfigError
from mixfast.methods.base import Method
from mixfast.models import Encoder
from mixfast.models.ema import follower, update_ema_
from mixfast.models.queue import FeatureQueue
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

    def begin(self) -> None:
        """Move the key encoder, before the forward passes of the step (as in MoCo's code)."""
        update_ema_(self.key_encoder, self.encoder, self.config.ema)

    def update(self, carry: dict[str, Tensor]) -> None:
        """Enqueue this step's keys. Earlier, a query would meet its own positive among its negatives."""
        for name, keys in carry.items():
            self._queue(name).push_(keys)

    def negatives(self) -> dict[str, Tensor]:
        """Each queue's keys [K, D], by name."""
        return {name: self._queue(name).keys for name in self.queues}

    def _queue(self, name: str) -> FeatureQueue:
        queue = self.queues[name]
        assert isinstance(queue, FeatureQueue)
        return queue
