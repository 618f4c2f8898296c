"""Calls past torch's dispatcher, and those that must not: modes, subclasses and lazy views see the operators."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

import mixfast
from mixfast.ops._eager import is_plain

BOXES, SIZE = torch.tensor([[0, 0, 3, 5], [2, 1, 9, 8]]), (9, 9)


def pool(features: Tensor) -> Tensor:
    inside, outside = mixfast.masked_upsample_pool(features, BOXES, SIZE)
    return inside * outside


def infonce(features: Tensor) -> Tensor:
    rows = features.flatten(2)
    queues = [torch.linspace(-1, 1, 7 * rows.shape[2], device="cpu").view(7, -1)]
    return mixfast.multi_queue_infonce(rows, rows.detach(), queues, [0, 0], temperature=0.5)


each_operation = pytest.mark.parametrize("run", [pool, infonce])


class Seen(TorchDispatchMode):
    """The names of the operators that run inside."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.names.append(str(func))
        return func(*args, **(kwargs or {}))


class Other(Tensor):
    """A subclass without behaviour of its own."""


def value_and_gradient(run: Callable[[Tensor], Tensor], features: Tensor) -> tuple[Tensor, Tensor]:
    leaf = features.detach().clone().requires_grad_()
    value = run(leaf)
    return value.detach(), torch.autograd.grad(value.sum(), leaf)[0]


@each_operation
def test_a_mode_sees_the_operators(run: Callable[[Tensor], Tensor], rng: torch.Generator) -> None:
    features = torch.randn(2, 3, 2, 2, generator=rng)
    expected = value_and_gradient(run, features)
    with Seen() as seen:
        results = value_and_gradient(run, features)
    named = [name for name in seen.names if name.startswith("mixfast.")]
    assert len(named) == 2 and named[1].endswith("_backward.default"), seen.names
    for ours, theirs in zip(results, expected, strict=True):
        assert torch.equal(ours, theirs)


@each_operation
def test_lazily_negated_memory(run: Callable[[Tensor], Tensor], rng: torch.Generator) -> None:
    features = torch.randn(2, 3, 2, 2, generator=rng, dtype=torch.complex64).conj().imag
    assert features.is_neg() and not is_plain((features,))
    torch.testing.assert_close(run(features), run(features.clone()))


@each_operation
def test_a_subclass(run: Callable[[Tensor], Tensor], rng: torch.Generator) -> None:
    features = torch.randn(2, 3, 2, 2, generator=rng)
    assert torch.equal(run(features.as_subclass(Other)).as_subclass(Tensor), run(features))


@each_operation
def test_a_default_device_changes_nothing(run: Callable[[Tensor], Tensor], rng: torch.Generator) -> None:
    features = torch.randn(2, 3, 2, 2, generator=rng)
    expected = value_and_gradient(run, features)
    with torch.device("meta"):
        results = value_and_gradient(run, features)
    for ours, theirs in zip(results, expected, strict=True):
        assert torch.equal(ours, theirs)


def test_what_is_plain() -> None:
    tensor = torch.ones(2)
    assert is_plain((tensor, torch.nn.Parameter(tensor)))
    assert not is_plain((tensor, tensor.as_subclass(Other)))
    with torch.inference_mode():
        assert is_plain((torch.ones(2),))
    with torch.no_grad(), torch.autocast("cpu"):
        assert is_plain((tensor,))
    with Seen():
        assert not is_plain((tensor,))
    seen: list[bool] = []
    torch.func.vmap(lambda row: seen.append(is_plain((tensor,))) or row)(tensor)
    torch.func.grad(lambda row: seen.append(is_plain((tensor,))) or row.sum())(tensor)
    assert seen == [False, False]
