"""The emulator itself: what is right comes out right in every order, and each kind of fault is found."""

import pytest
import torch
from torch import Tensor

from tests.cuda.emulated import FORWARD, ORDERS, REVERSE, Emulated, EmulationError, emulated

kernels = emulated("tests/cuda/sample_driver.cpp")
addressed = emulated("tests/cuda/sample_driver.cpp", sanitizers=("address",))
THREADS = 64


def ramp(count: int = THREADS) -> Tensor:
    return torch.arange(count, dtype=torch.float32)


def nan(*shape: int) -> Tensor:
    return torch.full(shape, torch.nan)


@pytest.mark.parametrize("order", ORDERS)
def test_barriers_hand_over_shared_memory(kernels: Emulated, order: int) -> None:
    out = nan(THREADS)
    kernels("exchange", ramp(), out, True, order=order)
    assert torch.equal(out, ramp().roll(-33))
    kernels("exchange_in_warp", ramp(), out, True, order=order)
    assert torch.equal(out, ramp().view(-1, 2).flip(1).flatten())


@pytest.mark.parametrize("name", ["exchange", "exchange_in_warp"])
def test_missing_barrier_is_a_race(kernels: Emulated, name: str) -> None:
    if kernels.sanitizer == "thread":
        with pytest.raises(EmulationError, match="ThreadSanitizer: data race"):
            kernels(name, ramp(), nan(THREADS), False)
        return
    results = [nan(THREADS), nan(THREADS)]
    for order, result in zip((FORWARD, REVERSE), results, strict=True):
        kernels(name, ramp(), result, False, order=order)
    assert all(result.isnan().any() for result in results)  # shared memory that nobody has written yet
    assert not torch.equal(results[0].isnan(), results[1].isnan())


def test_race_between_blocks(kernels: Emulated) -> None:
    if kernels.sanitizer == "thread":
        with pytest.raises(EmulationError, match="ThreadSanitizer: data race"):
            kernels("chain_of_blocks", ramp(), nan(3 * THREADS))
        return
    results = [nan(3 * THREADS), nan(3 * THREADS)]
    for order, result in zip((FORWARD, REVERSE), results, strict=True):
        kernels("chain_of_blocks", ramp(), result, order=order)
    assert not torch.equal(results[0].isnan(), results[1].isnan())


def test_out_of_bounds(addressed: Emulated) -> None:
    out = nan(THREADS)
    addressed("write_beyond", out, 0, 0)
    assert torch.equal(out, torch.full((THREADS,), 2.0))
    for beyond in ((1, 0), (0, 1)):
        with pytest.raises(EmulationError, match="heap-buffer-overflow"):
            addressed("write_beyond", nan(THREADS), *beyond)
    addressed("write_beyond", out, 0, 0)  # in a new process


def test_misaligned_vector(addressed: Emulated) -> None:
    with pytest.raises(EmulationError, match="misaligned address"):
        addressed("read_misaligned", ramp(THREADS + 2), nan(THREADS))


def test_unwritten_shared_memory_is_nan(kernels: Emulated) -> None:
    out = ramp()
    kernels("read_unwritten", out)
    assert out.isnan().all()


@pytest.mark.parametrize(
    "how, what",
    [(0, "thread 5 has exited"), (1, "thread 32 waits for the block at"), (2, "thread 16 has exited")],
)
@pytest.mark.parametrize("order", ORDERS)
def test_divergence(kernels: Emulated, order: int, how: int, what: str) -> None:
    with pytest.raises(EmulationError, match=rf"(?s)divergent threads: thread 0 waits for .*, {what}"):
        kernels("diverge", nan(THREADS), how, order=order)


@pytest.mark.parametrize("order", ORDERS)
def test_shuffles(kernels: Emulated, order: int) -> None:
    values, out, ballot = torch.randn(THREADS), nan(THREADS, 4), torch.zeros(THREADS, dtype=torch.int32)
    kernels("shuffle", values, out, ballot, order=order)
    lane = torch.arange(32)
    sources = torch.stack([lane ^ 5, torch.where(lane < 29, lane + 3, lane), torch.where(lane > 2, lane - 3, lane)])
    sources = torch.cat([sources, (lane[None] + 7) % 32])
    for warp in (slice(0, 32), slice(32, 64)):
        assert torch.equal(out[warp], values[warp][sources].T)
        bits = ((values[warp] > 0).long() << lane).sum().item()
        assert set((ballot[warp].long() & 0xFFFFFFFF).tolist()) == {bits}


@pytest.mark.parametrize("order", ORDERS)
def test_copies_arrive_when_waited_for(kernels: Emulated, order: int) -> None:
    source = ramp(THREADS * 8)
    for waited, arrived in ((0, 0), (1, THREADS * 4), (2, THREADS * 8)):
        out = nan(THREADS * 8)
        kernels("copy_async", source, out, waited, THREADS, order=order)
        assert torch.equal(out[:arrived], source[:arrived]) and out[arrived:].isnan().all()
    out = nan(THREADS * 8)
    kernels("copy_async", source, out, 2, 3, order=order)  # all but three are invalid: zeros
    expected = source.view(2, THREADS, 4) * (torch.arange(THREADS) < 3)[None, :, None]
    assert torch.equal(out, expected.flatten())


def test_copy_out_of_bounds(addressed: Emulated) -> None:
    with pytest.raises(EmulationError, match="heap-buffer-overflow"):
        addressed("copy_async", ramp(THREADS * 8 - 1), nan(THREADS * 8), 2, THREADS)
    addressed("copy_async", ramp(THREADS * 5), nan(THREADS * 8), 2, THREADS // 4)  # invalid copies read nothing


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("transposed", [False, True])
def test_matrix_product(kernels: Emulated, dtype: torch.dtype, transposed: bool, rng: torch.Generator) -> None:
    a, b = (torch.randn(16, n, generator=rng).to(dtype) for n in (16, 8))
    start = torch.randn(16, 8, generator=rng)
    product = start.clone()
    name = "multiply_half" if dtype == torch.float16 else "multiply_bfloat16"
    kernels(name, a, b, b.T.contiguous(), product, transposed)
    torch.testing.assert_close(product, (start.double() + a.double() @ b.double()).float(), rtol=0, atol=0)


def test_powers_of_two(kernels: Emulated) -> None:
    exponents, powers = torch.linspace(-200, 130, THREADS), nan(THREADS)
    kernels("approximate", exponents, powers)
    exact = torch.exp2(exponents.double()).float()
    exact[exponents < -126] = 0
    torch.testing.assert_close(powers, exact, rtol=3e-7, atol=0)


@pytest.mark.parametrize("blocks, threads, shared", [(1, 1056, 0), (1, 64, (227 << 10) + 1), (1, 0, 0)])
def test_impossible_launches(kernels: Emulated, blocks: int, threads: int, shared: int) -> None:
    with pytest.raises(EmulationError, match="invalid configuration"):
        kernels("launch", blocks, threads, shared, nan(THREADS))


def test_empty_grid_launches_nothing(kernels: Emulated) -> None:
    out = ramp()
    kernels("launch", 0, 64, 256, out)
    assert torch.equal(out, ramp())
