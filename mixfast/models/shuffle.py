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
) -> "Encoding | Returning":
    """`encoder(images, layer)` without gradient, run on a random order of the images [B, 3, H, W].

    The order is drawn from `generator`, on the device of the images; the output has the order of the input.

    With several batch-norm groups a query and its key would otherwise share a group, and the network could solve the
    task through the group's statistics (MoCo, section 3.3).
    """
    here = current()
    count = here.size * len(images)
    order = torch.rand(count, dtype=torch.float32, generator=generator, device=generator.device).argsort()
    back = order.argsort()
    if here.size > 1:
        layout = torch.channels_last if images.is_contiguous(memory_format=torch.channels_last) else None
        away = here.permuted(images, order).contiguous(memory_format=layout or torch.contiguous_format)
        return Returning(encoder(away, layer), back, here)
    z, h, features = encoder(images[order], layer)
    return Encoding(z[back], h[back], features[back])


class Returning:
    """An `Encoding` of rows that other processes own; a field is exchanged for that of the own rows when it is read."""

    def __init__(self, away: Encoding, back: Tensor, world: World):
        """
        Args:
            away: what this process has encoded.
            back: int64 [B], where in the shuffled batch each row is.
            world: the processes.
        """
        self._away, self._back, self._world = away, back, world

    def _home(self, values: Tensor) -> Tensor:
        return self._world.permuted(values, self._back)

    @cached_property
    def z(self) -> Tensor:
        return self._home(self._away.z)

    @cached_property
    def h(self) -> Tensor:
        return self._home(self._away.h)

    @cached_property
    def map(self) -> Tensor:
        return self._home(self._away.map)
