"""multi_queue_infonce's main kernel for sm_90a (TMA, wgmma), run on the host, against float64 and the other kernel."""

import math
import types

import pytest
import torch
from torch import Tensor

from mixfast.ops.infonce import gpu_cuda
from tests.cuda.emulated import FORWARD, ORDERS, REVERSE, Emulated, emulated
from tests.cuda.test_emulated_infonce import BFLOAT16, HALF, SOURCES, assert_close, forward
from tests.ops.infonce import draw

HOPPER = gpu_cuda.KERNELS["hopper"]
# As in test_emulated_infonce: every padded D, tails of the blocks of rows (128) and keys (128; 64 for D = 256)
CASES = {
    "one-row-one-key": ([1], [0], [1], 64, [0.1]),
    "whole-tiles": ([128], [0], [256], 128, [0.2]),
    "tails": ([129], [0], [129], 128, [0.2]),
    "terms-in-a-tile": ([5, 30, 1, 40, 7], [1, 0, 1, 2, 0], [130, 193, 9], 96, [0.1, 0.07, 0.5, 0.2, 1.0]),
    "wide": ([33, 100], [0, 0], [70], 256, [0.1, 0.2]),
}
kernels = emulated(*SOURCES, sanitizers=("address",))
raced = emulated(*SOURCES, sanitizers=("thread",))


@pytest.mark.parametrize("dtype", [HALF, BFLOAT16], ids=str)
@pytest.mark.parametrize("name", CASES)
def test_forward(kernels: Emulated, name: str, dtype: torch.dtype, rng: torch.Generator) -> None:
    inputs = draw(CASES[name], dtype, rng)
    assert_close(forward(kernels, inputs, kernel=HOPPER), inputs, gpu_cuda.factors(dtype, dtype))


def test_losses_alone_equal_those_with_gradients(kernels: Emulated, rng: torch.Generator) -> None:
    inputs = draw(CASES["terms-in-a-tile"], HALF, rng)
    losses, _, shares = forward(kernels, inputs, kernel=HOPPER)
    alone, _, shares_alone = forward(kernels, inputs, kernel=HOPPER, need_grad=False)
    assert torch.equal(losses, alone) and torch.equal(shares, shares_alone)


def test_valid_len(kernels: Emulated, rng: torch.Generator) -> None:
    """What lies beyond a length is not a number, is copied with the tile, and does not matter."""
    inputs = draw(([5, 9, 3], [0, 1, 2], [140, 40, 300], 128, [0.1] * 3), HALF, rng)
    lengths = [70, 0, 129]
    for queue, length in zip(inputs["queues"], lengths, strict=True):
        queue[length:] = math.nan
    results = forward(kernels, inputs, kernel=HOPPER, valid_len=torch.tensor(lengths))
    inputs["queues"] = [queue[:length] for queue, length in zip(inputs["queues"], lengths, strict=True)]
    assert_close(results, inputs, gpu_cuda.HALF)
    assert all((each[5:14] == 0).all() for each in results if each is not None)


def test_rows_apart_from_each_other(kernels: Emulated, rng: torch.Generator) -> None:
    """Queries of any alignment; queues whose rows are 16-byte aligned. Then queues that the other kernel must take."""
    inputs = draw(([6, 3], [0, 1], [40, 20], 64, [0.1, 0.2]), HALF, rng)
    plain = forward(kernels, inputs, kernel=HOPPER)
    inputs["queries"] = [torch.cat([x, x[:, :3]], 1)[:, :64] for x in inputs["queries"]]
    inputs["queues"] = [torch.cat([x, x], 1)[:, :64] for x in inputs["queues"]]
    for ours, theirs in zip(forward(kernels, inputs, kernel=HOPPER), plain, strict=True):
        assert torch.equal(ours, theirs)
    inputs["queues"] = [x.T.contiguous().T for x in inputs["queues"]]
    for ours, theirs in zip(forward(kernels, inputs, kernel=HOPPER), forward(kernels, inputs), strict=True):
        assert torch.equal(ours, theirs)


