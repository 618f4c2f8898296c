"""Initial weights drawn from a named generator."""

import math
from collections.abc import Collection

import torch
from torch import nn


def initialise_(module: nn.Module, generator: torch.Generator, uniform: Collection[nn.Module] = ()) -> None:
    """Redraw every weight of `module` from `generator`: torchvision's rule for ResNets.

    Convolutions: Kaiming normal, fan out. Linear layers, and the convolutions in `uniform`: PyTorch's default, uniform
    in +-1 / sqrt(fan in), including biases. Batch norms keep weights 1 and biases 0.
    """
    for layer in module.modules():
        if isinstance(layer, nn.Linear) or layer in uniform:
            assert isinstance(layer, nn.Linear | nn.Conv2d)
            bound = 1 / math.sqrt(layer.weight[0].numel())
            nn.init.uniform_(layer.weight, -bound, bound, generator=generator)
            if layer.bias is not None:
                nn.init.uniform_(layer.bias, -bound, bound, generator=generator)
        elif isinstance(layer, nn.Conv2d):
            nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu", generator=generator)
