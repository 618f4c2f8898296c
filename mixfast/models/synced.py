"""Batch norm whose statistics are those of all processes' samples."""

from typing import Any

import torch
from torch import Tensor

from mixfast.world import World


def synced_batch_norm(norm: Any, x: Tensor, world: World) -> Tensor:
    """Batch norm in training mode with the statistics of all processes; returns the rows of this process.

    It is differentiable and runs on every device. Processes exchange means and variances once in the forward pass, and
    their gradients once in the backward pass. Variances are combined by the deviations of the means, which avoids
    cancellation.

    Args:
        norm: a BatchNorm1d or BatchNorm2d with weights; its running statistics are updated if it tracks them. With a
            momentum of None they are the mean of all batches.
        x: [B, C, ...], B at least 1. The processes need not have equally many rows.
        world: the processes.
    """
    axes = [axis for axis in range(x.ndim) if axis != 1]
    shape = [1, -1] + [1] * (x.ndim - 2)
    wide = x.to(torch.promote_types(x.dtype, torch.float32))
    own_var, own_mean = torch.var_mean(wide, axes, correction=0)
    own_count = wide.new_tensor([x.numel() // x.shape[1]])
    statistics = world.stacked(torch.cat([own_mean, own_var, own_count]))
    means, variances, counts = statistics.split([x.shape[1], x.shape[1], 1], 1)  # [size, C] twice, [size, 1]
    count = counts.detach().sum()
    shares = counts.detach() / count
    mean = (shares * means).sum(0)
    var = (shares * (variances + (means - mean).square())).sum(0)
    if norm.track_running_stats:
        with torch.no_grad():
            norm.num_batches_tracked.add_(1)
            momentum = 1 / float(norm.num_batches_tracked) if norm.momentum is None else norm.momentum
            norm.running_mean.lerp_(mean.to(norm.running_mean.dtype), momentum)
            norm.running_var.lerp_((var * (count / (count - 1))).to(norm.running_var.dtype), momentum)
    scale = norm.weight * (var + norm.eps).rsqrt()
    return ((wide - mean.view(shape)) * scale.view(shape) + norm.bias.view(shape)).to(x.dtype)
