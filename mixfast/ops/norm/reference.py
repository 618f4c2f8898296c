"""split_batch_norm by its definition, in plain PyTorch: one batch norm with a channel for each pair (group, channel),
then the sum with a residual, then ReLU.

It shares no code with the other backends, which are tested against it. PyTorch computes all derivatives.
"""

import torch
import torch.nn.functional as F
from torch import Tensor


def unavailable() -> str | None:
    return None


def why_not(device_type: str, dtype: torch.dtype) -> str | None:
    return None


def normalise(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    residual: Tensor | None,
    splits: int,
    momentum: float,
    eps: float,
    relu: bool,
) -> Tensor:
    """[B, C, H, W] viewed as [B / S, S C, H, W] puts sample n into the channels of group n mod S."""
    batch, channels, height, width = x.shape
    grouped = x.contiguous().reshape(batch // splits, splits * channels, height, width)
    running = running_mean, running_var
    mean, var = (None if statistic is None else statistic.repeat(splits) for statistic in running)
    scale, shift = weight.repeat(splits), bias.repeat(splits)
    y = F.batch_norm(grouped, mean, var, scale, shift, True, momentum, eps).reshape(x.shape)
    for old, new in zip(running, (mean, var), strict=True):
        if old is not None and new is not None:
            old.copy_(new.view(splits, channels).mean(dim=0))
    last = not x.is_contiguous() and x.is_contiguous(memory_format=torch.channels_last)
    y = y.contiguous(memory_format=torch.channels_last) if last else y
    y = y if residual is None else y + residual
    return F.relu(y) if relu else y
