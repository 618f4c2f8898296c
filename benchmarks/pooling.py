"""masked_upsample_pool for the benchmarks: inputs of a shape, our call, other implementations of the same result."""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from mixfast import masked_upsample_pool

Pooled = tuple[Tensor, Tensor]


class Shape(NamedTuple):
    images: int
    channels: int
    side: int  # of the map
    pixels: int  # a side of the map after upsampling

    def __str__(self) -> str:
        return f"[{self.images}, {self.channels}, {self.side}, {self.side}] to {self.pixels} x {self.pixels}"


class Inputs(NamedTuple):
    features: Tensor  # [B, C, h, w], requiring gradients
    regions: Tensor
    size: tuple[int, int]
    grads: Pooled  # [B, C] each


def inputs(
    shape: Shape,
    dtype: torch.dtype = torch.float32,
    *,
    regions: str = "boxes",
    channels_last: bool = False,
    generator: torch.Generator,
) -> Inputs:
    """Random features; random boxes, or the same as masks of a dtype ("bool", "uint8", "float32")."""
    images, channels, side, pixels = shape
    random = {"generator": generator, "device": generator.device}
    corners = torch.randint(0, pixels + 1, (2, images, 2), **random).sort(0).values
    features = torch.randn(images, channels, side, side, **random).to(dtype)
    if channels_last:
        features = features.contiguous(memory_format=torch.channels_last)
    grads = torch.randn(2, images, channels, **random).to(dtype)
    data = Inputs(features.requires_grad_(), torch.cat([*corners], dim=1), (pixels, pixels), (grads[0], grads[1]))
    return data if regions == "boxes" else data._replace(regions=mask_of(data).to(getattr(torch, regions)))


def mask_of(data: Inputs) -> Tensor:
    """The region as a mask [B, H, W]: bool if it is a box, else the mask itself."""
    if data.regions.ndim == 3:
        return data.regions
    x0, y0, x1, y1 = (side[:, None, None] for side in data.regions.unbind(1))
    device = data.regions.device
    y, x = torch.arange(data.size[0], device=device)[:, None], torch.arange(data.size[1], device=device)
    return (x0 <= x) & (x < x1) & (y0 <= y) & (y < y1)


def by_mixfast(backend: str) -> Callable[[Inputs], Pooled]:
    return lambda data: masked_upsample_pool(data.features, data.regions, data.size, backend=backend)


def interpolated(data: Inputs) -> Pooled:
    return masked_upsample_pool(data.features, data.regions, data.size, backend="reference")


def weights_and_bmm(data: Inputs) -> Pooled:
    """The adjoint in PyTorch: upsampling's own backward turns masks into weights, a matrix product applies them."""
    mask = mask_of(data).float()
    masks = torch.stack([mask, 1 - mask], dim=1)
    b, _, h, w = data.features.shape
    weights = torch.ops.aten.upsample_bilinear2d_backward(masks, data.size, [b, 2, h, w], False)
    weights = (weights / masks.sum((2, 3)).clamp_min(1)[:, :, None, None]).to(data.features.dtype)
    pooled = torch.bmm(data.features.flatten(2), weights.flatten(2).transpose(1, 2))
    return pooled[..., 0], pooled[..., 1]


def forward(pool: Callable[[Inputs], Pooled], data: Inputs) -> Callable[[], Pooled]:
    detached = data._replace(features=data.features.detach())
    return lambda: pool(detached)


def backward(pool: Callable[[Inputs], Pooled], data: Inputs) -> Callable[[], tuple[Tensor, ...]]:
    """The backward pass alone, of one forward pass."""
    pooled = pool(data)
    return lambda: torch.autograd.grad(pooled, [data.features], data.grads, retain_graph=True)


def both(pool: Callable[[Inputs], Pooled], data: Inputs) -> Callable[[], tuple[Tensor, ...]]:
    return lambda: torch.autograd.grad(pool(data), [data.features], data.grads)
