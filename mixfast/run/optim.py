"""The optimiser, and the learning rate of every step."""

import math
from collections.abc import Iterable
from typing import Any

import torch
from torch import nn

from mixfast.config.options import OptimConfig
from mixfast.run.lars import LARS


def build_optimizer(config: OptimConfig, parameters: Iterable[nn.Parameter]) -> torch.optim.Optimizer:
    """The optimiser of the parameters that require a gradient, all on one device.

    SGD and Adam are torch's fused forms, which on a CPU core took 0.6 to 0.85 times as long as the multi-tensor form of
    SGD and half as long as that of Adam. The learning rate is a float32 scalar on the device, so that a step recorded
    as a CUDA graph can be replayed with another rate.
    """
    trainable = [parameter for parameter in parameters if parameter.requires_grad]
    device, momentum, decay = trainable[0].device, config.momentum, config.weight_decay
    lr = torch.tensor(config.lr, dtype=torch.float32, device=device)
    if config.name == "sgd":
        return torch.optim.SGD(trainable, lr=lr, momentum=momentum, weight_decay=decay, fused=True)
    if config.name == "adam":
        betas, on_gpu = (momentum, 0.999), device.type == "cuda"
        return torch.optim.Adam(trainable, lr=lr, betas=betas, weight_decay=decay, fused=True, capturable=on_gpu)
    plain = [parameter for parameter in trainable if config.lars_exclude and parameter.ndim <= 1]
    adapted = [parameter for parameter in trainable if not config.lars_exclude or parameter.ndim > 1]
    groups: list[dict[str, Any]] = [{"params": adapted}, {"params": plain, "weight_decay": 0.0, "adapt": False}]
    return LARS([group for group in groups if group["params"]], lr, momentum, decay, config.lars_trust)


def learning_rate(config: OptimConfig, epoch: int, epochs: int, step: int) -> float:
    """The learning rate of a step.

    cosine: lr/2 (1 + cos(pi e / epochs)) with e = epoch + cosine_origin. step: lr step_factor^n after n of `steps`;
    an entry of `steps` is a share of `epochs`, or -n for the epoch `epochs` - n; that epoch is the first at the new
    rate, counted from 0 as torch's MultiStepLR and MoCo's ImageNet script do (MoCo's CIFAR demo, Un-Mix and the paper's
    code count from 1: one epoch earlier). As in MultiStepLR, an entry before the first epoch is ignored. constant: lr.

    A warm-up multiplies the rate by (epoch + 1) / (warmup_epochs + 1) in its epochs, or by (step + 1) / warmup_steps
    in its steps; the smaller factor counts.

    Args:
        config: the schedule.
        epoch: of the step, from 0.
        epochs: number of epochs of the run.
        step: number of the step in the whole run, from 0.
    """
    if config.schedule == "cosine":
        rate = config.lr * (1 + math.cos(math.pi * (epoch + config.cosine_origin) / epochs)) / 2
    elif config.schedule == "constant":
        rate = config.lr
    else:
        drops = [entry * epochs if entry > 0 else epochs + entry for entry in config.steps]
        rate = config.lr * config.step_factor ** sum(0 <= drop <= epoch for drop in drops)
    by_epoch = (epoch + 1) / (config.warmup_epochs + 1)
    by_step = (step + 1) / config.warmup_steps if config.warmup_steps else 1.0
    return rate * min(1.0, by_epoch, by_step)


def epoch_rate(config: OptimConfig, epoch: int, epochs: int, steps: int) -> float:
    """Mean learning rate of the epoch number `epoch`, from 0, which has `steps` steps."""
    first = epoch * steps
    warming = min(steps, max(0, config.warmup_steps - first))
    rates = [learning_rate(config, epoch, epochs, first + step) for step in range(warming)]
    full = learning_rate(config, epoch, epochs, first + steps - 1)
    return (sum(rates) + (steps - warming) * full) / steps


def mean_rate(config: OptimConfig, epochs: int, steps: int) -> float:
    """Mean learning rate of a run of `epochs` epochs of `steps` steps."""
    return sum(epoch_rate(config, epoch, epochs, steps) for epoch in range(epochs)) / epochs


def set_learning_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """Set the learning rate of every parameter group, in place."""
    for group in optimizer.param_groups:
        group["lr"].fill_(rate)


def state_names(optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """The entries that the optimiser keeps for a parameter, by name, from a step on a parameter [2, 3]."""
    parameter = nn.Parameter(torch.zeros(2, 3, device=optimizer.param_groups[0]["params"][0].device))
    parameter.grad = torch.zeros_like(parameter)
    probe = type(optimizer)([parameter], **optimizer.defaults)
    probe.step()
    return dict(probe.state[parameter])


def optimizer_state(optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """The moments of each parameter, by its number; without options and rate, which follow from the configuration."""
    state = optimizer.state_dict()
    return {"state": state["state"], "param_groups": [{"params": group["params"]} for group in state["param_groups"]]}


def load_optimizer(optimizer: torch.optim.Optimizer, state: dict[str, Any]) -> None:
    """Load the moments of a saved state, which is not checked here (`mixfast.run.restore.checked_optimizer` does).

    The optimiser keeps its options and the tensor of its learning rate.
    """
    options = [{name: value for name, value in group.items() if name != "params"} for group in optimizer.param_groups]
    optimizer.load_state_dict(state)
    for group, group_options in zip(optimizer.param_groups, options, strict=True):
        group.update(group_options)
