"""The CUDA kernels of split_batch_norm, run on the host under sanitizers, against the definition in float64."""

from typing import Any

import pytest
import torch
from torch import Tensor

from mixfast.ops._native import DTYPES as CODES
from tests.cuda.emulated import FORWARD, ORDERS, Emulated, EmulationError, emulated
from tests.ops.splitnorm import FORMATS, NAMES, Case, draw, judge, truth

SOURCES = ("tests/cuda/norm_driver.cpp", "csrc/norm/cuda.cu")
kernels = emulated(*SOURCES, sanitizers=("address",))
raced = emulated(*SOURCES, sanitizers=("thread",))
FIRST, LAST = FORMATS
DTYPES = (torch.bfloat16, torch.float32, torch.float16)
PARTS = ((False, False), (True, False), (False, True), (True, True))  # relu, and whether there is a residual
# B, C, H, W, groups
ODD: Case = (12, 3, 5, 7, 4)
VECTORS: Case = (4, 24, 4, 6, 2)  # of channels, of which the last lane has none, and of pixels
CHUNKS: Case = (2, 31, 24, 28, 1)  # more than the rows of threads that merge; one group
BOTH: list[Case] = [
    ODD,
    VECTORS,
    (6, 5, 1, 7, 3),  # one row
    (8, 4, 5, 5, 8),  # one sample of a group
    (4, 8, 40, 41, 2),  # several positions of a thread, chunks of which the last is shorter
]
CASES = [(case, layout) for case in BOTH for layout in FORMATS] + [
    ((8, 1, 9, 9, 2), FIRST),  # one channel
    ((16, 72, 1, 1, 4), LAST),  # one pixel
    ((4, 264, 2, 2, 2), LAST),  # more channels than a block takes
    (CHUNKS, LAST),
]


def in_memory(maps: Tensor, layout: torch.memory_format) -> Tensor:
    return (maps.permute(0, 2, 3, 1) if layout == LAST else maps).contiguous()


def as_maps(memory: Tensor, layout: torch.memory_format) -> Tensor:
    return memory.permute(0, 3, 1, 2) if layout == LAST else memory


def normed(run: Emulated, inputs: dict[str, Any], layout: torch.memory_format, **how: int) -> dict[str, Tensor]:
    """What mixfast/ops/norm/gpu_cuda.py does on a GPU; results are NaN at first, so that a skipped number shows."""
    x, relu, splits = (inputs[name] for name in ("x", "relu", "num_splits"))
    batch, channels, height, width = x.shape
    maps = batch, channels, height * width, splits, layout == LAST, CODES[x.dtype]
    x, upstream = (in_memory(inputs[name], layout) for name in ("x", "upstream"))
    residual = in_memory(inputs["residual"], layout) if "residual" in inputs else None
    y, d_x, d_residual = (torch.full_like(x, torch.nan) for _ in range(3))
    numbers = torch.zeros(1, dtype=torch.int64)
    run("workspace", *maps, numbers)
    running = [inputs[name].clone() for name in ("running_mean", "running_var")]
    means, inverses = torch.full((2, splits, channels), torch.nan)
    given = (*running, residual, 0.1, 1e-5, relu, y, means, inverses)
    run("forward", *maps, x, inputs["weight"], inputs["bias"], *given, torch.full((int(numbers),), torch.nan), **how)
    d_weight, d_bias = torch.full((2, channels), torch.nan)
    masked = d_residual if relu and residual is not None else None
    saved = x, y if relu else None, inputs["weight"], means, inverses
    made = d_x, masked, d_weight, d_bias, torch.full((int(numbers),), torch.nan)
    run("backward", *maps, upstream, *saved, *made, **how)
    arriving = [] if residual is None else [as_maps(upstream if masked is None else masked, layout)]
    found = as_maps(y, layout), as_maps(d_x, layout), d_weight, d_bias, *running, *arriving
    return dict(zip(NAMES, found, strict=False))


