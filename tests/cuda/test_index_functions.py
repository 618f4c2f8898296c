"""The arithmetic of the kernels that needs no threads, under AddressSanitizer and UBSan, against plain loops."""

from fractions import Fraction
from typing import NamedTuple

import pytest
import torch
from torch import Tensor

from tests.cuda.emulated import Emulated, emulated

functions = emulated("tests/cuda/index_driver.cpp", sanitizers=("address",))
AXES = [(1, 1), (1, 7), (4, 32), (7, 56), (7, 31), (14, 9), (16, 5), (5, 5), (9, 1), (3, 200)]
LARGEST = 1 << 24


def integers(*shape: int) -> Tensor:
    return torch.full(shape, -1, dtype=torch.int64)


def doubles(*shape: int) -> Tensor:
    return torch.full(shape, torch.nan, dtype=torch.float64)


def exact_taps(pixel: int, cells: int, pixels: int) -> tuple[int, int]:
    """Cell and 2N times the weight of the next one, from the definition of bilinear resizing."""
    source = min(max(Fraction(2 * pixel + 1, 2 * pixels) * cells - Fraction(1, 2), Fraction(0)), Fraction(cells - 1))
    cell = int(source)
    return cell, int((source - cell) * 2 * pixels)


def weight(pixel: int, cell: int, cells: int, pixels: int) -> int:
    lower, upper = exact_taps(pixel, cells, pixels)
    return (2 * pixels - upper if cell == lower else 0) + (upper if cell == lower + 1 else 0)


@pytest.mark.parametrize("cells, pixels", AXES)
def test_taps(functions: Emulated, cells: int, pixels: int) -> None:
    out = integers(pixels, 2)
    functions("taps", cells, pixels, 0, pixels, out)
    assert out.tolist() == [list(exact_taps(pixel, cells, pixels)) for pixel in range(pixels)]


