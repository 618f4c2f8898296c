"""nt_xent: values and gradients of every backend, judged against float64, and its memory and bits."""

import functools
import math
import subprocess
import sys

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from mixfast.ops.ntxent import cpu_native
from mixfast.ops.ntxent._operators import Problem
from tests.backends import each_backend, skip_if_refused
from tests.ops.compare import SLACK, assert_no_worse, generator
from tests.ops.ntxent import CASES, DTYPES, draw, gradients, loops, nt_xent, truth


def anchors_weights(case: tuple[int, int, float, bool], rng: torch.Generator) -> torch.Tensor:
    return torch.rand(2 * case[0], generator=rng) - 0.3


def check(backend: str, case: tuple[int, int, float, bool], dtype: torch.dtype, rng: torch.Generator) -> None:
    """Losses and gradients are no worse than the reference's in the same precision."""
    skip_if_refused("nt_xent", backend, dtype, case[1])
    inputs, weights = draw(case, dtype, rng), anchors_weights(case, rng)
    exact = {**inputs, "first": inputs["first"].double(), "second": inputs["second"].double()}
    expected = gradients(exact, weights, truth)
    ours, theirs = (
        gradients(inputs, weights, functools.partial(nt_xent, reduction="none", backend=name))
        for name in (backend, "reference")
    )
    statistics = torch.promote_types(dtype, torch.float32)
    # Rounded logits, of size 1 / tau, move a loss by that much, and a gradient by that part of itself.
    logits = torch.finfo(statistics).eps / inputs["temperature"]
    # Anchors' parts of the temperature's gradient may cancel: their sizes are what its error is measured against.
    tau = torch.tensor(inputs["temperature"], dtype=torch.float64).requires_grad_()
    losses = truth(**{**exact, "temperature": tau})
    ones = torch.ones_like(losses, requires_grad=True)
    (slope,) = torch.autograd.grad((ones * losses).sum(), tau, create_graph=True)
    (parts,) = torch.autograd.grad(slope, ones)
    cancelled = (weights * parts).abs().sum() / expected["d_temperature"].abs()
    for key, value in expected.items():
        # On a GPU weights are rounded to 16 bits before the second product, which the temperature's gradient shows.
        rounded = key in ("d_first", "d_second") or (key == "d_temperature" and backend == "triton")
        slack = SLACK[dtype if rounded else statistics] + logits / (value.abs().max().item() if key == "loss" else 1)
        assert_no_worse(ours[key], theirs[key], value, slack * (float(cancelled) if "temp" in key else 1), key)


@pytest.mark.parametrize("name", ["two-rows", "odd", "one-dimension"])
def test_truth_is_the_definition(name: str, rng: torch.Generator) -> None:
    inputs, weights = draw(CASES[name], torch.float64, rng), anchors_weights(CASES[name], rng)
    expected = gradients(inputs, weights, loops)
    for key, value in gradients(inputs, weights, truth).items():
        torch.testing.assert_close(value, expected[key], rtol=1e-12, atol=1e-14)


@each_backend("nt_xent")
def test_hand_numbers(backend: str) -> None:
    """Two images; every anchor has its positive at cosine 1 and two negatives at cosine 0, tau = 1."""
    views = torch.eye(2)
    loss = nt_xent(views, views, temperature=1.0, backend=backend)
    assert loss.item() == pytest.approx(-math.log(math.e / (math.e + 2)), rel=1e-6)
    fewer = nt_xent(
        views, views, temperature=1.0, excluded=torch.tensor([1, -1, 3, 0]), reduction="none", backend=backend
    )
    one, two = (-math.log(math.e / (math.e + others)) for others in (1, 2))
    assert fewer.tolist() == pytest.approx([one, two, one, one], rel=1e-6)


@each_backend("nt_xent")
def test_an_image_alone_has_no_loss(backend: str, rng: torch.Generator) -> None:
    """Its two anchors have no negatives: the positive is all that there is to find."""
    inputs, weights = draw((1, 8, 0.1, False), torch.float32, rng), torch.ones(2)
    results = gradients(inputs, weights, functools.partial(nt_xent, reduction="none", backend=backend))
    assert [value.abs().max().item() for value in results.values()] == [0.0] * 4


@each_backend("nt_xent", but=("reference",))
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", CASES)
def test_no_worse_than_the_reference(backend: str, name: str, dtype: torch.dtype, rng: torch.Generator) -> None:
    check(backend, CASES[name], dtype, rng)