def test_split_numbers_go_to_the_other_kernel(kernels: Emulated, rng: torch.Generator) -> None:
    inputs = draw(([7], [0], [40], 64, [0.1]), torch.float32, rng)
    for ours, theirs in zip(forward(kernels, inputs, kernel=HOPPER), forward(kernels, inputs), strict=True):
        assert torch.equal(ours, theirs)


def partials(run: Emulated, inputs: dict, chunk: int, order: int = FORWARD) -> Tensor:
    """Chunks of the main kernel, against float64: sums of weights, of weights times keys. Returns the references."""
    queries, queue, tau = inputs["queries"][0], inputs["queues"][0], inputs["temperature"][0]
    (rows, dim), keys = queries.shape, len(queue)
    chunks = -(-keys // chunk)
    maxima, sums = torch.full((2, chunks, rows), math.nan)
    products = torch.full((chunks, rows, dim), math.nan)
    run("hopper", rows, dim, keys, chunk, queries, tau, queue, maxima, sums, products, order=order)
    for c, part in enumerate(queue.double().split(chunk)):
        weights = torch.exp2(queries.double() @ part.T * (math.log2(math.e) / tau) - maxima[c].double()[:, None])
        torch.testing.assert_close(sums[c].double(), weights.sum(1), rtol=1e-5, atol=0)
        # Weights are rounded to float16, which moves each by 2^-11 of itself at most, or by 2^-25.
        allowed = (2**-11 + 1e-5) * (weights @ part.double().abs()) + 2**-25 * len(part)
        assert ((products[c].double() - weights @ part.double()).abs() <= allowed).all()
    return maxima


@pytest.mark.parametrize("order", [FORWARD, REVERSE, 1])
def test_stages_are_used_again(kernels: Emulated, order: int, rng: torch.Generator) -> None:
    """Ten tiles of keys go through four stages, and two of the second chunk; copies arrive late, early, or between."""
    partials(kernels, draw(([70], [0], [11 * 128 + 50], 64, [0.1]), HALF, rng), 10 * 128, order)


def test_stages_of_wide_keys_are_used_again(kernels: Emulated, rng: torch.Generator) -> None:
    partials(kernels, draw(([3], [0], [6 * 64], 256, [0.1]), HALF, rng), 6 * 64, REVERSE)


@pytest.mark.parametrize("dim", [64, 128, 256])
def test_references_rise(kernels: Emulated, dim: int, rng: torch.Generator) -> None:
    """Keys that match ever better: their weights would overflow float16, so that products so far must shrink."""
    inputs = draw(([20], [0], [600], dim, [0.01]), HALF, rng)
    rows, queue = inputs["queries"][0].float(), inputs["queues"][0]
    inputs["queues"] = [queue[(rows[3] @ queue.float().T).argsort()]]
    tops = (rows[3] @ inputs["queues"][0].float().T).cummax(0).values * (math.log2(math.e) / 0.01)
    assert tops[-1] > tops[127] + 16 > tops[127]
    assert partials(kernels, inputs, 768)[0, 3] > tops[127]


def test_no_race_and_the_same_bits_in_any_order(kernels: Emulated, raced: Emulated, rng: torch.Generator) -> None:
    inputs = draw(([9, 30, 3], [0, 0, 1], [150, 20], 128, [0.1, 0.2, 0.3]), HALF, rng)
    results: list[list[Tensor]] = []
    for run, order in [(raced, ORDERS[-1]), *((kernels, order) for order in ORDERS)]:
        results.append([x for x in forward(run, inputs, kernel=HOPPER, order=order) if x is not None])
    for other in results[1:]:
        assert all(
            a is not None and b is not None and torch.equal(a, b) for a, b in zip(results[0], other, strict=True)
        )


def test_a_kernel_is_taken_for_a_while(monkeypatch: pytest.MonkeyPatch) -> None:
    taken: list[int] = []
    monkeypatch.setattr(gpu_cuda, "_C", types.SimpleNamespace(infonce_use_kernel=taken.append))
    with pytest.raises(ZeroDivisionError), gpu_cuda.kernel("hopper"):
        taken.append(1 // 0)
    assert taken == [HOPPER, -1]
