"""A ring of past keys: the negatives of InfoNCE."""

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

    @torch.no_grad()
    def push_(self, keys: Tensor) -> None:
        """Overwrite the oldest rows with `keys` [B, D]. Call it after the backward pass, which reads the queue."""
        size, rows = len(self.keys), len(keys)
        if rows == 0 or size % rows:
            raise ConfigError(f"FeatureQueue: its size must be a multiple of the rows pushed; got {size} and {rows}.")
        places = self.pointer + torch.arange(rows, device=self.pointer.device)
        self.keys.index_copy_(0, places, keys.to(self.keys.dtype))
        self.pointer.add_(rows).remainder_(size)
