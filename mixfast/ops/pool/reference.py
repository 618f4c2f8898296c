"""masked_upsample_pool by its definition, in plain PyTorch: upsample the map, then take two masked means.

Shares no code with the other backends, which are tested against it; gradients are PyTorch's own.
"""

import torch
import torch.nn.functional as F
from torch import Tensor


def unavailable() -> str | None:
    return None


def why_not(device_type: str, dtype: torch.dtype) -> str | None:
    return None


def forward(features: Tensor, regions: Tensor, height: int, width: int) -> tuple[Tensor, Tensor]:
    """[B, C] means of `features` [B, C, h, w], upsampled to [B, C, height, width], inside and outside `regions`."""
    if features.shape[1] == 0:  # which interpolate refuses
        return features.sum((2, 3)), features.sum((2, 3))
    sums = torch.float64 if features.dtype == torch.float64 else torch.float32
    large = F.interpolate(features, (height, width), mode="bilinear", align_corners=False).to(sums)
    inside = _mask(regions, height, width, sums)[:, None]  # [B or 1, 1, H, W]
    return _mean(large, inside).to(features.dtype), _mean(large, 1 - inside).to(features.dtype)


def weights(regions: Tensor, height: int, width: int, h: int, w: int, dtype: torch.dtype) -> Tensor:
    """[B, 2, h, w]: both means of every map that is one at a single position and zero elsewhere."""
    positions = torch.eye(h * w, dtype=dtype, device=regions.device).view(1, h * w, h, w)
    large = F.interpolate(positions, (height, width), mode="bilinear", align_corners=False)
    inside = _mask(regions, height, width, dtype)[:, None]
    return torch.stack([_mean(large, inside), _mean(large, 1 - inside)], dim=1).unflatten(2, (h, w))


def pool(features: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
    """[B, C] sums of `features` [B, C, h, w] weighted by `weights` [B or 1, 2, h, w]."""
    inside = (features.to(weights.dtype) * weights[:, :1]).sum((2, 3))
    outside = (features.to(weights.dtype) * weights[:, 1:]).sum((2, 3))
    return inside.to(features.dtype), outside.to(features.dtype)


def _mask(regions: Tensor, height: int, width: int, dtype: torch.dtype) -> Tensor:
    """Boxes [B, 4] or a mask [B, H, W] as a mask of zeros and ones, or of the given fractions."""
    if regions.ndim == 3:
        return regions.to(dtype) if regions.is_floating_point() else (regions != 0).to(dtype)
    x0, y0, x1, y1 = (side[:, None, None] for side in regions.unbind(1))
    y = torch.arange(height, device=regions.device)[:, None]
    x = torch.arange(width, device=regions.device)
    return ((x0 <= x) & (x < x1) & (y0 <= y) & (y < y1)).to(dtype)


def _mean(large: Tensor, mask: Tensor) -> Tensor:
    area = mask.sum((2, 3))
    return (large * mask).sum((2, 3)) / torch.where(area > 0, area, 1)
