"""Checks of methods' options: each names the option, what was expected and what came."""

from typing import Any

from mixfast.errors import ConfigError


def check_option(holds: bool, name: str, expected: str, value: object) -> None:
    """Raise ConfigError unless `holds`: the method's option `name` must be `expected`, and is `value`."""
    if not holds:
        raise ConfigError(f"method.{name} must be {expected}; got {value!r}")


def keys_per_step(config: Any, batch: int) -> int:
    """Keys that an optimiser step of `batch` images enqueues: both views' if `config.symmetric` is set."""
    return batch * (2 if getattr(config, "symmetric", False) else 1)


def check_queue_size(config: Any, batch: int) -> None:
    """Raise ConfigError unless the keys of one optimiser step divide `config.queue_size`.

    Args:
        config: with `queue_size`, and with `symmetric` if both views can be keys.
        batch: images per optimiser step.
    """
    symmetric, rows = getattr(config, "symmetric", False), keys_per_step(config, batch)
    if config.queue_size % rows:
        raise ConfigError(
            f"method.queue_size must be a multiple of the {rows} keys enqueued per step (the batch of {batch}"
            f"{', both views as method.symmetric is set' if symmetric else ''}); got {config.queue_size}. "
            f"{max(1, round(config.queue_size / rows)) * rows} would do."
        )
