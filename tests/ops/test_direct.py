"""The one call of the compiled module that runs a plain eager call: what it takes, what it leaves to the checks."""

import gc
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

import mixfast
from mixfast.ops import _dispatch, _native
from mixfast.ops.infonce import _checks as infonce_checks
from mixfast.ops.pool import _checks as pool_checks

ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.skipif(_native.cpu is None, reason="the cpu backend is not built")
Run = Callable[..., Any]


class LookedAt(Exception):
    """The checks in Python were reached."""


class Other(Tensor):
    """A subclass without behaviour of its own."""


class Watched(TorchDispatchMode):
    """Sees every operator and runs it."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return func(*args, **(kwargs or {}))


@pytest.fixture
def direct(monkeypatch: pytest.MonkeyPatch) -> None:
    """Calls that reach the checks in Python raise."""

    def raises(*_: Any) -> None:
        raise LookedAt

    monkeypatch.setattr(pool_checks, "check_features", raises)
    monkeypatch.setattr(infonce_checks, "check_tensors", raises)


def pooling(rng: torch.Generator) -> dict[str, Any]:
    boxes = torch.tensor([[0, 0, 3, 5], [2, 1, 9, 8]])
    return {"features": torch.randn(2, 3, 2, 4, generator=rng), "regions": boxes, "output_size": (9, 9)}


def contrast(rng: torch.Generator) -> dict[str, Any]:
    queries, positives, queues = (
        [torch.randn(count, 8, generator=rng) for count in counts] for counts in ((3, 2), (3, 2), (7, 5))
    )
    return {"queries": queries, "positives": positives, "queues": queues, "queue_index": [1, 0]}


OPERATIONS: dict[str, tuple[Run, Run]] = {
    "pool": (mixfast.masked_upsample_pool, pooling),
    "infonce": (mixfast.multi_queue_infonce, contrast),
}
CASES: dict[str, tuple[str, Callable[[dict[str, Any]], dict[str, Any]]]] = {
    "pool": ("pool", lambda given: {}),
    "pool-named": ("pool", lambda given: {"backend": "cpu"}),
    "pool-one-box": ("pool", lambda given: {"regions": given["regions"][1]}),
    "pool-int32": ("pool", lambda given: {"regions": given["regions"].int()}),
    "pool-strided-boxes": ("pool", lambda given: {"regions": given["regions"].T.contiguous().T}),
    "pool-bool": ("pool", lambda given: {"regions": torch.ones(2, 5, 6).bool(), "output_size": None}),
    "pool-half-mask": ("pool", lambda given: {"regions": torch.full((2, 5, 6), 0.5).half(), "output_size": [5, 6]}),
    "pool-double": ("pool", lambda given: {"features": given["features"].double()}),
    "pool-bfloat16": ("pool", lambda given: {"features": given["features"].bfloat16()}),
    "pool-parameter": ("pool", lambda given: {"features": torch.nn.Parameter(given["features"])}),
    "pool-channels-last": (
        "pool",
        lambda given: {"features": given["features"].contiguous(memory_format=torch.channels_last)},
    ),
    "pool-strided": ("pool", lambda given: {"features": given["features"].transpose(2, 3)}),
    "pool-no-image": ("pool", lambda given: {"features": given["features"][:0], "regions": given["regions"][:0]}),
    "infonce": ("infonce", lambda given: {}),
    "infonce-tuples": ("infonce", lambda given: {name: tuple(given[name]) for name in given}),
    "infonce-tensor": (
        "infonce",
        lambda given: {name: torch.stack([given[name][0]] * 2) for name in ("queries", "positives")},
    ),
    "infonce-strided": ("infonce", lambda given: {"queries": [query.T.contiguous().T for query in given["queries"]]}),
    "infonce-strided-queues": ("infonce", lambda given: {"queues": [q.T.contiguous().T for q in given["queues"]]}),
    "infonce-temperatures": ("infonce", lambda given: {"temperature": [0.2, 1]}),
    "infonce-tensor-temperature": ("infonce", lambda given: {"temperature": torch.tensor([0.2, 0.5])}),
    "infonce-double-temperature": ("infonce", lambda given: {"temperature": torch.tensor([0.2, 0.5]).double()}),
    "infonce-valid": ("infonce", lambda given: {"valid_len": torch.tensor([4, 5])}),
    "infonce-sum": ("infonce", lambda given: {"reduction": "sum"}),
    "infonce-none": ("infonce", lambda given: {"reduction": "none"}),
    "infonce-half-queues": ("infonce", lambda given: {"queues": [queue.half() for queue in given["queues"]]}),
}


def tensors(value: Any) -> list[Tensor]:
    """The tensor, or those of a sequence."""
    if isinstance(value, Tensor):
        return [value]
    return [each for each in value if isinstance(each, Tensor)] if isinstance(value, (list, tuple)) else []


def leaves(given: dict[str, Any]) -> list[Tensor]:
    """All that a gradient is asked for, made to require it."""
    names = "features", "queries", "positives", "temperature"
    return [leaf.requires_grad_() for name in names for leaf in tensors(given.get(name))]


def value_and_gradients(run: Run, given: dict[str, Any]) -> list[Tensor]:
    wanted, results = leaves(given), tensors(run(**given))
    upstream = [torch.linspace(0.5, 2, each.numel()).to(each.dtype).view(each.shape) for each in results]
    return [*results, *torch.autograd.grad(results, wanted, upstream)]


@pytest.fixture(params=CASES)
def case(request: pytest.FixtureRequest, rng: torch.Generator) -> tuple[Run, dict[str, Any]]:
    operation, change = CASES[request.param]
    run, make = OPERATIONS[operation]
    given = make(rng)
    given |= change(given)
    return run, given


@pytest.fixture(params=OPERATIONS)
def operation(request: pytest.FixtureRequest, rng: torch.Generator) -> tuple[Run, dict[str, Any]]:
    run, make = OPERATIONS[request.param]
    return run, make(rng)


def same_as_the_operators(run: Run, given: dict[str, Any]) -> list[Tensor]:
    """Bit for bit what a mode that sees every operator gets from the registered ones."""
    ours = value_and_gradients(run, given)
    with Watched():
        operators = value_and_gradients(run, given)
    for one, other in zip(ours, operators, strict=True):
        assert torch.equal(one, other)
    return ours


def test_equals_the_reference(case: tuple[Run, dict[str, Any]]) -> None:
    run, given = case
    ours = same_as_the_operators(run, given)
    reference = value_and_gradients(run, {**given, "backend": "reference"})
    tolerance = 2e-2 if ours[0].dtype == torch.bfloat16 else 1e-5
    for one, other in zip(ours, reference, strict=True):
        torch.testing.assert_close(one, other, rtol=tolerance, atol=tolerance)


def test_auto_would_choose_the_same() -> None:
    assert {name: order[0] for name, order in _dispatch.ORDER.items()} == {"cpu": "cpu", "cuda": "cuda"}


def test_is_taken(case: tuple[Run, dict[str, Any]], direct: None) -> None:
    run, given = case
    value_and_gradients(run, given)


def test_reads_attributes_where_torch_has_no_table() -> None:
    code = """
