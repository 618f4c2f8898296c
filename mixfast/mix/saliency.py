"""Salient pixels of images by a centre-surround map in plain tensor code, for the boxes of SaliencyMix."""

import torch
import torch.nn.functional as F
from torch import Tensor


def saliency_map(images: Tensor) -> Tensor:
    """How much each pixel differs from the mean of its surround, lightly smoothed: float32 [B, H, W], >= 0.

    Squared difference between a pixel and the mean of the window around it, 5 / 32 of the sides and at least 3 pixels,
    summed over the channels; then averaged over windows of that size, with zeros outside the image.

    Args:
        images: [B, C, H, W], normalised or not: an offset added to a channel cancels, and dividing by the data set's
            standard deviations gives the channels comparable weights. Normalisation need not be undone.
    """
    pixels = images.float()
    windows = tuple(max(side * 5 // 32, 2) | 1 for side in images.shape[2:])
    contrast = (pixels - _mean(pixels, windows, count_include_pad=False)).square().sum(dim=1, keepdim=True)
    return _mean(contrast, windows, count_include_pad=True)[:, 0]


def peaks(images: Tensor) -> Tensor:
    """The most salient pixel of each of `images` [B, C, H, W], int64 [B, 2] as (row, column)."""
    index = saliency_map(images).flatten(1).argmax(dim=1)
    width = images.shape[3]
    return torch.stack([index // width, index % width], dim=1)


def _mean(pixels: Tensor, windows: tuple[int, ...], *, count_include_pad: bool) -> Tensor:
    """Mean over the window around each pixel, one axis after the other; [B, C, H, W]."""
    for window in ((windows[0], 1), (1, windows[1])):
        padding = (window[0] // 2, window[1] // 2)
        pixels = F.avg_pool2d(pixels, window, stride=1, padding=padding, count_include_pad=count_include_pad)
    return pixels
