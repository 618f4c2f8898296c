"""nt_xent under test: random input, the truth in float64, and calls on the backend's device."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

import mixfast
from tests.backends import device_of

DTYPES = [torch.float32, torch.float64, torch.float16, torch.bfloat16]
# rows of a view, D, temperature, whether each anchor excludes a row
CASES = {
    "two-rows": (2, 3, 0.5, True),
    "odd": (7, 5, 0.5, True),
    "one-panel": (32, 16, 0.2, False),
    "views-meet-in-a-panel": (70, 33, 0.1, True),
    "cold": (40, 33, 0.01, True),
    "one-dimension": (9, 1, 0.3, False),
    "several-panels": (200, 24, 0.07, True),
}


def draw(case: tuple[int, int, float, bool], dtype: torch.dtype, rng: torch.Generator) -> dict[str, Any]:
    rows, dim, temperature, exclude = case

    def unit() -> Tensor:
        vectors = torch.randn(rows, dim, generator=rng, dtype=torch.float64)
        return F.normalize(vectors, dim=1) if dim > 1 else vectors  # one-dimensional unit vectors would all be equal

    first = unit()
    second = first + 0.7 * unit()
    excluded = torch.randint(-1, 2 * rows, (2 * rows,), generator=rng)  # itself is as good as none
    excluded[excluded == torch.arange(2 * rows).roll(rows)] = -1
    return {
        "first": first.to(dtype),
        "second": second.to(dtype),
        "temperature": temperature,
        "excluded": excluded if exclude else None,
    }


def loops(first: Tensor, second: Tensor, temperature: Any, excluded: Tensor | None) -> Tensor:
    """The definition in plain float64 loops over anchors and rows, in a form that does not cancel; differentiable."""
    rows, half = [*first.double(), *second.double()], len(first)
    losses = []
    for i, anchor in enumerate(rows):
        positive = (i + half) % (2 * half)
        left_out = -1 if excluded is None else int(excluded[i])
        negatives = [
            (anchor * row).sum() / temperature for j, row in enumerate(rows) if j not in (i, positive, left_out)
        ]
        match = (anchor * rows[positive]).sum() / temperature
        losses.append(F.softplus(torch.logsumexp(torch.stack(negatives), 0) - match, threshold=700))
    return torch.stack(losses)


def truth(first: Tensor, second: Tensor, temperature: Any, excluded: Tensor | None) -> Tensor:
    """The same in float64 without the loops, to be fast; `test_truth_is_the_definition` compares the two."""
    rows, index = torch.cat([first, second]).double(), torch.arange(2 * len(first))
    positive = index.roll(len(first))
    hidden = (index[:, None] == index) | (positive[:, None] == index)
    if excluded is not None:
        hidden |= excluded[:, None] == index
    logits = rows @ rows.T / temperature
    match = (rows * rows[positive]).sum(1) / temperature
    return F.softplus(logits.masked_fill(hidden, -torch.inf).logsumexp(1) - match, threshold=700)


def nt_xent(first: Tensor, second: Tensor, *, backend: str, **options: Any) -> Tensor:
    """The operation, called on the backend's device, with results on the CPU."""
    device = device_of(backend)
    options = {name: value.to(device) if isinstance(value, Tensor) else value for name, value in options.items()}
    return mixfast.nt_xent(first.to(device), second.to(device), backend=backend, **options).cpu()


def gradients(inputs: dict[str, Any], weights: Tensor, losses: Any) -> dict[str, Tensor]:
    """The anchors' losses, and the gradients of sum(weight * loss) with respect to everything that has one."""
    leaves = {name: inputs[name].clone().requires_grad_() for name in ("first", "second")}
    leaves["temperature"] = torch.tensor(inputs["temperature"], dtype=torch.float64).requires_grad_()
    each = losses(**{**inputs, **leaves})
    (weights.to(each.dtype) * each).sum().backward()
    return {"loss": each.detach(), **{f"d_{name}": leaf.grad for name, leaf in leaves.items()}}
