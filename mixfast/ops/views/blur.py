"""Gaussian blur of a batch, each image with its own width: two batched matrix products.

Convention: torchvision.transforms.v2.functional.gaussian_blur (reflected borders, kernel normalised over its taps).
"""

import torch
from torch import Tensor


def blur(images: Tensor, sigma: Tensor, reach: int) -> Tensor:
    """Blur images [B, C, H, W], each by its own `sigma` [B] pixels; 0 leaves an image as it is.

    The kernel reaches `reach` pixels each way, which must be less than the smaller side.
    """
    height, width = images.shape[2:]
    distance = torch.arange(reach + 1, device=images.device)
    exponent = distance**2 * (-0.5 / sigma.clamp(min=1e-6) ** 2)[:, None]
    kernel = torch.exp(exponent)  # [B, reach + 1], one half of it
    kernel = kernel / (2 * kernel.sum(dim=1) - 1)[:, None]
    rows, columns = (torch.matmul(kernel, _placements(side, distance)).view(-1, side, side) for side in (height, width))
    return torch.matmul(torch.matmul(rows[:, None], images), columns[:, None].transpose(2, 3))


def _placements(side: int, distance: Tensor) -> Tensor:
    """float32 [distances, side * side]: how often pixel p is met at a distance from pixel i, for all (i, p).

    A pixel p also stands for its mirror images -p and 2 (side - 1) - p beyond the two borders.
    """
    i = torch.arange(side, device=distance.device)[:, None]
    p = torch.arange(side, device=distance.device)
    at = distance[:, None, None]
    met = ((i - p).abs() == at).float()
    met += (i + p == at) & (p > 0)
    met += (2 * (side - 1) - p - i == at) & (p < side - 1)
    return met.flatten(1)
