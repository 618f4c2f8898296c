"""nt_xent, forward and backward: two views of N images, D = 128, against what else there is."""

import importlib
import importlib.util
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from mixfast import nt_xent

DIM, TEMPERATURE = 128, 0.5
Views = tuple[Tensor, Tensor]
Loss = Callable[[Tensor, Tensor], Tensor]


def draw(rows: int) -> Views:
    generator = torch.Generator().manual_seed(0)
    first, second = (F.normalize(torch.randn(rows, DIM, generator=generator), dim=1) for _ in range(2))
    return first.requires_grad_(), second.requires_grad_()


def by_mixfast(backend: str) -> Loss:
    return lambda first, second: nt_xent(first, second, temperature=TEMPERATURE, backend=backend)


def eager(first: Tensor, second: Tensor) -> Tensor:
    """All logits, then cross entropy, as training loops write it."""
    rows = torch.cat([first, second])
    index = torch.arange(len(rows))
    logits = (rows @ rows.T / TEMPERATURE).masked_fill(index[:, None] == index, -torch.inf)
    return F.cross_entropy(logits, index.roll(len(first)))


def products(first: Tensor, second: Tensor) -> None:
    """The matrix products that the loss and its gradient need: similarities, and the weights from both sides."""
    with torch.no_grad():
        rows = torch.cat([first, second])
        similarities = rows @ rows.T
        torch.mm(similarities, rows)
        torch.mm(similarities.T, rows)


def with_gradients(loss: Loss, views: Views) -> Callable[[], object]:
    return lambda: torch.autograd.grad(loss(*views), views)


@pytest.mark.parametrize("rows", [64, 512, 4096])
def test_forward_and_backward(measure: Any, smoke: bool, rows: int) -> None:
    views = draw(8 if smoke else rows)
    compiled = torch.compile(eager, backend="aot_eager" if smoke else "inductor")
    runs: dict[str, Callable[[], object]] = {
        "mixfast cpu": with_gradients(by_mixfast("cpu"), views),
        "floor: three matrix products": lambda: products(*views),
        "eager": with_gradients(eager, views),
        "torch.compile of eager": with_gradients(compiled, views),
    }
    if importlib.util.find_spec("lightly"):  # which pip install mixfast[bench] brings
        lightly = importlib.import_module("lightly.loss").NTXentLoss(temperature=TEMPERATURE)
        runs["lightly NTXentLoss"] = with_gradients(lightly, views)
    measure(f"nt_xent, N = {rows}, D = {DIM}", runs)


def test_peers_compute_the_same() -> None:
    views = draw(16)
    expected = by_mixfast("reference")(*views)
    torch.testing.assert_close(eager(*views), expected)
    if importlib.util.find_spec("lightly"):
        loss = importlib.import_module("lightly.loss").NTXentLoss(temperature=TEMPERATURE)
        torch.testing.assert_close(loss(*views), expected)
