"""split_batch_norm in Triton, as triton_interpreted.py has other operations, and run beside it."""

import pytest
import torch

from mixfast.ops.norm import gpu_triton
from tests.ops import test_split_batch_norm as tests
from tests.ops.splitnorm import CASES, FORMATS, Case

# Of two groups where there are more, each of which is a loop here; several pieces and tiles are in LARGER.
FEW = {name: case for name, case in CASES.items() if name not in ("several-pieces", "many-channels")}
FEW |= {"one-pixel": (8, 70, 1, 1, 2), "rows-of-few-channels": (4, 16, 8, 8, 2)}
# Layouts and dtypes take turns; bfloat16 has a test of its own, as the interpreter truncates it.
SOME: list[tuple[str, torch.dtype, torch.memory_format]] = [
    (name, (torch.float32, torch.float16)[number // 2 % 2], FORMATS[number % 2]) for number, name in enumerate(FEW)
]
# Several steps of a sample, chunks of several steps, a last chunk that is shorter; more than one tile of channels.
LARGER: list[tuple[Case, torch.memory_format]] = [
    ((4, 3, 27, 40, 2), torch.contiguous_format),
    ((4, 68, 9, 11, 2), torch.channels_last),
    ((21, 5, 3, 3, 1), torch.channels_last),
    ((21, 5, 3, 3, 1), torch.contiguous_format),
]


@pytest.fixture
def few_programs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Chunks of several steps although the maps are small."""
    monkeypatch.setattr(gpu_triton, "PROGRAMS", 10)


@pytest.mark.parametrize(("name", "dtype", "memory_format"), SOME, ids=str)
def test_no_worse_than_the_reference(
    name: str, dtype: torch.dtype, memory_format: torch.memory_format, rng: torch.Generator
) -> None:
    tests.check("triton", FEW[name], dtype, memory_format, rng)


@pytest.mark.parametrize(("case", "memory_format"), LARGER, ids=str)
@pytest.mark.usefixtures("few_programs")
def test_several_steps(case: Case, memory_format: torch.memory_format, rng: torch.Generator) -> None:
    tests.check("triton", case, torch.float32, memory_format, rng)


@pytest.mark.parametrize("memory_format", FORMATS, ids=str)
@pytest.mark.usefixtures("few_programs")
def test_with_relu_and_residual(memory_format: torch.memory_format, rng: torch.Generator) -> None:
    for dtype, (relu, added) in zip((torch.float32, torch.float16, torch.float32), tests.PARTS, strict=True):
        tests.check("triton", (6, 5, 7, 9, 2), dtype, memory_format, rng, relu=relu, added=added)


@pytest.mark.usefixtures("few_programs")
def test_as_the_other_backends(rng: torch.Generator) -> None:
    """What depends on the kernels; layouts of the input and repeated passes are the operator's, for every backend."""
    first, last = FORMATS
    tests.test_hand_numbers("triton")
    tests.test_far_from_zero("triton", last, rng)
    tests.test_a_constant_channel_becomes_its_bias("triton", first)
    tests.test_a_bad_number_stays_in_its_group_and_channel("triton", last, rng)
    tests.test_only_what_is_wanted("triton", rng)
    tests.test_zeros_pass_no_gradient_and_bad_numbers_do("triton")
    tests.test_what_relu_saves_is_what_the_next_layer_saves("triton", rng)


def test_bfloat16(rng: torch.Generator) -> None:
    """Within the interpreter's truncation, of two units in the last of eight places."""
    inputs = tests.draw(CASES["odd"], torch.bfloat16, torch.channels_last, rng)
    ours, expected = tests.results(inputs, "triton"), tests.truth(inputs)
    for name, value in expected.items():
        exact = name not in ("y", "d_x")
        torch.testing.assert_close(ours[name].double(), value, rtol=1e-5 if exact else 2**-7, atol=1e-4)


def test_plan() -> None:
    """Tiles fill what memory is read in; chunks depend on shapes alone."""
    maps = torch.empty(512, 64, 32, 32, dtype=torch.bfloat16)
    last, first = (gpu_triton.plan(maps.contiguous(memory_format=each), 8) for each in reversed(FORMATS))
    assert last.constants == {"BLOCK_P": 32, "BLOCK_C": 64} and first.constants == {"BLOCK_P": 512, "BLOCK_C": 4}
    assert (last.steps, last.total, last.tiles, last.chunk, last.chunks) == (32, 2048, 1, 16, 128)
    assert (first.steps, first.total, first.tiles, first.chunk, first.chunks) == (2, 128, 16, 16, 8)
    assert last.sizes == (8, 64, 1024, 1, 64) and first.sizes == (8, 64, 1024, 1024, 1)
    assert gpu_triton.why_not("cpu", torch.float64) is not None
    assert gpu_triton.merge_constants(132) == {"BLOCK_K": 256, "BLOCK_C": 4}
