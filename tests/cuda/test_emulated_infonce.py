"""The CUDA kernels of multi_queue_infonce, run on the host under AddressSanitizer, against float64."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from mixfast.ops._native import DTYPES, REDUCTIONS
from mixfast.ops.infonce import gpu_cuda
from tests.cuda.emulated import ORDERS, Emulated, EmulationError, emulated
from tests.ops.infonce import draw, truth

SOURCES = [
    "tests/cuda/infonce_driver.cpp",
    "csrc/infonce/cuda.cu",
    "csrc/infonce/hopper.cu",
]
HALF, BFLOAT16, FLOAT = torch.float16, torch.bfloat16, torch.float32
# What rounding of the weights leaves of the gradients, as a part of the largest one.
GRADIENTS = {gpu_cuda.HALF: 1e-4, gpu_cuda.BFLOAT16: 1e-3, gpu_cuda.SPLIT: 3e-7}
# rows of each term, queue of each term, keys of each queue, D, temperatures: every padded D, and tails of the blocks of
# rows (64, 128) and keys (16, 32, 64, 128)
CASES = {
    "one-row-one-key": ([1], [0], [1], 64, [0.1]),
    "whole-tiles": ([128], [0], [128], 128, [0.2]),
    "tails": ([129], [0], [65], 128, [0.2]),
    "terms-in-a-tile": ([5, 30, 1, 40, 7], [1, 0, 1, 2, 0], [130, 193, 9], 96, [0.1, 0.07, 0.5, 0.2, 1.0]),
    "several-chunks": ([20], [0], [700], 64, [0.05]),
    "wide": ([33, 2], [0, 0], [50], 256, [0.1, 0.2]),
    "odd": ([4, 3], [0, 1], [20, 3], 7, [0.1, 0.3]),
}


kernels = emulated(*SOURCES, sanitizers=("address",))
raced = emulated(*SOURCES, sanitizers=("thread",))


def memory_of(tensor: Tensor) -> Tensor:
    """The only number of an expanded tensor [N]."""
    return tensor if tensor.stride(0) else torch.tensor([tensor[0].item()], dtype=tensor.dtype)


def matrix(tensor: Tensor) -> list[Any]:
    """Rows, strides and the memory, of which a transposed or narrowed tensor is a part."""
    memory = tensor if tensor.is_contiguous() else tensor._base
    assert memory is not None and memory.is_contiguous() and tensor.storage_offset() == 0
    return [tensor.shape[0], *tensor.stride(), memory]


def terms(inputs: dict, *, positives: bool) -> list[Any]:
    operands: list[Any] = [len(inputs["queries"])]
    for t, query in enumerate(inputs["queries"]):
        operands += [*matrix(query), *(matrix(inputs["positives"][t]) if positives else [0, 0, 0, None])]
        tau = inputs["temperature"]
        operands += [inputs["queue_index"][t], math.nan if isinstance(tau, Tensor) else tau[t]]
    return operands


def scales(inputs: dict) -> list[Any]:
    tau = inputs["temperature"]
    if not isinstance(tau, Tensor):
        return [0, 0, None]
    return [tau.stride(0), DTYPES[tau.dtype], memory_of(tau)]


def forward(
    run: Emulated,
    inputs: dict,
    *,
    reduction: str = "none",
    need_grad: bool = True,
    kind: int | None = None,
    kernel: int = 0,
    **options: Any,
) -> tuple[Tensor, Tensor | None, Tensor]:
    """(losses, grad_queries, negative_share); `options` are valid_len, and those of the emulator."""
    queries, queues = inputs["queries"], inputs["queues"]
    total, dim = sum(map(len, queries)), queries[0].shape[1]
    losses = torch.full((total if reduction == "none" else len(queries),), torch.nan)
    grads = torch.full((total, dim), torch.nan) if need_grad else None
    shares = torch.full((total,), torch.nan)
    kind = gpu_cuda.factors(queries[0].dtype, queues[0].dtype) if kind is None else kind
    run(
        "forward",
        *(dim, REDUCTIONS[reduction], kind, DTYPES[queries[0].dtype], *terms(inputs, positives=True)),
        *(DTYPES[queues[0].dtype], len(queues), *(operand for queue in queues for operand in matrix(queue))),
        *(options.pop("valid_len", None), *scales(inputs), losses, grads, shares, kernel),
        **options,
    )
    return losses, grads, shares


def expected(inputs: dict) -> tuple[Tensor, Tensor, Tensor]:
    """The same in float64, from the definition."""
    queries = [query.double().requires_grad_() for query in inputs["queries"]]
    tau = inputs["temperature"]
    rows = torch.cat(
        truth({**inputs, "queries": queries, "temperature": tau.tolist() if hasattr(tau, "tolist") else tau})
    )
    grads = torch.autograd.grad(rows.sum(), queries)
    return rows.detach(), torch.cat(grads), -torch.expm1(-rows.detach())


def rounding(inputs: dict) -> float:
    """Rounded logits, of size 1 / tau, move a loss by this much, and a gradient by this part of itself."""
    return 2 * torch.finfo(torch.float32).eps / float(min(inputs["temperature"]))


def assert_close(results: tuple[Tensor | None, ...], inputs: dict, kind: int) -> None:
    losses, grads, shares = expected(inputs)
    assert results[1] is not None
    torch.testing.assert_close(results[0].double(), losses, rtol=3e-7, atol=rounding(inputs))
    torch.testing.assert_close(results[2].double(), shares, rtol=0, atol=rounding(inputs))
    slack = (GRADIENTS[kind] + rounding(inputs)) * grads.abs().max().item()
    torch.testing.assert_close(results[1].double(), grads, rtol=0, atol=slack)


@pytest.mark.parametrize("dtype", [HALF, BFLOAT16, FLOAT], ids=str)
@pytest.mark.parametrize("name", CASES)
def test_forward(kernels: Emulated, name: str, dtype: torch.dtype, rng: torch.Generator) -> None:
    inputs = draw(CASES[name], dtype, rng)
    assert_close(forward(kernels, inputs), inputs, gpu_cuda.factors(dtype, dtype))


def test_losses_alone_equal_those_with_gradients(kernels: Emulated, rng: torch.Generator) -> None:
    inputs = draw(CASES["terms-in-a-tile"], HALF, rng)
    losses, _, shares = forward(kernels, inputs)
    alone, _, shares_alone = forward(kernels, inputs, need_grad=False)
    assert torch.equal(losses, alone) and torch.equal(shares, shares_alone)


@pytest.mark.parametrize(("dtype", "keys"), [(HALF, 64 * 64 * 3 + 70), (FLOAT, 64 * 32 * 2 + 40)], ids=str)
def test_stages_are_used_again(kernels: Emulated, dtype: torch.dtype, keys: int, rng: torch.Generator) -> None:
    """More keys than the most chunks, 64, have stages for."""
    inputs = draw(([3], [0], [keys], 64, [0.2]), dtype, rng)
    assert_close(forward(kernels, inputs), inputs, gpu_cuda.factors(dtype, dtype))


@pytest.mark.parametrize("dtype", [HALF, FLOAT], ids=str)
def test_valid_len(kernels: Emulated, dtype: torch.dtype, rng: torch.Generator) -> None:
    """Lengths beyond the queue's count all keys; what lies beyond a length is not a number, and does not matter."""
    rows, keys = [5, 9, 3, 2], [140, 40, 700, 6]
    inputs = draw((rows, [0, 1, 2, 3], keys, 64, [0.1] * 4), dtype, rng)
    lengths = [70, 0, 129, 9]
    for queue, length in zip(inputs["queues"], lengths, strict=True):
        queue[length:] = math.nan
    losses, grads, shares = forward(kernels, inputs, valid_len=torch.tensor(lengths))
    inputs["queues"] = [queue[:length] for queue, length in zip(inputs["queues"], lengths, strict=True)]
    assert_close((losses, grads, shares), inputs, gpu_cuda.factors(dtype, dtype))
    for result in (losses, grads, shares):
        assert result is not None and (result[5:14] == 0).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, HALF, BFLOAT16], ids=str)
