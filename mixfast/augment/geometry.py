"""Where views show their images: boxes of a view as boxes of the image, boxes of the image as boxes of another view.

A box is float32 [..., 4], (x0, y0, x1, y1) in pixels of an image or of a view of `size` (H, W); borders of pixels are
whole numbers. A crop is float32 [..., 5], what `draw_views` says of a view's place: top, left, height and width in
pixels of the image, and 1 where the view is mirrored left and right. All of it is batched, without randomness, and
stays on the device; leading dimensions broadcast.
"""

import torch
from torch import Tensor

from mixfast.ops.views.reference import constant

__all__ = ["areas", "crop_boxes", "intersection", "to_image", "to_view", "whole_pixels"]


def crop_boxes(crops: Tensor) -> Tensor:
    """The boxes [..., 4] of the images that views with these crops [..., 5] show."""
    start = crops[..., :2].flip(-1)
    return torch.cat([start, start + crops[..., 2:4].flip(-1)], dim=-1)


def to_image(boxes: Tensor, crops: Tensor, size: tuple[int, int]) -> Tensor:
    """Boxes [..., 4] of views of `size` (H, W), cut out by crops [..., 5], as boxes of their images."""
    origin, step = _frame(crops, size)
    return _ordered(origin + step * boxes.unflatten(-1, (2, 2)))


def to_view(boxes: Tensor, crops: Tensor, size: tuple[int, int]) -> Tensor:
    """Boxes [..., 4] of images as boxes of their views; these may reach beyond the views.

    Args:
        boxes, crops, size: as in `to_image`.
    """
    origin, step = _frame(crops, size)
    return _ordered((boxes.unflatten(-1, (2, 2)) - origin) / step)


def intersection(first: Tensor, second: Tensor) -> Tensor:
    """The intersection of the boxes `first` and `second`, [..., 4] each; if empty, x0 >= x1 or y0 >= y1."""
    low, high = torch.maximum(first[..., :2], second[..., :2]), torch.minimum(first[..., 2:], second[..., 2:])
    return torch.cat([low, high], dim=-1)


def areas(boxes: Tensor) -> Tensor:
    """Areas [...] of boxes [..., 4] in square pixels; 0 for an empty `intersection`."""
    return (boxes[..., 2:] - boxes[..., :2]).clamp(min=0).prod(dim=-1)


def whole_pixels(boxes: Tensor, size: tuple[int, int]) -> Tensor:
    """`boxes` [..., 4] rounded to whole pixels, int64, inside a view of `size` (H, W), of at least one pixel."""
    ends = constant((float(size[1]), float(size[0])), boxes.device)
    low, high = boxes.round().split(2, dim=-1)
    low = torch.minimum(low.clamp(min=0), ends - 1)
    return torch.cat([low, torch.minimum(torch.maximum(high, low + 1), ends)], dim=-1).long()


def _frame(crops: Tensor, size: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """(x, y) [..., 1, 2] of a view's corner (0, 0) in its image, and of a step by one pixel of the view: to the left
    where it is mirrored."""
    extent = crops[..., 2:4].flip(-1)
    mirrored = crops[..., 4:] * constant((1.0, 0.0), crops.device)
    origin = crops[..., :2].flip(-1) + mirrored * extent
    step = (1 - 2 * mirrored) * extent / constant((float(size[1]), float(size[0])), crops.device)
    return origin[..., None, :], step[..., None, :]


def _ordered(corners: Tensor) -> Tensor:
    """Boxes [..., 4] of two opposite corners [..., 2, 2]."""
    return torch.cat([corners.amin(dim=-2), corners.amax(dim=-2)], dim=-1)
