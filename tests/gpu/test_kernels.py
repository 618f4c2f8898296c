"""Both main kernels of multi_queue_infonce that an H100 or H200 can run, mma.sync and wgmma, side by side."""

import pytest
import torch
from torch import Tensor

from mixfast.ops.infonce import gpu_cuda
from mixfast.ops.infonce._operators import Terms
from tests.cuda.test_emulated_infonce import expected, rounding
from tests.gpu import every_kernel
from tests.gpu.device import DEVICE, infonce, unit
from tests.gpu.test_graphs import captured
from tests.gpu.test_repeats import assert_always_the_same
from tests.ops.infonce import draw

CASES = {
    "training-step": ([512] * 5, [0, 1, 2, 0, 1], [4096] * 3, 128, [0.2, 0.1, 0.2, 0.1, 0.07]),
    "ragged": ([5, 70, 129, 1], [1, 0, 1, 2], [130, 7000, 9], 96, [0.1, 0.07, 0.5, 0.2]),
    "narrow": ([300, 20], [0, 0], [20000], 64, [0.1, 0.05]),
    "wide": ([200, 33], [1, 0], [65, 5000], 256, [0.2, 0.1]),
}


def missing(name: str) -> str | None:
    if reason := gpu_cuda.unavailable():
        return reason
    return None if name in gpu_cuda.kernels() else "it takes compute capability 9.0, and a build for it"


def marks(name: str) -> list[pytest.MarkDecorator]:
    reason = missing(name)
    return [pytest.mark.gpu, *([pytest.mark.skip(reason=reason)] if reason else [])]


each_kernel = pytest.mark.parametrize("kernel", [pytest.param(name, marks=marks(name)) for name in gpu_cuda.KERNELS])
needs_hopper = [pytest.mark.gpu, pytest.mark.skipif(missing("hopper") is not None, reason=str(missing("hopper")))]
HALVES = pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)


def results(inputs: dict, kernel: str) -> list[Tensor]:
    """Losses, gradients of the queries and shares of the negatives, of each row."""
    queries, positives, queues = (
        [each.to(DEVICE) for each in inputs[key]] for key in ("queries", "positives", "queues")
    )
    terms = Terms(queries, None, inputs["temperature"], "none")
    with gpu_cuda.kernel(kernel):
        found = gpu_cuda.forward(terms, positives, queues, inputs["queue_index"], None, True)
    return [each.double().cpu() for each in found if each is not None]


@HALVES
@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("kernel", [pytest.param("hopper", marks=needs_hopper)])
def test_no_less_exact_than_the_other(kernel: str, name: str, dtype: torch.dtype, rng: torch.Generator) -> None:
    """Largest errors against float64: those of mma.sync, which test_multi_queue_infonce.py bounds, may double."""
    inputs = draw(CASES[name], dtype, rng)
    for ours, other, exact in zip(results(inputs, kernel), results(inputs, "ampere"), expected(inputs), strict=True):
        error, others = ((each - exact).abs().max().item() for each in (ours, other))
        assert error <= 2 * others + rounding(inputs) * exact.abs().max().item()


@HALVES
@each_kernel
def test_every_result(kernel: str, dtype: torch.dtype) -> None:
    """Filling queues, many terms, a long queue, a tensor of temperatures, both passes, losses alone."""
    with gpu_cuda.kernel(kernel):
        for name, check in every_kernel.contrasts("cuda", dtype):
            assert not every_kernel.fault(check("cuda"), check("reference"), dtype), name


@HALVES
@each_kernel
def test_always_the_same_bits(kernel: str, dtype: torch.dtype, rng: torch.Generator) -> None:
    queries = [unit(rows, 128, rng=rng, dtype=dtype) for rows in (200, 64, 77)]
    positives = [unit(len(each), 128, rng=rng, dtype=dtype) for each in queries]
    queues = [unit(keys, 128, rng=rng, dtype=dtype) for keys in (3000, 4096)]
    with gpu_cuda.kernel(kernel):
        assert_always_the_same(lambda: infonce(queries, positives, queues, "cuda"))


@each_kernel
def test_captured_in_a_graph(kernel: str, rng: torch.Generator) -> None:
    """Maps of queues travel as arguments of the launch: replays read what lies in the queues then."""
    queries, positives = ([unit(rows, 128, rng=rng, dtype=torch.float16) for rows in (33, 64)] for _ in range(2))
    queues = [unit(keys, 128, rng=rng, dtype=torch.float16) for keys in (300, 1100)]
    valid_len = torch.zeros(2, dtype=torch.int64, device=DEVICE)
    with gpu_cuda.kernel(kernel):
        graph, replayed = captured(lambda: infonce(queries, positives, queues, "cuda", valid_len))
        for lengths in ((300, 1), (129, 1100)):
            for queue in queues:
                queue.copy_(unit(*queue.shape, rng=rng))
            valid_len.copy_(torch.tensor(lengths))
            graph.replay()
            for ours, theirs in zip(replayed, infonce(queries, positives, queues, "cuda", valid_len), strict=True):
                assert torch.equal(ours, theirs)