def test_a_tensor_of_temperatures(kernels: Emulated, dtype: torch.dtype, rng: torch.Generator) -> None:
    inputs = draw(CASES["odd"], FLOAT, rng)
    for tau in (torch.tensor([0.5, 0.25], dtype=dtype), torch.tensor([0.5], dtype=dtype).expand(2)):
        inputs["temperature"] = tau
        assert_close(forward(kernels, inputs), inputs, gpu_cuda.SPLIT)


@pytest.mark.parametrize("dtypes", [(HALF, FLOAT), (FLOAT, BFLOAT16), (BFLOAT16, HALF)], ids=str)
def test_mixed_dtypes(kernels: Emulated, dtypes: tuple[torch.dtype, torch.dtype], rng: torch.Generator) -> None:
    inputs = draw(([7, 3], [0, 1], [40, 10], 72, [0.1, 0.2]), dtypes[0], rng, dtypes[1])
    assert_close(forward(kernels, inputs), inputs, gpu_cuda.SPLIT)


def test_float32_as_float16(kernels: Emulated, rng: torch.Generator) -> None:
    """What torch's TF32 setting allows: equal to operands rounded to float16."""
    inputs = draw(([7], [0], [40], 64, [0.1]), FLOAT, rng)
    rounded = {**inputs, **{name: [x.half() for x in inputs[name]] for name in ("queries", "queues")}}
    exact = expected({**rounded, "positives": inputs["positives"]})
    losses, grads, _ = forward(kernels, inputs, kind=gpu_cuda.HALF)
    torch.testing.assert_close(losses.double(), exact[0], rtol=0, atol=5e-3)
    torch.testing.assert_close(grads.double(), exact[1], rtol=0, atol=5e-3)


