"""Heads: from a backbone's features to the embedding in which vectors are compared."""

from typing import Literal

import torch
from torch import Tensor, nn

from mixfast.losses import unit
from mixfast.models.split_bn import BatchNorm1d
from mixfast.ops import masked_upsample_pool, region_weights
from mixfast.spans import span

Head = Literal["linear", "mlp", "mlp_bn", "mlp_bn2"]


def build_head(kind: Head, in_features: int, dim: int, hidden: int | None = None) -> nn.Module:
    """A projector of features [B, in_features] to [B, dim].

        linear     Linear
        mlp        Linear, ReLU, Linear
        mlp_bn     Linear, BN, ReLU, Linear         projector and predictor of BYOL
        mlp_bn2    Linear, BN, ReLU, Linear, BN     projector of SimCLR

    The batch norms are ordinary ones over the whole batch; a layer before one has no bias, as the norm would remove it.

    Args:
        kind: one of the above.
        in_features, dim: sizes of input and output.
        hidden: size of the layer between; `in_features` if None.
    """
    width = in_features if hidden is None else hidden
    if kind == "linear":
        return nn.Linear(in_features, dim)
    if kind == "mlp":
        return nn.Sequential(nn.Linear(in_features, width), nn.ReLU(), nn.Linear(width, dim))
    layers = [nn.Linear(in_features, width, bias=False), BatchNorm1d(width), nn.ReLU()]
    if kind == "mlp_bn":
        return nn.Sequential(*layers, nn.Linear(width, dim))
    return nn.Sequential(*layers, nn.Linear(width, dim, bias=False), BatchNorm1d(dim))


@span("pooling")
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


@span("pooling")
def box_vectors(features: Tensor, boxes: Tensor, size: tuple[int, int], head: nn.Module) -> Tensor:
    """Unit vectors of M boxes of each image, as `region_vectors` computes that of the inside of one box.

    Args:
        features: [B, C, h, w] map, which is read once for all boxes.
        boxes: integer [B, M, 4], (x0, y0, x1, y1) in pixels of `size`, half-open. An empty box gives unit(head(0)).
        size: (H, W) of the image.
        head: C to D, affine.

    Returns:
        [B, M, D], float32, unit rows.
    """
    batch, count = boxes.shape[:2]
    dtype = torch.promote_types(features.dtype, torch.float32)
    map_size = (features.shape[2], features.shape[3])
    weights = region_weights(boxes.flatten(0, 1), size, map_size, dtype=dtype)  # [B M, 2, h, w]
    means = weighted_means(features, weights[:, 0].reshape(batch, count, -1))
    return unit(head(means.flatten(0, 1))).view(batch, count, -1)


def weighted_means(features: Tensor, weights: Tensor) -> Tensor:
    """Means of each map by several sets of weights, by one product that reads the map once.

    Args:
        features: [B, C, h, w] map.
        weights: [B, R, h w], float32 or float64, in which the sums are taken.

    Returns:
        [B, R, C] in the dtype of features.
    """
    with torch.autocast(features.device.type, enabled=False):  # autocast would round the weights to 16 bits
        return torch.bmm(weights, features.flatten(2).transpose(1, 2).to(weights.dtype)).to(features.dtype)
