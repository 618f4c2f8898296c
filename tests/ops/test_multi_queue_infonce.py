"""multi_queue_infonce: values and gradients of every backend, judged against float64, and its memory and bits."""

import math
import subprocess
import sys

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import mixfast
from mixfast.ops.infonce import cpu_native
from mixfast.ops.infonce._operators import Terms
from tests.backends import each_backend
from tests.ops.compare import SLACK, assert_no_worse, generator
from tests.ops.infonce import (
    CASES,
    DTYPES,
    draw,
    gradients,
    loops,
    multi_queue_infonce,
    place,
    row_losses,
    skip_if_refused,
    truth,
    weights_for,
)


@pytest.mark.parametrize("name", ["one-row-one-key", "eight-terms", "one-dimension"])
def test_truth_is_the_definition(name: str, rng: torch.Generator) -> None:
    inputs = draw(CASES[name], torch.float64, rng)
    weights = weights_for(inputs, rng)
    expected = gradients(inputs, weights, lambda given: loops(**given))
    for key, value in gradients(inputs, weights, truth).items():
        torch.testing.assert_close(value, expected[key], rtol=1e-12, atol=1e-14)


@each_backend("multi_queue_infonce")
def test_hand_numbers(backend: str) -> None:
    """q.k = 1 and two negatives at cosine 0, tau = 1: loss = -log(e / (e + 2))."""
    query = torch.tensor([[1.0, 0.0]])
    queue = torch.tensor([[0.0, 1.0], [0.0, -1.0]])
    loss = multi_queue_infonce([query], [query], [queue], [0], temperature=1.0, backend=backend)
    assert loss.tolist() == pytest.approx([-math.log(math.e / (math.e + 2))], rel=1e-6)


@each_backend("multi_queue_infonce", but=("reference",))
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", CASES)
def test_no_worse_than_the_reference(backend: str, name: str, dtype: torch.dtype, rng: torch.Generator) -> None:
    skip_if_refused(backend, dtype)
    inputs = draw(CASES[name], dtype, rng)
    weights = weights_for(inputs, rng)
    exact = {**inputs, "queries": [q.double() for q in inputs["queries"]]}
    exact["positives"] = [k.double() for k in inputs["positives"]]
    expected = gradients(exact, weights, truth)
    ours, theirs = gradients(inputs, weights, row_losses(backend)), gradients(inputs, weights, row_losses("reference"))
    statistics = torch.promote_types(dtype, torch.float32)
    # Rounded logits, of size 1 / tau, move a loss by that much, and a gradient by that part of itself.
    logits = torch.finfo(statistics).eps / min(inputs["temperature"])
    # Tensor cores take probabilities in 16 bits to the second product, which the temperature's gradient shows.
    rounded = () if backend == "cpu" else ("d_temperature",)
    for key, value in expected.items():
        output = dtype if key in ("d_queries", "d_positives", *rounded) else statistics
        slack = SLACK[output] + logits / (value.abs().max().item() if key == "loss" else 1)
        assert_no_worse(ours[key], theirs[key], value, slack, key)


