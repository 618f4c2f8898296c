"""Losses of diverged networks: logits of any size, inf and NaN. The right value, or one that cannot be overlooked."""

from typing import Any

import pytest
import torch
from torch import Tensor

from mixfast.ops import _native
from mixfast.ops.infonce import cpu_native
from tests.ops import infonce, ntxent

LENGTHS, TEMPERATURES = (1.0, 1e2, 1e4, 2e4, 1e6), (0.1, 1e-3, 1e-6, 1e-9, 1e-12)
SIZES = [(length, temperature) for length in LENGTHS for temperature in TEMPERATURES]
VIEWS = ("first", "second")


def with_rows(operation: str, dtype: torch.dtype, rng: torch.Generator, length: float = 1.0) -> dict[str, Any]:
    """Inputs whose rows have that length."""
    if operation == "infonce":
        inputs = infonce.draw(([33, 20], [0, 0], [150], 8, [0.1, 0.1]), dtype, rng)
        rows = {name: [rows * length for rows in inputs[name]] for name in ("queries", "positives", "queues")}
    else:
        inputs = ntxent.draw((40, 8, 0.1, True), dtype, rng)
        rows = {name: inputs[name] * length for name in VIEWS}
    return {**inputs, **rows}


def losses_and_gradients(operation: str, backend: str, inputs: dict[str, Any]) -> list[Tensor]:
    """Of every row; those of "truth" are of the definition in float64."""
    if operation == "infonce":
        losses = infonce.truth if backend == "truth" else infonce.row_losses(backend)
        weights = [torch.ones(len(rows)) for rows in inputs["queries"]]
        found = infonce.gradients(inputs, weights, losses)
        return [found[name] for name in ("loss", "d_queries", "d_positives")]

    def row_losses(**given: Any) -> Tensor:
        if backend == "truth":
            return ntxent.truth(**given)
        return ntxent.nt_xent(**given, reduction="none", backend=backend)

    found = ntxent.gradients(inputs, torch.ones(2 * len(inputs["first"])), row_losses)
    return [found[name] for name in ("loss", "d_first", "d_second")]


def check_size(
    operation: str, backend: str, size: tuple[float, float], dtype: torch.dtype, rng: torch.Generator, *, right: bool
) -> None:
    """Right to the rounding of the largest logit; unless `right`, a number may also be inf or NaN."""
    length, temperature = size
    inputs = with_rows(operation, dtype, rng, length)
    inputs["temperature"] = [temperature] * 2 if operation == "infonce" else temperature
    ours, truth = (losses_and_gradients(operation, name, inputs) for name in (backend, "truth"))
    digits, logit = 16 * torch.finfo(dtype).eps, max(length**2 / temperature, 1.0)
    for i, (value, exact) in enumerate(zip(ours, truth, strict=True)):
        shown = torch.ones_like(value, dtype=torch.bool) if right else value.isfinite()
        scale = logit if i == 0 else max(1.0, 20 * min(logit, 1e3)) * exact.abs().max().item()
        torch.testing.assert_close(value[shown].double(), exact[shown].double(), rtol=0, atol=digits * scale)


def check_no_number(operation: str, backend: str, bad: float, where: str, rng: torch.Generator) -> None:
    """Nothing is finite that is not by the definition."""
    inputs = with_rows(operation, torch.float32, rng)
    (inputs[where][0] if operation == "infonce" else inputs[where])[2, 3] = bad
    ours, truth = (losses_and_gradients(operation, name, inputs) for name in (backend, "reference"))
    for value, exact in zip(ours, truth, strict=True):
        assert not (value.isfinite() & ~exact.isfinite()).any()


OPERATIONS = pytest.mark.parametrize("operation", ["infonce", "nt_xent"])
BAD = pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
PLACES = [("infonce", name) for name in ("queries", "positives", "queues")] + [("nt_xent", name) for name in VIEWS]


@pytest.fixture(params=cpu_native.instruction_sets())
def instruction_set(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """The cpu backend on one instruction set after the other."""
    place = _native.cpu_place
    monkeypatch.setattr(_native, "cpu_place", lambda available, _: place(available, request.param))


@OPERATIONS
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.usefixtures("instruction_set")
def test_sizes(operation: str, dtype: torch.dtype, rng: torch.Generator) -> None:
    for size in SIZES:
        check_size(operation, "cpu", size, dtype, rng, right=True)


@OPERATIONS
def test_sizes_in_the_reference(operation: str, rng: torch.Generator) -> None:
    for size in SIZES:
        check_size(operation, "reference", size, torch.float32, rng, right=True)


@BAD
@pytest.mark.parametrize(("operation", "where"), PLACES)
@pytest.mark.usefixtures("instruction_set")
def test_no_numbers(operation: str, where: str, bad: float, rng: torch.Generator) -> None:
    check_no_number(operation, "cpu", bad, where, rng)
