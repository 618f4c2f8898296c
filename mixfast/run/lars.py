"""LARS: SGD whose learning rate is scaled for each tensor by the ratio of its norm to its gradient's."""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn


class LARS(torch.optim.Optimizer):
    """SGD with momentum whose rate is scaled for each tensor (You et al. 2017, "Large Batch Training of CNNs").

        d = gradient + weight_decay w
        rate = lr trust |w| / |d|        lr where either norm is 0, or where a group sets adapt=False
        v <- momentum v + rate d,  w <- w - v

    The form of SimCLR's code: the decay is part of |d|, and the rate is inside the velocity. Norms and rates stay on
    the device.

    Args:
        params: parameters or groups of parameters; a group may set any of the options.
        lr: learning rate; a scalar tensor on the parameters' device, or a number.
        momentum: share of the velocity that survives a step.
        weight_decay: added to the gradient, times the weight.
        trust: the trust coefficient, the paper's eta.
        adapt: whether the rate is scaled for each tensor.
    """

    def __init__(
        self,
        params: Iterable[nn.Parameter] | Iterable[dict[str, Any]],
        lr: float | Tensor,
        momentum: float = 0.9,
        weight_decay: float = 0.0,
        trust: float = 1e-3,
        adapt: bool = True,
    ):
        defaults = {"lr": lr, "momentum": momentum, "weight_decay": weight_decay, "trust": trust, "adapt": adapt}
        super().__init__(params, defaults)

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """Update every parameter that has a gradient. `closure` must be None."""
        assert closure is None, "LARS evaluates no closure"
        for group in self.param_groups:
            weights: list[Tensor] = [weight for weight in group["params"] if weight.grad is not None]
            if weights:
                self._move(weights, group)

    def _move(self, weights: list[Tensor], group: dict[str, Any]) -> None:
        gradients = [weight.grad for weight in weights if weight.grad is not None]
        steps = list(torch._foreach_add(gradients, weights, alpha=group["weight_decay"]))
        if group["adapt"]:
            torch._foreach_mul_(steps, self._rates(weights, steps, group))
        else:
            torch._foreach_mul_(steps, group["lr"])
        velocities = [self._velocity(weight) for weight in weights]
        torch._foreach_mul_(velocities, group["momentum"])
        torch._foreach_add_(velocities, steps)
        torch._foreach_add_(weights, velocities, alpha=-1)

    def _rates(self, weights: list[Tensor], directions: list[Tensor], group: dict[str, Any]) -> list[Tensor]:
        ratios = torch.stack(torch._foreach_norm(weights)) / torch.stack(torch._foreach_norm(directions))
        usable = (ratios > 0) & ratios.isfinite()
        return list(torch.where(usable, group["lr"] * group["trust"] * ratios, group["lr"]).unbind())

    def _velocity(self, weight: Tensor) -> Tensor:
        state = self.state[weight]
        if "velocity" not in state:
            state["velocity"] = torch.zeros_like(weight)
        velocity: Tensor = state["velocity"]
        return velocity
