"""Batch norm whose statistics are those of all processes' samples."""

from typing import Any

import torch
from torch import Tensor

from mixfast.world import World


def synced_batch_norm(norm: Any, x: Tensor, world: World) -> Tensor:
    """Batch norm in training mode with the statistics of all processes; returns the rows of this process.

    It is differentiable and runs on every device. Processes exchange means and variances once in the forward pass, and
    their gradients once in the backward pass. The variances are merged from the deviations of the means, which avoids
    cancellation.

    Args:
        norm: a BatchNorm1d or BatchNorm2d with weights; its running statistics are updated if it tracks them.
        x: [B, C, ...], the same shape in all processes.
        world: the processes.
    """
    axes = [axis for axis in range(x.ndim) if axis != 1]
    shape = [1, -1] + [1] * (x.ndim - 2)
    wide = x.to(torch.promote_types(x.dtype, torch.float32))
    own_var, own_mean = torch.var_mean(wide, axes, correction=0)
    means, variances = world.stacked(torch.stack([own_mean, own_var])).unbind(1)  # [size, C] each
    mean = means.mean(0)
    var = variances.mean(0) + (means - mean).square().mean(0)
    if norm.track_running_stats:
        count = world.size * x.numel() // x.shape[1]
        with torch.no_grad():
            norm.num_batches_tracked.add_(1)
            norm.running_mean.lerp_(mean.to(norm.running_mean.dtype), norm.momentum)
            norm.running_var.lerp_((var * (count / (count - 1))).to(norm.running_var.dtype), norm.momentum)
    scale = norm.weight * (var + norm.eps).rsqrt()
    return ((wide - mean.view(shape)) * scale.view(shape) + norm.bias.view(shape)).to(x.dtype)