@each_backend("multi_queue_infonce", but=("reference",))
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("queue_dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
def test_queue_of_another_dtype(
    backend: str, dtype: torch.dtype, queue_dtype: torch.dtype, rng: torch.Generator
) -> None:
    skip_if_refused(backend, dtype, queue_dtype)
    inputs = draw(CASES["ragged-shared-queues"], dtype, rng, queue_dtype)
    ours = multi_queue_infonce(**inputs, backend=backend)
    expected = torch.stack([loss.mean() for loss in truth(inputs)])
    torch.testing.assert_close(ours.double(), expected, rtol=2e-6, atol=1e-7)


@pytest.mark.parametrize("instruction_set", cpu_native.instruction_sets())
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_every_instruction_set(instruction_set: int, dtype: torch.dtype, rng: torch.Generator) -> None:
    inputs = draw(CASES["ragged-shared-queues"], dtype, rng)
    counts = [len(q) for q in inputs["queries"]]
    losses, grad_queries, share = cpu_native.forward(
        Terms(inputs["queries"], None, inputs["temperature"], "none"),
        inputs["positives"],
        inputs["queues"],
        inputs["queue_index"],
        None,
        True,
        instruction_set,
    )
    queries = [q.double().requires_grad_() for q in inputs["queries"]]
    rows = truth({**inputs, "queries": queries})
    expected = torch.cat(torch.autograd.grad([row.sum() for row in rows], queries))
    tolerance = 1e-12 if dtype == torch.float64 else 3e-6
    torch.testing.assert_close(losses.double(), torch.cat(rows).detach(), rtol=tolerance, atol=1e-7)
    torch.testing.assert_close(grad_queries.double(), expected, rtol=tolerance, atol=tolerance * 10)
    torch.testing.assert_close(share.double(), 1 - torch.exp(-torch.cat(rows).detach()), rtol=tolerance, atol=1e-6)
    assert grad_queries.shape[0] == sum(counts)


@each_backend("multi_queue_infonce")
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_reductions_and_upstream_gradients(
    backend: str, reduction: str, dtype: torch.dtype, rng: torch.Generator
) -> None:
    skip_if_refused(backend, dtype)
    inputs = draw(CASES["ragged-shared-queues"], dtype, rng)
    queries = [q.requires_grad_() for q in inputs["queries"]]
    losses = multi_queue_infonce(**inputs, reduction=reduction, backend=backend)
    expected: list[Tensor] = truth(inputs)
    if reduction == "none":
        assert [len(loss) for loss in losses] == [len(q) for q in queries]
    else:
        assert losses.shape == (len(queries),)
        expected = [row.mean() if reduction == "mean" else row.sum() for row in expected]
    upstream = [torch.randn(e.shape, generator=rng, dtype=dtype) for e in expected]
    ours = torch.autograd.grad(sum((g * loss).sum() for g, loss in zip(upstream, losses, strict=True)), queries)
    theirs = torch.autograd.grad(sum((g * e).sum() for g, e in zip(upstream, expected, strict=True)), queries)
    tolerance = {"rtol": 1e-9, "atol": 1e-12} if dtype == torch.float64 else {"rtol": 2e-5, "atol": 1e-5}
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, **tolerance)


@each_backend("multi_queue_infonce")
def test_stacked_input_equals_a_list(backend: str, rng: torch.Generator) -> None:
    inputs = draw(([6, 6, 6], [1, 0, 1], [40, 30], 16, [0.1, 0.2, 0.3]), torch.float32, rng)
    stacked = {key: torch.stack(inputs[key]).requires_grad_() for key in ("queries", "positives")}
    listed = {key: stacked[key].unbind() for key in stacked}
    results = []
    for form in (stacked, listed, {**stacked, "positives": listed["positives"]}):
        loss = multi_queue_infonce(**{**inputs, **form}, backend=backend)
        results.append((loss, *torch.autograd.grad(loss.sum(), list(stacked.values()))))
    for other in results[1:]:
        for a, b in zip(results[0], other, strict=True):
            assert torch.equal(a, b)


@each_backend("multi_queue_infonce")
def test_only_what_requires_a_gradient_gets_one(backend: str, rng: torch.Generator) -> None:
    inputs = draw(CASES["eight-terms"], torch.float32, rng)
    inputs["positives"][2].requires_grad_()
    multi_queue_infonce(**inputs, backend=backend).sum().backward()
    assert all(tensor.grad is None for tensor in inputs["queries"] + inputs["queues"])
    assert [k.grad is not None for k in inputs["positives"]] == [t == 2 for t in range(8)]
    inputs["positives"][2].requires_grad_(False)
    assert not multi_queue_infonce(**inputs, backend=backend).requires_grad


