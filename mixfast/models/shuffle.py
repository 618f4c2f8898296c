"""Shuffle BN: encode keys in another order than queries, so that batch statistics cannot identify a positive."""

import torch
from torch import Tensor

from mixfast.models.encoder import Encoder, Encoding
from mixfast.spans import span


@span("shuffle")
@torch.no_grad()
def encode_shuffled(encoder: Encoder, images: Tensor, generator: torch.Generator, layer: int | None = None) -> Encoding:
    """`encoder(images, layer)` without gradient, run on a random order of the batch; rows come back in place.

    With several batch-norm groups a query and its key would otherwise share a group, and the network could solve the
    task through the group's statistics (MoCo, section 3.3).
    """
    order = torch.rand(len(images), dtype=torch.float32, generator=generator, device=generator.device).argsort()
    back = order.argsort()
    z, h, features = encoder(images[order], layer)
    return Encoding(z[back], h[back], features[back])