import torch
torch.Tensor.__dlpack_c_exchange_api__ = None
from tests.ops.test_direct import CASES, OPERATIONS, same_as_the_operators
for operation, change in CASES.values():
    run, make = OPERATIONS[operation]
    given = make(torch.Generator().manual_seed(0))
    same_as_the_operators(run, given | change(given))
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("change", "error"),
    [
        ({"features": torch.ones(2, 3, 2, 4, dtype=torch.int32)}, TypeError),
        ({"features": torch.ones(3, 2, 4)}, ValueError),
        ({"features": torch.ones(2, 3, 2, 4, device="meta")}, ValueError),
        ({"features": None}, TypeError),
        ({"regions": torch.tensor([[0, 0, 3, 5], [5, 1, 2, 8]])}, ValueError),
        ({"regions": torch.ones(2, 4)}, TypeError),
        ({"regions": torch.ones(2, 9, 9).requires_grad_()}, ValueError),
        ({"output_size": (9, True)}, TypeError),
        ({"output_size": (9, 1 << 70)}, ValueError),
        ({"backend": "no such"}, ValueError),
        ({"backend": None}, ValueError),
    ],
)
def test_pool_leaves_errors_to_the_checks(change: dict[str, Any], error: type, rng: torch.Generator) -> None:
    with pytest.raises(error, match="masked_upsample_pool"):
        mixfast.masked_upsample_pool(**{**pooling(rng), **change})


