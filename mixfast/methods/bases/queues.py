"""Rings of past keys: the negatives of InfoNCE."""

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, nn

from mixfast.errors import ConfigError
from mixfast.losses import unit


def key_dtype(device: torch.device) -> torch.dtype:
    """The dtype of keys that InfoNCE reads fastest on `device`.

    Within autocast on a GPU, InfoNCE casts queries to float16 and then reads keys of that type without conversion and
    in half the bytes. Everywhere else queries and keys are float32.
    """
    return torch.float16 if device.type == "cuda" and torch.is_autocast_enabled("cuda") else torch.float32


class Queues(nn.Module):
    """One queue per name; each holds the last `size` keys. All queues move together and share one pointer.

    Buffers: one [size, dim] per name, unit rows that start as random directions; `pointer` [] int64, the row that is
    written next. No call waits for the device, so a CUDA graph can record them.

    Args:
        names: names of the queues; none may be "pointer".
        dim: D, the length of a key.
        size: K, the number of keys in each queue; a multiple of the rows of one push.
        generator: draws the first keys, queue after queue; the buffers are on its device.
        dtype: dtype of the keys; None: `key_dtype` of the device. The trainer builds a method within its autocast.
    """

    pointer: Tensor

    def __init__(
        self, names: Iterable[str], dim: int, size: int, generator: torch.Generator, dtype: torch.dtype | None = None
    ):
        super().__init__()
        device = generator.device
        self.names = tuple(names)
        for name in self.names:
            keys = unit(torch.randn(size, dim, dtype=torch.float32, generator=generator, device=device))
            self.register_buffer(name, keys.to(key_dtype(device) if dtype is None else dtype))
        self.register_buffer("pointer", torch.zeros((), dtype=torch.int64, device=device))

    def keys(self) -> dict[str, Tensor]:
        """The keys [size, dim] of every queue, by name: the buffers themselves, which `push_` overwrites."""
        return {name: self.get_buffer(name) for name in self.names}

    @torch.no_grad()
    def push_(self, rows: Mapping[str, Tensor]) -> None:
        """Overwrite the oldest keys of every queue. Call it after the backward pass, which reads the queues.

        Args:
            rows: [n, dim] unit rows for every name, with the same n; they are converted to the dtype of the queues.

        Raises:
            ConfigError: other names than the queues', different n, or n does not divide the size.
        """
        if set(rows) != set(self.names):
            raise ConfigError(f"Queues: keys must come for {sorted(self.names)}; got {sorted(rows)}.")
        counts = {len(new) for new in rows.values()}
        size = len(self.get_buffer(self.names[0]))
        if len(counts) > 1 or 0 in counts or size % max(counts):
            raise ConfigError(
                f"Queues: the size must be a multiple of the rows pushed, as many for every queue; got the size {size} "
                f"and {', '.join(f'{len(new)} rows for {name}' for name, new in rows.items())}."
            )
        count = counts.pop()
        oldest = (self.pointer + torch.arange(count, device=self.pointer.device)).remainder(size)
        for name, new in rows.items():
            keys = self.get_buffer(name)
            keys.index_copy_(0, oldest, new.to(keys.dtype))
        self.pointer.add_(count).remainder_(size)
