"""Pooling for detection code and transformers: their boxes and tokens in the form that the operations take."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from mixfast.models.heads import weighted_means
from mixfast.ops import region_weights


def pool_boxes(
    features: Tensor, boxes: Tensor | Sequence[Tensor], image_size: tuple[int, int]
) -> tuple[Tensor, Tensor]:
    """`masked_upsample_pool` of several boxes in each image, without copies of the features.

    The result for a box is that of `masked_upsample_pool` for its image and the box rounded to whole pixels. A side
    that rounds to 0 although it is positive becomes the one pixel that contains its centre.

    Args:
        features: [B, C, h, w], float16, bfloat16, float32 or float64.
        boxes: B tensors [M_i, 4], as the "boxes" of torchvision's detection targets, or one tensor [B, M, 4]; floats or
            integers (x0, y0, x1, y1) in pixels of the images, inside of them. Receives no gradient. M_i may be 0; an
            empty box, such as the zeros that fill up [B, M, 4], gives zeros inside.
        image_size: (H, W) in pixels, of all images: the padded size of a batch of torchvision's detectors.

    Returns:
        (inside, outside) in the dtype of features: [B, M, C] each; for a list [sum M_i, C], the boxes of image 0 first,
        as torchvision.ops.roi_align returns them.

    Raises:
        TypeError, ValueError: boxes of another shape or number, or as `region_weights` raises them; on the CPU also a
            box that is inverted or leaves the image.
    """
    batch, channels, height, width = features.shape
    shapes = [boxes.shape[1:]] if isinstance(boxes, Tensor) else [rows.shape for rows in boxes]
    if len(boxes) != batch or any(len(shape) != 2 or shape[1] != 4 for shape in shapes):
        received = list(boxes.shape) if isinstance(boxes, Tensor) else [list(shape) for shape in shapes]
        raise ValueError(
            f"pool_boxes: boxes must be {batch} tensors [M_i, 4], as many as images, or [{batch}, M, 4]; "
            f"got {received}."
        )
    rows = boxes if isinstance(boxes, Tensor) else pad_sequence(list(boxes), batch_first=True)  # [B, M, 4]
    dtype = torch.float64 if features.dtype == torch.float64 else torch.float32
    weights = region_weights(_whole_pixels(rows).flatten(0, 1), image_size, (height, width), dtype=dtype)
    weights = weights.view(batch, -1, height * width)  # [B, 2 M, h w]
    sides = weighted_means(features, weights).view(batch, -1, 2, channels)  # [B, M, 2, C]
    if not isinstance(boxes, Tensor):
        with torch.autocast(features.device.type, enabled=False):  # on a CPU, cat under autocast does not take float16
            sides = torch.cat([image[: len(image_boxes)] for image, image_boxes in zip(sides, boxes, strict=True)])
    inside, outside = sides.unbind(-2)
    return inside, outside


def _whole_pixels(boxes: Tensor) -> Tensor:
    """Boxes [..., 4] in whole pixels, int64."""
    if not boxes.is_floating_point():
        return boxes.long()
    low, high = boxes.detach().unflatten(-1, (2, 2)).unbind(-2)  # [..., 2]: x, y
    thin = (low.round() == high.round()) & (low < high)
    pixel = ((low + high) / 2).floor()
    corners = torch.where(thin, pixel, low.round()), torch.where(thin, pixel + 1, high.round())
    return torch.cat(corners, dim=-1).long()


def token_map(tokens: Tensor, grid: tuple[int, int] | None = None, prefix: int = 1) -> Tensor:
    """The patch tokens of a transformer as a feature map, which the pooling operations take.

    Args:
        tokens: [B, prefix + h w, C], the patches row by row.
        grid: (h, w); None: a square.
        prefix: number of tokens before the patches, which are omitted: 1 for a class token, more with registers.

    Returns:
        [B, C, h, w], a view.

    Raises:
        ValueError: the number of tokens does not fit.
    """
    count = tokens.shape[1] - prefix
    height, width = (math.isqrt(max(count, 0)),) * 2 if grid is None else grid
    if tokens.ndim != 3 or count < 1 or height * width != count:
        expected = "a square number of patches" if grid is None else f"{height} x {width} patches"
        raise ValueError(
            f"token_map: tokens must be [B, {prefix} + h w, C] with {expected}; got {list(tokens.shape)}. Give "
            "grid=(h, w) and the number of tokens before the patches as prefix."
        )
    return tokens[:, prefix:].transpose(1, 2).unflatten(2, (height, width))