@pytest.mark.parametrize("case, layout", CASES, ids=str)
def test_no_worse_than_the_reference(
    kernels: Emulated, case: Case, layout: torch.memory_format, rng: torch.Generator
) -> None:
    """Dtypes, parts and orders take turns."""
    number = CASES.index((case, layout))
    relu, added = PARTS[(number + number // 4) % 4]
    inputs = draw(case, DTYPES[number % 3], layout, rng, relu=relu, added=added)
    judge(normed(kernels, inputs, layout, order=ORDERS[number % 4]), inputs)


@pytest.mark.parametrize("layout", FORMATS, ids=str)
def test_addresses_that_are_no_multiples_of_16_bytes(
    kernels: Emulated, layout: torch.memory_format, rng: torch.Generator
) -> None:
    inputs = draw(VECTORS, torch.bfloat16, layout, rng, relu=True, added=layout == LAST)
    judge(normed(kernels, inputs, layout, offset=8), inputs)


@pytest.mark.parametrize("layout", FORMATS, ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_rounds_after_norm_and_sum(
    kernels: Emulated, dtype: torch.dtype, layout: torch.memory_format, rng: torch.Generator
) -> None:
    """The bits of the three operations one after the other, forward and backward."""
    fused = draw((4, 8, 2, 4, 2), dtype, layout, rng, relu=True, added=True)
    plain = {name: value for name, value in fused.items() if name != "residual"} | {"relu": False}
    ours, norm = normed(kernels, fused, layout), normed(kernels, plain, layout)
    assert torch.equal(ours["y"], (norm["y"] + fused["residual"]).relu())
    masked = fused["upstream"].where(ours["y"] > 0, 0)
    assert torch.equal(ours["d_residual"], masked)
    apart = normed(kernels, plain | {"upstream": masked}, layout)
    for name in ("d_x", "d_weight", "d_bias"):
        assert torch.equal(ours[name], apart[name]), name
    alone = normed(kernels, plain | {"relu": True}, layout)
    apart = normed(kernels, plain | {"upstream": fused["upstream"].where(norm["y"] > 0, 0)}, layout)
    assert torch.equal(alone["y"], norm["y"].relu())
    for name in ("d_x", "d_weight", "d_bias"):
        assert torch.equal(alone[name], apart[name]), name


@pytest.mark.parametrize("layout", FORMATS, ids=str)
def test_far_from_zero(kernels: Emulated, layout: torch.memory_format, rng: torch.Generator) -> None:
    """Squares of numbers near 4096 would leave nothing of a variance of one in float32."""
    inputs = draw((4, 5, 40, 41, 2), torch.float32, layout, rng)
    inputs["x"] = inputs["x"].sub(inputs["x"].mean((0, 2, 3), keepdim=True)).div(3).add(4096)
    ours, expected = normed(kernels, inputs, layout), truth(inputs)
    for name in ("y", "running_mean", "running_var"):  # float32 knows a mean of 4096 to 2.4e-4
        torch.testing.assert_close(ours[name].double(), expected[name], rtol=1e-4, atol=1e-3)


def test_zeros_pass_no_gradient_and_bad_numbers_do(kernels: Emulated) -> None:
    """A weight of zero leaves bias and residual; a bad number stays in its channel."""
    inputs = draw((6, 2, 1, 1, 2), torch.float32, FIRST, torch.Generator(), relu=True, added=True)
    inputs |= {"weight": torch.zeros(2), "bias": torch.ones(2), "upstream": torch.arange(12.0).view(6, 2, 1, 1)}
    inputs["residual"] = torch.tensor([-2.0, -1, -1, 0, torch.nan, 3]).view(6, 1, 1, 1).repeat(1, 2, 1, 1)
    inputs["x"][2, 1] = torch.inf
    ours = normed(kernels, inputs, FIRST)
    first, second = ours["y"].flatten(1).T
    torch.testing.assert_close(first, torch.tensor([0, 0, 0, 1, torch.nan, 4]), rtol=0, atol=0, equal_nan=True)
    assert second.isnan().tolist() == [True, False, True, False, True, False] and second[5] == 4
    assert ours["d_residual"][:, 0].flatten().tolist() == [0, 0, 0, 6, 8, 10] and ours["d_bias"][0] == 24
    assert ours["running_var"].isnan().tolist() == [False, True]


@pytest.mark.parametrize("case", [VECTORS, CHUNKS], ids=str)
def test_every_order_gives_the_same_bits(kernels: Emulated, case: Case, rng: torch.Generator) -> None:
    inputs = draw(case, torch.bfloat16, LAST, rng, relu=True, added=True)
    first = normed(kernels, inputs, LAST, order=FORWARD)
    for order in ORDERS[1:]:
        for name, value in normed(kernels, inputs, LAST, order=order).items():
            assert torch.equal(value, first[name]), f"{name}, order {order}"


@pytest.mark.parametrize("case, layout", [(ODD, FIRST), (VECTORS, LAST), (CHUNKS, LAST)], ids=str)
def test_no_races(raced: Emulated, case: Case, layout: torch.memory_format, rng: torch.Generator) -> None:
    """In one order: what ThreadSanitizer sees is that no barrier stands between two accesses."""
    inputs = draw(case, torch.bfloat16, layout, rng, relu=True, added=case != ODD)
    assert all(value.isfinite().all() for value in normed(raced, inputs, layout).values())


@pytest.mark.parametrize("maps", [(2, 1, 1 << 30, 1, False, 0), (2, 3, 4, 1, True, CODES[torch.float64])], ids=str)
def test_what_there_is_no_plan_for_is_refused(kernels: Emulated, maps: tuple[int, ...]) -> None:
    with pytest.raises(EmulationError, match="invalid argument"):
        kernels("forward", *maps, *[None] * 6, 0.1, 1e-5, False, *[None] * 4)
    with pytest.raises(EmulationError, match="invalid argument"):
        kernels("backward", *maps, *[None] * 11)
