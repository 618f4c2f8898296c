"""The emulator of what sm_90 does beside its threads: copies of boxes, their barriers, wgmma; every fault is found."""

import pytest
import torch
from torch import Tensor

from tests.cuda.emulated import FORWARD, ORDERS, REVERSE, Emulated, EmulationError, emulated

kernels = emulated("tests/cuda/hopper_driver.cpp", sanitizers=("address",))
raced = emulated("tests/cuda/hopper_driver.cpp", sanitizers=("thread",))
NONE, NO_WAIT, NO_PROXY_FENCE, UNALIGNED, NO_FENCE, EARLY, REUSED, NO_END, ONE_WARP, WRITTEN = range(10)
ROWS, WIDTH = 64, 64  # of a box


def swizzled(box: Tensor) -> Tensor:
    """A box [64, 64] as it should lie: the 16 bytes of chunk c of row r at place c ^ (r % 8)."""
    rows, chunks = torch.arange(ROWS)[:, None], torch.arange(8)[None]
    return box.view(ROWS, 8, 8)[rows, chunks ^ (rows % 8)].reshape(ROWS, WIDTH)


def copied(run: Emulated, tensor: Tensor, at: tuple[int, int], fault: int = NONE, **options: int) -> Tensor:
    out = torch.zeros(ROWS, WIDTH, dtype=torch.float16)
    columns = options.pop("columns", tensor.shape[1])
    run("copy", columns, len(tensor), tensor.shape[1], tensor, *at, fault, out, **options)
    return out


@pytest.mark.parametrize("order", ORDERS)
def test_boxes(kernels: Emulated, order: int, rng: torch.Generator) -> None:
    """Within the tensor, and beyond its end both ways, where there are zeros and no memory."""
    tensor = torch.randn(100, 96, generator=rng).half()
    inside = copied(kernels, tensor, (16, 30), order=order)
    assert torch.equal(inside, swizzled(tensor[30:94, 16:80].contiguous()))
    expected = torch.zeros(ROWS, WIDTH).half()
    expected[:40, :32] = tensor[60:, 64:]
    assert torch.equal(copied(kernels, tensor, (64, 60), order=order), swizzled(expected))
    expected[:, 24:] = 0
    assert torch.equal(copied(kernels, tensor, (64, 60), columns=88, order=order), swizzled(expected))


def test_a_box_arrives_when_waited_for(kernels: Emulated, rng: torch.Generator) -> None:
    tensor = torch.randn(64, 64, generator=rng).half()
    assert copied(kernels, tensor, (0, 0), NO_WAIT, order=FORWARD).isnan().all()


@pytest.mark.parametrize(
    ("fault", "what"),
    [
        (NO_PROXY_FENCE, "does not see the barrier"),
        (UNALIGNED, "no multiple of 1024"),
        (NO_END, "ended before its copies"),
    ],
)
def test_wrong_copies(kernels: Emulated, fault: int, what: str, rng: torch.Generator) -> None:
    with pytest.raises(EmulationError, match=what):
        copied(kernels, torch.randn(64, 64, generator=rng).half(), (0, 0), fault)


def test_maps_that_the_driver_refuses(kernels: Emulated) -> None:
    for width, options in ((60, {}), (64, {"columns": 65}), (64, {"offset": 8})):
        with pytest.raises(EmulationError, match="no such map"):
            copied(kernels, torch.zeros(64, width).half(), (0, 0), **options)


def product(run: Emulated, rng: torch.Generator, twice: bool, fault: int = NONE, order: int = FORWARD) -> None:
    """Small integers, so that the products are exact."""
    a, b = torch.randint(-2, 3, (2, 64, 64), generator=rng).half()
    out = torch.full((64, 64), torch.nan)
    run("multiply", a, b, out, twice, fault, order=order)
    exact = a.double() @ b.double().T
    exact = exact.half().double() @ b.double() if twice else exact
    torch.testing.assert_close(out, exact.float(), rtol=0, atol=0)


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("twice", [False, True])
def test_products(kernels: Emulated, order: int, twice: bool, rng: torch.Generator) -> None:
    """Of matrices in shared memory, and of registers with the same tile, read by its columns."""
    product(kernels, rng, twice, order=order)


@pytest.mark.parametrize("fault", [NO_PROXY_FENCE, EARLY])
def test_products_of_what_is_not_there(kernels: Emulated, fault: int, rng: torch.Generator) -> None:
    """Numbers that wgmma does not see yet, and sums that are not there yet, are NaN."""
    with pytest.raises(AssertionError, match="nan"):
        product(kernels, rng, False, fault)


@pytest.mark.parametrize(
    ("fault", "what"),
    [
        (NO_FENCE, "touched after the last wgmma_fence"),
        (WRITTEN, "touched after the last wgmma_fence"),
        (REUSED, "operands of wgmma that changed"),
        (NO_END, "ended before its products"),
        (ONE_WARP, "different matrices"),
    ],
)
def test_wrong_products(kernels: Emulated, fault: int, what: str, rng: torch.Generator) -> None:
    with pytest.raises(EmulationError, match=what):
        product(kernels, rng, False, fault)


@pytest.mark.parametrize("order", ORDERS)
def test_some_of_the_warps_meet(kernels: Emulated, order: int) -> None:
    out = torch.full((96,), torch.nan)
    kernels("meet", out, NONE, order=order)
    lanes = torch.arange(32.0)
    assert torch.equal(out, torch.cat([lanes + 32, lanes, 2 * lanes + 32]))


def test_a_barrier_that_nobody_reaches(kernels: Emulated) -> None:
    with pytest.raises(EmulationError, match=r"no thread can go on: thread 64 waits for others at .*hopper_driver"):
        kernels("meet", torch.zeros(96), NO_END)


def test_races_between_some_of_the_warps(raced: Emulated) -> None:
    out = torch.zeros(96)
    raced("meet", out, NONE, order=REVERSE)
    with pytest.raises(EmulationError, match="ThreadSanitizer: data race"):
        raced("meet", out, NO_WAIT)