@each_backend("multi_queue_infonce")
def test_non_contiguous_input(backend: str, rng: torch.Generator) -> None:
    inputs = draw(CASES["ragged-shared-queues"], torch.float32, rng)
    inputs |= {name: place(backend, inputs[name]) for name in ("queries", "positives", "queues")}
    expected = multi_queue_infonce(**inputs, backend=backend)
    strided = {
        "queries": [q.T.contiguous().T for q in inputs["queries"]],
        "positives": [torch.stack([k, k], 1)[:, 0] for k in inputs["positives"]],
        "queues": [inputs["queues"][0].T.contiguous().T, *(torch.cat([x, x], 1)[:, :96] for x in inputs["queues"][1:])],
    }
    torch.testing.assert_close(multi_queue_infonce(**{**inputs, **strided}, backend=backend), expected)


@each_backend("multi_queue_infonce", but=("reference",))
def test_a_bad_row_stays_alone(backend: str, rng: torch.Generator) -> None:
    inputs = draw(([40], [0], [200], 24, [0.1]), torch.float32, rng)
    expected = multi_queue_infonce(**inputs, reduction="none", backend=backend)[0]
    inputs["queries"][0][7] = math.nan
    losses = multi_queue_infonce(**inputs, reduction="none", backend=backend)[0]
    assert losses.isnan().tolist() == [row == 7 for row in range(40)]
    assert torch.equal(losses[8:], expected[8:])


@each_backend("multi_queue_infonce", but=("reference",))
def test_same_bits_for_any_number_of_threads_and_every_run(backend: str, rng: torch.Generator) -> None:
    inputs = draw(([90, 200, 33], [0, 0, 1], [3000, 1500], 32, [0.1] * 3), torch.float32, rng)
    weights, threads, results = weights_for(inputs, rng), torch.get_num_threads(), []
    try:
        for count in (1, 2, 3, 2, 1):
            torch.set_num_threads(count)
            results.append(gradients(inputs, weights, row_losses(backend)))
    finally:
        torch.set_num_threads(threads)
    for other in results[1:]:
        assert all(torch.equal(value, other[key]) for key, value in results[0].items())


MEMORY = """
import resource, torch
from mixfast.ops.infonce import multi_queue_infonce as infonce
torch.set_num_threads(2)
def kib():
    return int(next(line for line in open("/proc/self/status") if line.startswith("VmHWM")).split()[1])
def case(rows, keys):
    queues = [torch.randn(keys, 128) for _ in range(3)]
    return [torch.randn(5, rows, 128, requires_grad=True), torch.randn(5, rows, 128), queues, [0, 1, 2, 0, 1]]
def run(inputs):
    torch.autograd.grad(infonce(*inputs, backend="cpu").sum(), inputs[0])
small, large = case(8, 256), case(512, {keys})
run(small)
before = kib()
run(large)
print((kib() - before) / 1024)
"""


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads the peak of resident memory from /proc")
@pytest.mark.skipif(cpu_native.unavailable() is not None, reason="the cpu backend is not built")
def test_extra_memory_stays_below_8_mib_whatever_the_queue() -> None:
    script = MEMORY.replace("{keys}", "16384")  # 640 MiB of logits at 65536 keys, 160 at these
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert float(done.stdout) <= 8, f"{done.stdout.strip()} MiB"


@settings(max_examples=25, deadline=None)
@given(
    rows=st.lists(st.integers(1, 40), min_size=1, max_size=4),
    keys=st.lists(st.integers(1, 150), min_size=1, max_size=3),
    dim=st.integers(1, 40),
    temperature=st.floats(0.03, 2.0),
    dtype=st.sampled_from(DTYPES),
    seed=st.integers(0, 1000),
)
def test_any_shape(
    rows: list[int], keys: list[int], dim: int, temperature: float, dtype: torch.dtype, seed: int
) -> None:
    index = [(seed + 7 * t) % len(keys) for t in range(len(rows))]
    inputs = draw((rows, index, keys, dim, [temperature] * len(rows)), dtype, generator(str(seed)))
    expected = torch.cat(truth(inputs))
    loss = torch.cat(mixfast.multi_queue_infonce(**inputs, reduction="none"))
    tolerance = 1e-11 if dtype == torch.float64 else 1e-5
    torch.testing.assert_close(loss.double(), expected, rtol=tolerance, atol=tolerance * 0.3 / temperature)
