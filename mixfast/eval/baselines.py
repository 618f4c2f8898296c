"""What a score has to beat: raw pixels, and the same network without training."""

import copy
from collections.abc import Callable

import torch
from torch import Tensor, nn

from mixfast.eval.features import evaluation_mode


def pixels(images: Tensor, normalise: Callable[[Tensor], Tensor], side: int = 32, batch_size: int = 512) -> Tensor:
    """Normalised pixels as features, [N, 3 side^2] at most: larger images are averaged down first.

    Args:
        images: [N, 3, H, W] uint8.
        normalise: as in `extract`.
    """
    size = (min(side, images.shape[2]), min(side, images.shape[3]))
    shrink = nn.AdaptiveAvgPool2d(size)
    return torch.cat([shrink(normalise(batch)).flatten(1) for batch in images.split(batch_size)])


@torch.no_grad()
def calibrated(
    encoder: nn.Module, images: Tensor, normalise: Callable[[Tensor], Tensor], batch_size: int = 512, batches: int = 8
) -> nn.Module:
    """A copy of `encoder` whose BatchNorm statistics are those of the data.

    A fresh network has running mean 0 and variance 1, which fits nothing: evaluated like that it scores several points
    less than the same weights deserve. The statistics here are the averages of the first `batches` batches' own.

    Args:
        encoder: left as it is.
        images: [N, 3, H, W] uint8, in any order; N >= 2.
        normalise: as in `extract`.
    """
    encoder = copy.deepcopy(encoder)
    norms = [module for module in encoder.modules() if isinstance(getattr(module, "running_mean", None), Tensor)]
    seen: dict[nn.Module, list[tuple[Tensor, Tensor]]] = {norm: [] for norm in norms}

    def observe(norm: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        norm.running_var, norm.running_mean = torch.var_mean(inputs[0].transpose(0, 1).flatten(1).float(), dim=1)
        seen[norm].append((norm.running_mean, norm.running_var))  # so each layer sees what the layers below now give

    handles = [norm.register_forward_pre_hook(observe) for norm in norms]
    with evaluation_mode(encoder):
        for batch in images.split(batch_size)[:batches]:
            encoder(normalise(batch))
    for handle in handles:
        handle.remove()
    for norm, statistics in seen.items():
        norm.running_mean, norm.running_var = (torch.stack(values).mean(0) for values in zip(*statistics, strict=True))
    return encoder
