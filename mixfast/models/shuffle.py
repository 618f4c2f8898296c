"""Shuffle BN: encode keys in another order than queries, so that batch statistics cannot identify a positive."""

from functools import cached_property

import torch
from torch import Tensor

from mixfast.models.encoder import Encoder, Encoding
from mixfast.spans import span
from mixfast.world import World, current


@span("shuffle")
@torch.no_grad()
def encode_shuffled(
    encoder: Encoder, images: Tensor, generator: torch.Generator, layer: int | None = None
) -> "Encoding | ShuffledEncoding":
    """`encoder(images, layer)` without gradient, run on a random order of the images [B, 3, H, W].

    The order is drawn from `generator`, on the device of the images; the output has the order of the input.

    With several batch-norm groups a query and its key would otherwise share a group, and the network could solve the
    task through the group's statistics (MoCo, section 3.3).
    """
    world = current()
    count = world.size * len(images)
    order = torch.rand(count, dtype=torch.float32, generator=generator, device=generator.device).argsort()
    inverse = order.argsort()
    if world.size > 1:
        layout = torch.channels_last if images.is_contiguous(memory_format=torch.channels_last) else None
        shuffled = world.permuted(images, order).contiguous(memory_format=layout or torch.contiguous_format)
        return ShuffledEncoding(encoder(shuffled, layer), inverse, world)
    z, h, features = encoder(images[order], layer)
    return Encoding(z[inverse], h[inverse], features[inverse])


class ShuffledEncoding:
    """An `Encoding` of rows of other processes; when a field is first read, the processes exchange it for their own
    rows."""

    def __init__(self, encoding: Encoding, inverse: Tensor, world: World):
        """
        Args:
            encoding: of the rows that this process has encoded.
            inverse: int64 [B], the position of each row in the shuffled batch.
            world: the processes.
        """
        self._encoding, self._inverse, self._world = encoding, inverse, world

    def _unshuffled(self, values: Tensor) -> Tensor:
        return self._world.permuted(values, self._inverse)

    @cached_property
    def z(self) -> Tensor:
        return self._unshuffled(self._encoding.z)

    @cached_property
    def h(self) -> Tensor:
        return self._unshuffled(self._encoding.h)

    @cached_property
    def map(self) -> Tensor:
        return self._unshuffled(self._encoding.map)