@pytest.mark.parametrize("dtype", [HALF, FLOAT], ids=str)
def test_any_memory(kernels: Emulated, dtype: torch.dtype, rng: torch.Generator) -> None:
    """Transposed queues, rows apart from each other, addresses that are not multiples of 16."""
    inputs = draw(([6, 3], [0, 1], [40, 20], 64, [0.1, 0.2]), dtype, rng)
    plain = forward(kernels, inputs)
    inputs["queues"] = [inputs["queues"][0].T.contiguous().T, torch.cat([inputs["queues"][1]] * 2, 1)[:, :64]]
    inputs["positives"] = [torch.cat([x, x[:, :3]], 1)[:, :64] for x in inputs["positives"]]
    for offset in (0, 4):
        for ours, theirs in zip(forward(kernels, inputs, offset=offset), plain, strict=True):
            assert torch.equal(ours, theirs)


def test_any_number_of_terms(kernels: Emulated, rng: torch.Generator) -> None:
    """More than the arguments of one launch can name."""
    inputs = draw(([1, 2] * 20, [*range(37), 0, 5, 36], [3, 4, 2] * 13, 8, [0.1, 0.3] * 20), HALF, rng)
    assert_close(forward(kernels, inputs), inputs, gpu_cuda.HALF)
    sums, _, _ = forward(kernels, inputs, reduction="sum")
    torch.testing.assert_close(sums.double(), torch.stack([rows.sum() for rows in truth(inputs)]), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_reductions(kernels: Emulated, reduction: str, rng: torch.Generator) -> None:
    inputs = draw(([300, 1, 20], [0, 1, 0], [10, 5], 16, [0.1, 0.2, 0.3]), HALF, rng)
    losses, _, _ = forward(kernels, inputs, reduction=reduction)
    rows = truth(inputs)
    exact = torch.stack([each.mean() if reduction == "mean" else each.sum() for each in rows])
    torch.testing.assert_close(losses.double(), exact, rtol=1e-6, atol=0)


def test_a_bad_row_stays_alone(kernels: Emulated, rng: torch.Generator) -> None:
    inputs = draw(([40], [0], [200], 24, [0.1]), FLOAT, rng)
    before, _, _ = forward(kernels, inputs)
    inputs["queries"][0][7] = math.nan
    losses, _, _ = forward(kernels, inputs)
    assert losses.isnan().tolist() == [row == 7 for row in range(40)]
    assert torch.equal(losses[8:], before[8:])


def test_too_wide_is_refused(kernels: Emulated, rng: torch.Generator) -> None:
    with pytest.raises(EmulationError, match="D up to 256"):
        forward(kernels, draw(([1], [0], [1], 257, [0.1]), FLOAT, rng))


def backward(
    run: Emulated, inputs: dict, forwarded: tuple, grads: Tensor, reduction: str, needs: str, **options: Any
) -> list:
    """[d_queries, d_positives, d_temperature], of which `needs` names the wanted ones by q, p and t."""
    queries = inputs["queries"]
    shape, dtype = forwarded[1].shape, queries[0].dtype
    wanted = [torch.full(shape, torch.nan, dtype=dtype) if name in needs else None for name in "qp"]
    wanted.append(torch.full((len(queries),), torch.nan) if "t" in needs else None)
    operands = [shape[1], REDUCTIONS[reduction], DTYPES[dtype], *terms(inputs, positives=False), *scales(inputs)]
    stride = grads.stride(0)
    operands += [memory_of(grads), stride, *forwarded[1:], *wanted]
    run("backward", *operands, **options)
    return wanted


@pytest.mark.parametrize("dtype", [HALF, BFLOAT16, FLOAT], ids=str)
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_backward(kernels: Emulated, reduction: str, dtype: torch.dtype, rng: torch.Generator) -> None:
    inputs = draw(([70, 3, 1], [0, 1, 0], [20, 5], 40, [0.1, 0.2, 0.3]), dtype, rng)
    forwarded = forward(kernels, inputs)
    grads = torch.randn(74 if reduction == "none" else 3, generator=rng)
    leaves = [x.double().requires_grad_() for x in (*inputs["queries"], *inputs["positives"])]
    tau = torch.tensor(inputs["temperature"], dtype=torch.float64, requires_grad=True)
    rows = truth({**inputs, "queries": leaves[:3], "positives": leaves[3:], "temperature": tau})
    reduced = [each.mean() if reduction == "mean" else each.sum() for each in rows]
    losses = torch.cat(rows) if reduction == "none" else torch.stack(reduced)
    exact = torch.autograd.grad((losses * grads.double()).sum(), [*leaves, tau])
    exact = [torch.cat(exact[:3]), torch.cat(exact[3:6]), exact[6]]
    ours = backward(kernels, inputs, forwarded, grads, reduction, "qpt")
    slack = GRADIENTS[gpu_cuda.factors(dtype, dtype)] + rounding(inputs)
    stored = max(slack, torch.finfo(dtype).eps)
    for found, true, part in zip(ours, exact, (stored, stored, slack), strict=True):
        torch.testing.assert_close(found.double(), true, rtol=0, atol=part * true.abs().max().item())
    for needs in ("q", "p", "t", "qt"):
        for alone, found in zip(backward(kernels, inputs, forwarded, grads, reduction, needs), ours, strict=True):
            assert alone is None or torch.equal(alone, found)


def test_one_upstream_gradient_for_all(kernels: Emulated, rng: torch.Generator) -> None:
    """As losses.sum().backward() hands it over: expanded, with a stride of zero."""
    inputs = draw(CASES["odd"], FLOAT, rng)
    forwarded = forward(kernels, inputs)
    for grads in (torch.tensor(0.5).expand(7), torch.full((7,), 0.5)):
        (d_queries, _, _) = backward(kernels, inputs, forwarded, grads, "none", "q")
        assert torch.equal(d_queries, forwarded[1] * 0.5)


@pytest.mark.parametrize("dtype", [HALF, FLOAT], ids=str)
def test_no_race_and_the_same_bits_in_any_order(
    dtype: torch.dtype, kernels: Emulated, raced: Emulated, rng: torch.Generator
) -> None:
    """Under ThreadSanitizer, for which only barriers order the threads, and in four orders of threads and blocks."""
    inputs = draw(([9, 30, 3], [0, 0, 1], [150, 20], 128 if dtype == HALF else 64, [0.1, 0.2, 0.3]), dtype, rng)
    grads, results = torch.randn(3, generator=rng), []
    for run, order in [(raced, ORDERS[-1]), *((kernels, order) for order in ORDERS)]:
        losses, *rest = forward(run, inputs, reduction="mean", order=order)
        found = backward(run, inputs, (losses, *rest), grads, "mean", "qpt", order=order)
        results.append([losses, *rest, *found])
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))