@pytest.mark.parametrize("cells, pixels", AXES)
def test_sums_of_an_interval(functions: Emulated, cells: int, pixels: int) -> None:
    weights = torch.tensor([[weight(x, cell, cells, pixels) for x in range(pixels)] for cell in range(cells)])
    for low, high in ((0, pixels), (pixels // 3, pixels - pixels // 4), (pixels // 2, pixels // 2), (-4, pixels + 9)):
        out = doubles(cells, 2)
        functions("axis_sums", cells, pixels, low, high, 0, cells, out)
        assert out[:, 0].tolist() == weights[:, max(low, 0) : max(high, 0)].sum(1).tolist()
        assert out[:, 1].tolist() == weights.sum(1).tolist()


@pytest.mark.parametrize("cells, pixels", AXES)
def test_runs_cover_the_pixels(functions: Emulated, cells: int, pixels: int) -> None:
    ends, totals, uppers = integers(cells, 2), doubles(cells, 2), integers(pixels)
    functions("runs", cells, pixels, 0, cells, ends, totals, uppers)
    taps = [exact_taps(pixel, cells, pixels) for pixel in range(pixels)]
    assert uppers.tolist() == [upper for _, upper in taps]
    for cell in range(cells):
        own = [pixel for pixel in range(pixels) if taps[pixel][0] == cell]
        assert list(range(*ends[cell].tolist())) == own
        upper = sum(taps[pixel][1] for pixel in own)
        assert totals[cell].tolist() == [2 * pixels * len(own) - upper, upper]


@pytest.mark.parametrize("cells, pixels", [(LARGEST, LARGEST), (1, LARGEST), (LARGEST, 1), (LARGEST - 1, LARGEST)])
def test_largest_axes_do_not_overflow(functions: Emulated, cells: int, pixels: int) -> None:
    taps, sums = integers(3, 2), doubles(1, 2)
    first = max(pixels - 3, 0)
    functions("taps", cells, pixels, first, min(3, pixels), taps)
    expected = [list(exact_taps(pixel, cells, pixels)) for pixel in range(first, pixels)]
    assert taps[: len(expected)].tolist() == expected
    functions("axis_sums", cells, pixels, pixels // 2, pixels, cells - 1, 1, sums)
    functions("runs", cells, pixels, cells - 1, 1, integers(1, 2), doubles(1, 2), None)
    if cells == 1:
        assert sums.tolist() == [[2 * pixels * (pixels - pixels // 2), 2 * pixels * pixels]]


@pytest.mark.parametrize(
    "positions, chunk, w", [(49, 49, 7), (1122, 512, 34), (3000, 1024, 1500), (5, 2, 1), (7, 3, 7)]
)
def test_spans_touch_what_they_hold(functions: Emulated, positions: int, chunk: int, w: int) -> None:
    out = integers(-(-positions // chunk), 6)
    functions("spans", positions, chunk, w, out)
    covered = []
    for first, count, row, rows, column, columns in out.tolist():
        held = range(first, first + count)
        covered += list(held)
        assert {p // w for p in held} == set(range(row, row + rows))
        assert {p % w for p in held} == {(column + i) % w for i in range(columns)} and columns <= w
    assert covered == list(range(positions))


class PoolPlan(NamedTuple):
    vector: int
    lanes: int
    channels: int
    tiles: int
    chunk: int
    row_bytes: int
    weights: int
    scratch: int
    used_bytes: int


class SpreadPlan(NamedTuple):
    vector: int
    lanes: int
    period: int
    columns: int
    channels: int
    positions: int
    tiles: int


SIZES = [(1, 1), (2, 2), (4, 4), (7, 7), (8, 8), (14, 14), (16, 16), (56, 56), (1, 5000), (3000, 2)]
BATCHES = [(1, 1), (2, 65), (256, 2048), (512, 128), (100_000, 3)]


@pytest.mark.parametrize("h, w", SIZES)
@pytest.mark.parametrize("element", [2, 4, 8])
def test_pool_plans(functions: Emulated, h: int, w: int, element: int) -> None:
    for (batch, channels), last in ((each, last) for each in BATCHES for last in (False, True)):
        for address in (1 << 20, (1 << 20) + element):
            out = integers(9)
            functions("pool_plan", batch, channels, h, w, last, element, address, out)
            plan = PoolPlan(*out.tolist())
            step = (channels if last else h * w) * element
            assert address % (plan.vector * element) == 0 and step % (plan.vector * element) == 0
            assert 128 % plan.lanes == 0 and plan.tiles == -(-channels // plan.channels)
            assert plan.used_bytes <= 99 << 10 and plan.weights % 16 == 0 and plan.scratch % 16 == 0
            assert plan.scratch - plan.weights >= plan.chunk * 2 * max(element, 4)
            cells = min(h, plan.chunk // w + 2) + min(w, plan.chunk)
            assert plan.used_bytes - plan.scratch == 16 * (1 + cells)
            if last:
                assert plan.channels == plan.lanes * plan.vector and plan.weights >= 128 * plan.vector * 8
            elif plan.chunk == h * w:
                assert plan.weights >= min(channels, plan.channels) * step + 15
            else:
                assert plan.weights >= min(channels, plan.channels) * plan.row_bytes
                assert plan.row_bytes >= plan.chunk * element + 15


@pytest.mark.parametrize("h, w", SIZES)
@pytest.mark.parametrize("element", [2, 4, 8])
def test_spread_plans(functions: Emulated, h: int, w: int, element: int) -> None:
    for (batch, channels), last in ((each, last) for each in BATCHES for last in (False, True)):
        for address in (1 << 20, (1 << 20) + element):
            out = integers(7)
            functions("spread_plan", batch, channels, h, w, last, element, address, out)
            plan, positions = SpreadPlan(*out.tolist()), h * w
            across = -(-channels // plan.channels)
            if last:
                assert address % (plan.vector * element) == 0 and channels % plan.vector == 0
                assert plan.tiles == across * -(-positions // plan.positions) and 256 % plan.lanes == 0
            else:
                assert plan.tiles == across and positions >= plan.vector
                assert plan.period * positions == plan.columns * plan.vector
                assert plan.channels % plan.period == 0 and plan.vector in (1, 16 // element)
