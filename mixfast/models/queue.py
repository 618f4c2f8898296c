"""A ring of past keys: the negatives of InfoNCE."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from mixfast.errors import ConfigError
from mixfast.losses import unit


class FeatureQueue(nn.Module):
    """The last `size` keys, oldest overwritten first; starts with random directions. Neither call waits for the device.

    Buffers: `keys` [K, D] float32 unit rows; `pointer` [] int64, the row that is written next.

    Args:
        dim: D.
        size: K; must be a multiple of the rows pushed at a time, so that a push never wraps.
        generator: draws the first keys; the buffers live on its device.
    """

    keys: Tensor
    pointer: Tensor

    def __init__(self, dim: int, size: int, generator: torch.Generator):
        super().__init__()
        noise = torch.randn(size, dim, generator=generator, device=generator.device)
        self.register_buffer("keys", unit(noise))
        self.register_buffer("pointer", torch.zeros((), dtype=torch.int64, device=generator.device))

    def push_(self, keys: Tensor) -> None:
        """Overwrite the oldest rows with `keys` [B, D]. Call it after the backward pass, which reads the queue."""
        push_all_([self], [keys])


@torch.no_grad()
def push_all_(queues: Sequence[FeatureQueue], keys: Sequence[Tensor]) -> None:
    """`push_` of keys[q] [B, D], unit rows, to queues[q]."""
    for queue, rows in zip(queues, keys, strict=True):
        size, count = len(queue.keys), len(rows)
        if count == 0 or size % count:
            raise ConfigError(f"FeatureQueue: its size must be a multiple of the rows pushed; got {size} and {count}.")
        rows_written = (queue.pointer + torch.arange(count, device=queue.pointer.device)).remainder(size)
        queue.keys.index_copy_(0, rows_written, rows.to(queue.keys.dtype))
        queue.pointer.add_(count).remainder_(size)
