"""The optimiser and the learning rate of an epoch."""

import math
from collections.abc import Iterable

import torch
from torch import nn

from mixfast.config import OptimConfig


def build_optimizer(config: OptimConfig, parameters: Iterable[nn.Parameter]) -> torch.optim.SGD:
    """SGD over the parameters that require a gradient; the multi-tensor form, one launch per operation."""
    trainable = [parameter for parameter in parameters if parameter.requires_grad]
    return torch.optim.SGD(
        trainable, lr=config.lr, momentum=config.momentum, weight_decay=config.weight_decay, foreach=True
    )


def learning_rate(config: OptimConfig, epoch: int, epochs: int) -> float:
    """The rate of an epoch, counted from 0, of `epochs`.

    cosine: lr/2 (1 + cos(pi e / epochs)) with e = epoch + cosine_origin; step: lr step_factor^(steps passed).
    A warm-up multiplies it by (epoch + 1) / (warmup_epochs + 1) in its epochs.
    """
    if config.schedule == "cosine":
        rate = config.lr * (1 + math.cos(math.pi * (epoch + config.cosine_origin) / epochs)) / 2
    else:
        rate = config.lr * config.step_factor ** sum(epoch >= share * epochs for share in config.steps)
    return rate * min(1.0, (epoch + 1) / (config.warmup_epochs + 1))


def set_learning_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """Give every parameter group the same rate."""
    for group in optimizer.param_groups:
        group["lr"] = rate
