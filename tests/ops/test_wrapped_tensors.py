"""What torch wraps around a call or a tensor: modes, subclasses, lazy views, default devices, saved-tensor hooks."""

import gc
import sys
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

import mixfast

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
    assert features.is_neg()
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


@each_operation
def test_saved_tensors_go_through_hooks(run: Callable[[Tensor], Tensor], rng: torch.Generator) -> None:
    features = torch.randn(2, 3, 2, 2, generator=rng)
    expected = value_and_gradient(run, features)
    packed: list[Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: packed.append(t) or t.clone(), lambda t: t.clone()):
        results = value_and_gradient(run, features)
    assert packed
    for ours, theirs in zip(results, expected, strict=True):
        assert torch.equal(ours, theirs)


@each_operation
def test_calls_keep_no_reference(run: Callable[[Tensor], Tensor], rng: torch.Generator) -> None:
    features = torch.randn(2, 3, 2, 2, generator=rng)
    value_and_gradient(run, features)
    gc.collect()
    count, alive = sys.getrefcount(features), len(gc.get_objects())
    for _ in range(20):
        value_and_gradient(run, features)
    gc.collect()
    assert sys.getrefcount(features) == count
    assert len(gc.get_objects()) < alive + 20
