"""Region vectors: boxes of an image, the inside and outside of a box, through a linear head of their own."""

import torch
from torch import nn

from mixfast.methods.bases.options import check_option
from mixfast.models import Encoder
from mixfast.models.heads import box_vectors, region_vectors
from mixfast.models.initialise import initialise_

__all__ = ["box_vectors", "build_region_head", "region_vectors"]


def build_region_head(encoder: Encoder, layer: int | None, generator: torch.Generator) -> nn.Linear:
    """A linear layer from the channels of a map of `encoder` to the size of its embedding.

    Args:
        layer: whose map it reads, 1 is the first; None: the last.
        generator: draws the weights, which live on its device.

    Raises:
        ConfigError: the encoder has no such layer.
    """
    last = encoder.layers
    chosen = last if layer is None else layer
    check_option(1 <= chosen <= last, "region_layer", f"in 1 ... {last} for this backbone", chosen)
    head = nn.Linear(encoder.backbone.channels[chosen - 1], encoder.dim, device=generator.device)
    initialise_(head, generator)
    return head
