"""Heads: from a backbone's features to the embedding in which vectors are compared."""

import torch
from torch import Tensor, nn

from mixfast.losses import unit
from mixfast.ops import masked_upsample_pool


def build_head(kind: str, in_features: int, dim: int) -> nn.Module:
    """ "linear": one layer. "mlp": in_features, ReLU, dim. No batch norm in either."""
    if kind == "linear":
        return nn.Linear(in_features, dim)
    return nn.Sequential(nn.Linear(in_features, in_features), nn.ReLU(), nn.Linear(in_features, dim))


def region_vectors(features: Tensor, boxes: Tensor, size: tuple[int, int], head: nn.Module) -> tuple[Tensor, Tensor]:
    """Unit vectors of the part of each image inside its box and of the part outside.

    Equals: 1x1 convolution by `head`, bilinear upsampling to `size`, masked means, normalisation. `head` is affine
    and the pooling weights of a region sum to 1, so the two commute: pooling comes first and `head` sees [B, C].

    Args:
        features: [B, C, h, w] map.
        boxes: integer [B, 4], (x0, y0, x1, y1) in pixels of `size`, half-open.
        size: (H, W) of the image.
        head: C to D, affine.

    Returns:
        (inside, outside): [B, D] each, float32, unit rows.
    """
    inside, outside = masked_upsample_pool(features, boxes, size)
    vectors = unit(head(torch.cat([inside, outside])))
    return vectors[: len(boxes)], vectors[len(boxes) :]
