"""Baselines of the scores: raw pixels, the same network without training, edges, a box in the centre."""

import copy
from collections.abc import Callable

import torch
from torch import Tensor, nn

from mixfast.data import Images, take
from mixfast.scoring.features import by_batches, evaluation_mode

CELLS = (4, 8)  # pixels over which edges are averaged
SHAPES = (1.0, 4 / 3, 3 / 4)  # width over height of centred boxes, in units of the image's


def pixels(images: Images, normalise: Callable[[Tensor], Tensor], side: int = 32, batch_size: int = 512) -> Tensor:
    """Normalised pixels as features, [N, 3 side^2] at most: larger images are averaged down first.

    Args:
        images: [N, 3, H, W] uint8.
        normalise: as in `extract`.
    """
    size = (min(side, images.shape[2]), min(side, images.shape[3]))
    shrink = nn.AdaptiveAvgPool2d(size)
    (rows,) = by_batches(images, batch_size, lambda batch: (shrink(normalise(batch)).flatten(1),))
    return rows


@torch.no_grad()
def calibrated(
    encoder: nn.Module, images: Images, normalise: Callable[[Tensor], Tensor], batch_size: int = 512, batches: int = 8
) -> nn.Module:
    """A copy of `encoder` whose BatchNorm statistics are those of the data.

    A fresh network has running mean 0 and variance 1, with which it scores several points less than with the statistics
    of the data. These are means of the statistics of the first `batches` batches.

    Args:
        encoder: not changed.
        images: [N, 3, H, W] uint8, in any order; N >= 2.
        normalise: as in `extract`.
        batch_size: images per forward pass.
        batches: number of batches whose statistics are averaged.
    """
    encoder = copy.deepcopy(encoder)
    norms = [module for module in encoder.modules() if isinstance(getattr(module, "running_mean", None), Tensor)]
    observed: dict[nn.Module, list[tuple[Tensor, Tensor]]] = {norm: [] for norm in norms}

    def observe(norm: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        # set before the norm is applied: the layers above get a batch that is normalised by its own statistics
        norm.running_var, norm.running_mean = torch.var_mean(inputs[0].transpose(0, 1).flatten(1).float(), dim=1)
        observed[norm].append((norm.running_mean, norm.running_var))

    handles = [norm.register_forward_pre_hook(observe) for norm in norms]
    with evaluation_mode(encoder):
        for batch in take(images, slice(batches * batch_size)).split(batch_size):
            encoder(normalise(batch))
    for handle in handles:
        handle.remove()
    for norm, statistics in ((norm, values) for norm, values in observed.items() if values):  # some may not be called
        norm.running_mean, norm.running_var = (torch.stack(values).mean(0) for values in zip(*statistics, strict=True))
    return encoder


def edge_maps(images: Tensor) -> dict[str, Tensor]:
    """Saliency without a network: the length of the image's gradient, averaged over cells of 4 or of 8 pixels.

    Args:
        images: uint8 [N, 3, H, W].

    Returns:
        {"edges 4": [N, h, w], "edges 8": ...}, float32: central differences of the mean of the channels.
    """
    grey = nn.functional.pad(images.float().mean(1, keepdim=True) / 255, (1, 1, 1, 1), mode="replicate")
    horizontal = (grey[..., 1:-1, 2:] - grey[..., 1:-1, :-2]) / 2
    vertical = (grey[..., 2:, 1:-1] - grey[..., :-2, 1:-1]) / 2
    magnitude = torch.hypot(horizontal, vertical)
    height, width = images.shape[2:]
    sizes = {cell: (max(1, height // cell), max(1, width // cell)) for cell in CELLS}
    return {f"edges {cell}": nn.functional.adaptive_avg_pool2d(magnitude, size)[:, 0] for cell, size in sizes.items()}


def centre_maps(images: Tensor) -> dict[str, Tensor]:
    """Maps that fall off from the centre, whose thresholds give centred boxes of every size in three shapes.

    Args:
        images: uint8 [N, 3, H, W]; only the shape is read.

    Returns:
        {"centre 1.00": [N, H, W], ...}, float32 in [0, 1], 1 at the centre; the number is width over height.
    """
    count, _, height, width = images.shape
    indices = (torch.arange(side, dtype=torch.float32, device=images.device) for side in (height, width))
    y, x = (((index + 0.5) / side * 2 - 1).abs() for index, side in zip(indices, (height, width), strict=True))
    maps = {}
    for shape in SHAPES:
        radius = torch.maximum(y[:, None] / min(1.0, 1 / shape), x / min(1.0, shape))
        maps[f"centre {shape:.2f}"] = (1 - radius).clamp(min=0).expand(count, height, width)
    return maps
