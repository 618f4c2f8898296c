"""Random resized crop and flip of a batch: two batched matrix products, one per image axis.

Letters: B images, C channels, H x W input pixels, S x T output pixels.
Convention: torchvision.transforms.v2.functional.resized_crop with antialias=False, on float images: pixel centres at
half integers (align_corners=False), samples outside the crop clamped to its edge, bicubic with A = -0.75. Values are
never rounded; bicubic overshoots are clamped to [0, 1], as rounding to 8 bits does in torchvision.
"""

import torch
from torch import Tensor


def axis_weights(
    start: Tensor, length: Tensor, in_size: int, out_size: int, interpolation: str, flip: Tensor | None = None
) -> Tensor:
    """Matrix [B, out_size, in_size] that resamples [start, start + length) of one axis; its rows sum to 1.

    Args:
        start, length: [B] integers, the crop along this axis.
        in_size, out_size: pixels of the image and of the view.
        interpolation: "bilinear" or "bicubic".
        flip: [B] bool, reverse the output.
    """
    last = (length - 1)[:, None]
    out = torch.arange(out_size, device=start.device)
    if flip is not None:
        out = torch.where(flip[:, None], out_size - 1 - out, out)
    source = (out + 0.5) * (length[:, None] / out_size) - 0.5  # [B, out], in pixels from the crop's start
    if interpolation == "bilinear":
        source = source.clamp_(min=0)
    base = source.floor()
    fraction = source - base
    taps = _cubic(fraction) if interpolation == "bicubic" else {0: 1 - fraction, 1: fraction}
    weights = torch.zeros(len(start), out_size, in_size, device=start.device)
    base = base.long()
    for tap, weight in taps.items():
        at = torch.minimum((base + tap).clamp_(min=0), last) + start[:, None]
        # one tap at a time: no two of its weights meet in one cell, so the sum has one order on every device
        weights.scatter_add_(2, at[..., None], weight[..., None])
    return weights


def _cubic(t: Tensor) -> dict[int, Tensor]:
    """Weights of the pixels at -1, 0, 1 and 2 for a point at t in [0, 1): Keys' kernel with A = -0.75."""
    a = -0.75

    def near(x: Tensor) -> Tensor:  # |x| <= 1
        return ((a + 2) * x - (a + 3)) * x * x + 1

    def far(x: Tensor) -> Tensor:  # 1 < |x| < 2
        return ((a * x - 5 * a) * x + 8 * a) * x - 4 * a

    return {-1: far(t + 1), 0: near(t), 1: near(1 - t), 2: far(2 - t)}


def crop_resize(
    images: Tensor, boxes: Tensor, size: tuple[int, int], interpolation: str, flip: Tensor | None = None
) -> Tensor:
    """Crop every image to its own box, resize it and flip it.

    Args:
        images: float32 [B, C, H, W] in [0, 1].
        boxes: integers [B, 4] as (top, left, height, width).
        size: (S, T), the output's height and width.
        interpolation: "bilinear" or "bicubic".
        flip: bool [B], mirror left and right.

    Returns:
        float32 [B, C, S, T] in [0, 1].
    """
    batch, channels, height, width = images.shape
    top, left, crop_h, crop_w = boxes.unbind(1)
    rows = axis_weights(top, crop_h, height, size[0], interpolation)
    columns = axis_weights(left, crop_w, width, size[1], interpolation, flip)
    # weights that are 0 outside the crop: the products read other pixels but do not use them
    narrow = torch.bmm(images.reshape(batch, channels * height, width), columns.transpose(1, 2))
    views = torch.matmul(rows[:, None], narrow.view(batch, channels, height, size[1]))
    return views.clamp_(0, 1) if interpolation == "bicubic" else views
