"""split_batch_norm under test: random input, the truth in float64, and calls on the backend's device."""

from typing import Any

import torch
from torch import Tensor

from mixfast.ops import split_batch_norm
from tests.backends import device_of
from tests.ops.compare import SLACK, assert_no_worse

DTYPES = [torch.float32, torch.float64, torch.float16, torch.bfloat16]
FORMATS = [torch.contiguous_format, torch.channels_last]
Case = tuple[int, int, int, int, int]
# B, C, H, W, groups
CASES: dict[str, Case] = {
    "odd": (12, 3, 5, 7, 4),
    "one-row": (8, 5, 1, 7, 4),
    "one-pixel": (16, 70, 1, 1, 4),
    "one-channel": (8, 1, 9, 9, 2),
    "samples-apart": (8, 4, 5, 5, 8),
    "many-channels": (8, 130, 3, 3, 2),
    "rows-of-few-channels": (16, 16, 8, 8, 8),
    "several-pieces": (8, 8, 40, 40, 2),
    "one-group": (2, 3, 70, 70, 1),
}
NAMES = ("y", "d_x", "d_weight", "d_bias", "running_mean", "running_var", "d_residual")  # the last if there is one


def draw(
    case: Case,
    dtype: torch.dtype,
    memory_format: torch.memory_format,
    rng: torch.Generator,
    *,
    relu: bool = False,
    added: bool = False,
) -> dict[str, Any]:
    """Maps that lie off zero, with an upstream gradient, parameters, running statistics, and a residual if `added`."""
    batch, channels, height, width, splits = case
    statistics = torch.promote_types(dtype, torch.float32)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=rng, dtype=torch.float64)

    x = 2 * normal(batch, channels, height, width) + 3 * normal(channels, 1, 1)
    made = {
        "x": x.to(dtype).contiguous(memory_format=memory_format),
        "upstream": (normal(batch, channels, height, width) + 0.3).to(dtype),
        "weight": (normal(channels) + 1).to(statistics),
        "bias": normal(channels).to(statistics),
        "running_mean": normal(channels).to(statistics),
        "running_var": normal(channels).exp().to(statistics),
        "num_splits": splits,
        "relu": relu,
    }
    residual = normal(*x.shape).to(dtype).contiguous(memory_format=memory_format)
    return {**made, "residual": residual} if added else made


def names(inputs: dict[str, Any]) -> list[str]:
    """Of what gradients are taken."""
    return ["x", "weight", "bias", *(["residual"] if "residual" in inputs else [])]


def truth(
    inputs: dict[str, Any], momentum: float = 0.1, eps: float = 1e-5, result: Tensor | None = None
) -> dict[str, Tensor]:
    """Everything of `NAMES` in float64, by loops over groups and their samples; gradients by autograd.

    Where rounding decides on which side of zero a number is, gradients are those for the ReLU's `result`, if given.
    """
    leaves = [inputs[name].double().requires_grad_() for name in names(inputs)]
    x, weight, bias, *residual = leaves
    splits, samples = inputs["num_splits"], list(range(len(x)))
    outputs: list[Tensor] = [x] * len(samples)
    means, variances = [], []
    for s in range(splits):
        members = [n for n in samples if n % splits == s]
        numbers = torch.stack([x[n].flatten(1) for n in members], dim=1).flatten(1)  # [C, M]
        mean = numbers.sum(1) / numbers.shape[1]
        squares = ((numbers - mean[:, None]) ** 2).sum(1)
        scale = weight / (squares / numbers.shape[1] + eps).sqrt()
        for n in members:
            outputs[n] = (x[n] - mean[:, None, None]) * scale[:, None, None] + bias[:, None, None]
        means.append(mean.detach())
        variances.append(squares.detach() / (numbers.shape[1] - 1))
    y, upstream = sum(residual, start=torch.stack(outputs)), inputs["upstream"].double()
    if inputs["relu"]:
        upstream = upstream * ((y if result is None else result) > 0)
    grads = torch.autograd.grad(y, leaves, upstream)
    y = y.clamp(min=0) if inputs["relu"] else y
    new = torch.stack(means).mean(0), torch.stack(variances).mean(0)
    old = (inputs[name].double() for name in ("running_mean", "running_var"))
    running = [(1 - momentum) * each + momentum * moved for each, moved in zip(old, new, strict=True)]
    return dict(zip(NAMES, (y.detach(), *grads[:3], *running, *grads[3:]), strict=False))


def results(inputs: dict[str, Any], backend: str, **options: Any) -> dict[str, Tensor]:
    """The same by the operation, on the backend's device; results on the CPU."""
    device = device_of(backend)
    moved = {name: value.to(device) if isinstance(value, Tensor) else value for name, value in inputs.items()}
    leaves = {name: moved[name].detach().clone().requires_grad_() for name in names(inputs)}
    options |= {name: moved[name] for name in ("num_splits", "relu")}
    options |= {name: moved[name].clone() for name in ("running_mean", "running_var")}
    y = split_batch_norm(**leaves, **options, backend=backend)
    grads = torch.autograd.grad(y, list(leaves.values()), moved["upstream"])
    made = y, *grads[:3], options["running_mean"], options["running_var"], *grads[3:]
    return dict(zip(NAMES, (each.detach().cpu() for each in made), strict=False))


def judge(ours: dict[str, Tensor], inputs: dict[str, Any]) -> None:
    """Each result is no worse than the reference's in the same precision, both against the truth."""
    dtype, theirs = inputs["x"].dtype, results(inputs, "reference")
    statistics = torch.promote_types(dtype, torch.float32)
    # Means are rounded, which shifts all h of a group's channel, and with them the sum of dy h.
    x, upstream = (
        inputs[name].double().unflatten(0, (-1, inputs["num_splits"])).transpose(0, 1).flatten(3)
        for name in ("x", "upstream")
    )  # [S, B / S, C, H W]
    shifts = x.mean((1, 3)).abs() / x.std((1, 3)) * torch.finfo(statistics).eps
    shifted = (shifts * upstream.sum((1, 3)).abs()).sum(0).max().item()
    for name, expected in truth(inputs, result=ours["y"]).items():
        slack = SLACK[dtype if name in ("y", "d_x", "d_residual") else statistics]
        if name == "d_weight":
            slack += shifted / expected.abs().max().item()
        assert_no_worse(ours[name], theirs[name], expected, slack, name)