@pytest.mark.parametrize("instruction_set", cpu_native.instruction_sets())
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_every_instruction_set(instruction_set: int, dtype: torch.dtype, rng: torch.Generator) -> None:
    case = CASES["views-meet-in-a-panel"]
    inputs, weights = draw(case, dtype, rng), anchors_weights(case, rng)
    exact = {**inputs, "first": inputs["first"].double(), "second": inputs["second"].double()}
    expected = gradients(exact, weights, truth)
    problem = Problem(inputs["first"], inputs["second"], inputs["excluded"], None, inputs["temperature"], "none")
    losses, denominators, shares = cpu_native.forward(problem, instruction_set)
    upstream = weights.to(losses.dtype)
    d_rows, d_temperature = cpu_native.backward(
        problem, upstream, denominators, shares, True, instruction_set=instruction_set
    )
    tolerance = 1e-12 if dtype == torch.float64 else 3e-6
    torch.testing.assert_close(losses.double(), expected["loss"], rtol=tolerance, atol=1e-7)
    torch.testing.assert_close(shares.double(), 1 - torch.exp(-expected["loss"]), rtol=tolerance, atol=1e-6)
    torch.testing.assert_close(d_temperature.double(), expected["d_temperature"], rtol=10 * tolerance, atol=0)
    gradient = torch.cat([expected["d_first"], expected["d_second"]])
    rounding = torch.finfo(dtype).eps if dtype in (torch.float16, torch.bfloat16) else tolerance
    torch.testing.assert_close(d_rows.double(), gradient, rtol=rounding, atol=tolerance * 10)


@each_backend("nt_xent")
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_reductions_and_upstream_gradients(backend: str, reduction: str, rng: torch.Generator) -> None:
    dtype = torch.float32 if backend == "triton" else torch.float64
    inputs = draw(CASES["odd"], dtype, rng)
    views = [inputs[name].requires_grad_() for name in ("first", "second")]
    losses = nt_xent(**inputs, reduction=reduction, backend=backend)
    expected = truth(**inputs)
    if reduction != "none":
        expected = expected.mean() if reduction == "mean" else expected.sum()
    tolerance = {"rtol": 2e-6, "atol": 1e-6} if backend == "triton" else {"rtol": 1e-12, "atol": 1e-13}
    torch.testing.assert_close(losses.double(), expected, **tolerance)
    for upstream in (torch.randn(expected.shape, generator=rng), torch.tensor(-0.5).expand(expected.shape)):
        ours = torch.autograd.grad(losses, views, upstream.to(losses.dtype), retain_graph=True)
        theirs = torch.autograd.grad(expected, views, upstream.double(), retain_graph=True)
        for a, b in zip(ours, theirs, strict=True):
            torch.testing.assert_close(a, b, **tolerance)


@each_backend("nt_xent")
def test_only_what_requires_a_gradient_gets_one(backend: str, rng: torch.Generator) -> None:
    inputs = draw(CASES["odd"], torch.float32, rng)
    assert not nt_xent(**inputs, backend=backend).requires_grad
    inputs["second"].requires_grad_()
    inputs["temperature"] = torch.tensor(0.5)
    nt_xent(**inputs, backend=backend).backward()
    assert inputs["first"].grad is inputs["temperature"].grad is None and inputs["second"].grad is not None
    tau = torch.tensor(0.5).requires_grad_()
    loss = nt_xent(**{**inputs, "second": inputs["second"].detach(), "temperature": tau}, backend=backend)
    expected = truth(inputs["first"], inputs["second"].detach(), tau.double(), inputs["excluded"]).mean()
    torch.testing.assert_close(torch.autograd.grad(loss, tau), torch.autograd.grad(expected, tau), rtol=1e-5, atol=1e-6)


@each_backend("nt_xent")
def test_non_contiguous_input(backend: str, rng: torch.Generator) -> None:
    inputs = draw(CASES["views-meet-in-a-panel"], torch.float32, rng)
    expected = nt_xent(**inputs, backend=backend)
    strided = {
        "first": inputs["first"].T.contiguous().T,
        "second": torch.stack([inputs["second"], inputs["first"]], 1)[:, 0],
        "excluded": torch.stack([inputs["excluded"]] * 2, 1)[:, 0],
    }
    torch.testing.assert_close(nt_xent(**{**inputs, **strided}, backend=backend), expected, rtol=0, atol=0)