@pytest.mark.parametrize(
    ("change", "error"),
    [
        ({"queries": [torch.ones(3, 8), torch.ones(2, 8).double()]}, TypeError),
        ({"queries": [torch.ones(3, 8), None]}, TypeError),
        ({"queues": [torch.ones(7, 8), torch.ones(5, 8).requires_grad_()]}, ValueError),
        ({"queues": [torch.ones(7, 8), torch.ones(5, 8, device="meta")]}, ValueError),
        ({"queue_index": [0, 2]}, ValueError),
        ({"queue_index": [0, True]}, TypeError),
        ({"temperature": float("nan")}, ValueError),
        ({"temperature": torch.tensor([0.1, -1.0])}, ValueError),
        ({"valid_len": torch.tensor([8, 5])}, ValueError),
        ({"reduction": "average"}, ValueError),
        ({"backend": "no such"}, ValueError),
    ],
)
def test_infonce_leaves_errors_to_the_checks(change: dict[str, Any], error: type, rng: torch.Generator) -> None:
    with pytest.raises(error, match="multi_queue_infonce"):
        mixfast.multi_queue_infonce(**{**contrast(rng), **change})


def test_what_is_not_plain_is_looked_at(
    operation: tuple[Run, dict[str, Any]], direct: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, given = operation
    first = next(name for name in given if name in ("features", "queries"))
    negated = [torch._neg_view(tensor) for tensor in tensors(given[first])]
    others = [tensor.as_subclass(Other) for tensor in tensors(given[first])]
    with FakeTensorMode() as mode:
        fakes = [mode.from_tensor(tensor) for tensor in tensors(given[first])]
    for replaced in (negated, others, fakes):
        with pytest.raises(LookedAt):
            run(**{**given, first: replaced if first == "queries" else replaced[0]})
    with pytest.raises(LookedAt), Watched():
        run(**given)
    with pytest.raises(LookedAt):
        torch.func.vmap(lambda _: run(**given))(torch.ones(2))
    monkeypatch.setenv("MIXFAST_BACKEND", "reference")
    with pytest.raises(LookedAt):
        run(**given)


def test_autocast_converts_rows(rng: torch.Generator) -> None:
    given = contrast(rng)
    half = {name: [row.bfloat16() for row in given[name]] for name in ("queries", "positives")}
    exact = {name: [row.float() for row in half[name]] for name in half}
    with torch.autocast("cpu"):
        converted = mixfast.multi_queue_infonce(**{**given, **half})
        untouched = mixfast.multi_queue_infonce(**{**given, **exact})
    assert torch.equal(converted, untouched)
    assert torch.equal(untouched, mixfast.multi_queue_infonce(**{**given, **exact}))


def test_records_only_where_a_gradient_is_wanted(operation: tuple[Run, dict[str, Any]]) -> None:
    run, given = operation
    assert not tensors(run(**given))[0].requires_grad
    wanted = leaves(given)
    for context in (torch.no_grad(), torch.inference_mode()):
        with context:
            assert not tensors(run(**given))[0].requires_grad
    wanted[0].requires_grad_(False)
    results = tensors(run(**given))
    assert results[0].requires_grad == (len(wanted) > 1)
    if len(wanted) > 1:
        gradients = torch.autograd.grad(results[0].sum(), wanted[1:])
        assert all(gradient.shape == leaf.shape for gradient, leaf in zip(gradients, wanted[1:], strict=True))


def test_saved_tensors_go_through_hooks(operation: tuple[Run, dict[str, Any]]) -> None:
    run, given = operation
    expected = value_and_gradients(run, given)
    packed: list[Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: packed.append(t) or t.clone(), lambda t: t.clone()):
        found = value_and_gradients(run, given)
    assert packed
    for one, other in zip(found, expected, strict=True):
        assert torch.equal(one, other)


def test_keeps_no_reference(case: tuple[Run, dict[str, Any]]) -> None:
    run, given = case
    held = [tensor for value in given.values() for tensor in tensors(value)]
    value_and_gradients(run, given)
    counts = [sys.getrefcount(tensor) for tensor in held]
    gc.collect()
    alive = len(gc.get_objects())
    for _ in range(20):
        value_and_gradients(run, given)
    gc.collect()
    assert [sys.getrefcount(tensor) for tensor in held] == counts
    assert len(gc.get_objects()) < alive + 20
