"""Where views show their images: boxes of a view as boxes of the image, boxes of the image as boxes of another view.

A box is float32 [..., 4], (x0, y0, x1, y1) in pixels of an image or of a view of `size` (H, W); borders of pixels are
whole numbers. A crop is float32 [..., 5], what `draw_views` says of a view's place: top, left, height and width in
pixels of the image, and 1 where the view is mirrored left and right. All of it is batched, without randomness, and
stays on the device; leading dimensions broadcast.
"""

import torch
from torch import Tensor

__all__ = ["areas", "crop_boxes", "intersection", "to_image", "to_view", "whole_pixels"]


def crop_boxes(crops: Tensor) -> Tensor:
    """The box of the image that each view shows."""
    top, left, height, width, _ = crops.unbind(-1)
    return torch.stack([left, top, left + width, top + height], dim=-1)


def to_image(boxes: Tensor, crops: Tensor, size: tuple[int, int]) -> Tensor:
    """Boxes of views as boxes of their images."""
    x0, y0, x1, y1 = _mirrored(boxes, crops, size).unbind(-1)
    top, left, height, width, _ = crops.unbind(-1)
    rows, columns = height / size[0], width / size[1]  # pixels of the image in a pixel of the view
    return torch.stack([left + x0 * columns, top + y0 * rows, left + x1 * columns, top + y1 * rows], dim=-1)


def to_view(boxes: Tensor, crops: Tensor, size: tuple[int, int]) -> Tensor:
    """Boxes of images as boxes of their views, beyond whose borders they may reach."""
    x0, y0, x1, y1 = boxes.unbind(-1)
    top, left, height, width, _ = crops.unbind(-1)
    rows, columns = size[0] / height, size[1] / width
    moved = [(x0 - left) * columns, (y0 - top) * rows, (x1 - left) * columns, (y1 - top) * rows]
    return _mirrored(torch.stack(moved, dim=-1), crops, size)


def intersection(first: Tensor, second: Tensor) -> Tensor:
    """What two boxes share; where they share nothing, a box whose x0 >= x1 or y0 >= y1."""
    low, high = torch.maximum(first[..., :2], second[..., :2]), torch.minimum(first[..., 2:], second[..., 2:])
    return torch.cat([low, high], dim=-1)


def areas(boxes: Tensor) -> Tensor:
    """[...] of boxes [..., 4]; 0 for an empty `intersection`."""
    return (boxes[..., 2:] - boxes[..., :2]).clamp(min=0).prod(dim=-1)


def whole_pixels(boxes: Tensor, size: tuple[int, int]) -> Tensor:
    """Boxes with borders rounded to whole numbers, int64, within the view and of one pixel at least."""
    x0, y0, x1, y1 = boxes.round().unbind(-1)
    x0, y0 = x0.clamp(0, size[1] - 1), y0.clamp(0, size[0] - 1)
    x1, y1 = torch.maximum(x1, x0 + 1).clamp(max=size[1]), torch.maximum(y1, y0 + 1).clamp(max=size[0])
    return torch.stack([x0, y0, x1, y1], dim=-1).long()


def _mirrored(boxes: Tensor, crops: Tensor, size: tuple[int, int]) -> Tensor:
    """Boxes of views mirrored left and right where the crop says so."""
    x0, y0, x1, y1 = boxes.unbind(-1)
    return torch.where(crops[..., 4:] != 0, torch.stack([size[1] - x1, y0, size[1] - x0, y1], dim=-1), boxes)