@each_backend("nt_xent", but=("cpu",))
def test_what_cannot_be_excluded_stays(backend: str, rng: torch.Generator) -> None:
    """A GPU does not read the values before it runs: the positive, the anchor itself and what is no row."""
    inputs = draw(CASES["odd"], torch.float32, rng)
    expected = nt_xent(**{**inputs, "excluded": None}, reduction="none", backend=backend)
    place = torch.arange(14)
    for wrong in (place.roll(7), place, torch.full((14,), 14), torch.full((14,), -(1 << 40)), place + (1 << 32)):
        ours = nt_xent(**{**inputs, "excluded": wrong}, reduction="none", backend=backend)
        torch.testing.assert_close(ours, expected, rtol=0, atol=0)


@each_backend("nt_xent", but=("reference",))
def test_same_bits_for_any_number_of_threads_and_every_run(backend: str, rng: torch.Generator) -> None:
    case = (330, 40, 0.1, True)
    inputs, weights = draw(case, torch.float32, rng), anchors_weights(case, rng)
    threads, results = torch.get_num_threads(), []
    try:
        for count in (1, 2, 3, 2, 1):
            torch.set_num_threads(count)
            results.append(gradients(inputs, weights, functools.partial(nt_xent, reduction="none", backend=backend)))
    finally:
        torch.set_num_threads(threads)
    for other in results[1:]:
        assert all(torch.equal(value, other[key]) for key, value in results[0].items())


@pytest.mark.slow
@pytest.mark.skipif(cpu_native.unavailable() is not None, reason="the cpu backend is not built")
def test_blocks_of_several_panels(rng: torch.Generator) -> None:
    """From 2N = 8192 on, two panels form a block; with an odd number of blocks one of them rests in each round."""
    views = [torch.randn(4130, 2, generator=rng).requires_grad_() for _ in range(2)]
    loss = nt_xent(*views, temperature=0.5, backend="cpu")
    ours = torch.autograd.grad(loss, views)
    index, expected = torch.arange(8260), 0.0
    for anchors in index.split(1000):  # by the definition, in parts that fit into memory
        rows = torch.cat(views)
        logits = (rows[anchors] @ rows.T / 0.5).masked_fill(anchors[:, None] == index, -torch.inf)
        part = F.cross_entropy(logits, index.roll(4130)[anchors], reduction="sum") / len(index)
        part.backward()
        expected += part.item()
    assert loss.item() == pytest.approx(expected, rel=1e-6)
    for a, view in zip(ours, views, strict=True):
        torch.testing.assert_close(a, view.grad, rtol=1e-4, atol=1e-8)


MEMORY = """
import torch
from mixfast import nt_xent
torch.set_num_threads(2)
def kib():
    return int(next(line for line in open("/proc/self/status") if line.startswith("VmHWM")).split()[1])
def run(rows):
    views = torch.randn(2, rows, 32, requires_grad=True)
    torch.autograd.grad(nt_xent(*views, backend="cpu"), views)
run(8)
before = kib()
run(4096)
print((kib() - before) / 1024)
"""


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads the peak of resident memory from /proc")
@pytest.mark.skipif(cpu_native.unavailable() is not None, reason="the cpu backend is not built")
def test_extra_memory_grows_with_the_rows_alone() -> None:
    """Of 1 MiB each: the views, their gradient twice, panels and their gradients. The similarities would take 256."""
    done = subprocess.run([sys.executable, "-c", MEMORY], capture_output=True, text=True, check=True)
    assert float(done.stdout) <= 8, f"{done.stdout.strip()} MiB"


@settings(max_examples=25, deadline=None)
@given(
    rows=st.integers(1, 90),
    dim=st.integers(1, 40),
    temperature=st.floats(0.03, 2.0),
    exclude=st.booleans(),
    dtype=st.sampled_from(DTYPES),
    seed=st.integers(0, 1000),
)
def test_any_shape(rows: int, dim: int, temperature: float, exclude: bool, dtype: torch.dtype, seed: int) -> None:
    inputs = draw((rows, dim, temperature, exclude), dtype, generator(str(seed)))
    loss = nt_xent(**inputs, reduction="none", backend="auto")
    tolerance = 1e-11 if dtype == torch.float64 else 1e-5
    torch.testing.assert_close(loss.double(), truth(**inputs), rtol=tolerance, atol=tolerance * 0.3 / temperature)
