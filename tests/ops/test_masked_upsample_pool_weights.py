"""region_weights and weighted_pool: the closed form of boxes, the adjoint of masks, and their sums."""

from fractions import Fraction

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from tests.backends import each_backend, refusal, skip_if_refused
from tests.ops.compare import generator
from tests.ops.pooling import NAME, masked_upsample_pool, region_weights, weighted_pool, widest

SIDES = st.integers(1, 40)


def exact_axis(cells: int, pixels: int, low: int, high: int) -> list[Fraction]:
    """What pixels [low, high) of an axis take from each cell, in exact arithmetic, pixel by pixel."""
    sums = [Fraction(0)] * cells
    for pixel in range(low, high):
        place = min(
            max(Fraction((2 * pixel + 1) * cells, 2 * pixels) - Fraction(1, 2), Fraction(0)), Fraction(cells - 1)
        )
        cell = int(place)
        sums[cell] += 1 - (place - cell)
        if place > cell:
            sums[cell + 1] += place - cell
    return sums


def exact_weights(box: tuple[int, ...], size: tuple[int, int], cells: tuple[int, int]) -> Tensor:
    """[2, h, w] of one box, rounded once, at the end."""
    (height, width), (h, w) = size, cells
    x0, y0, x1, y1 = box
    in_y, in_x = exact_axis(h, height, y0, y1), exact_axis(w, width, x0, x1)
    all_y, all_x = exact_axis(h, height, 0, height), exact_axis(w, width, 0, width)
    area = (y1 - y0) * (x1 - x0)
    inside = [[a * b / max(area, 1) for b in in_x] for a in in_y]
    outside = [
        [(all_y[i] * all_x[j] - in_y[i] * in_x[j]) / max(height * width - area, 1) for j in range(w)] for i in range(h)
    ]
    return torch.tensor([[[float(v) for v in row] for row in side] for side in (inside, outside)], dtype=torch.float64)


def rounding_of(backend: str) -> float:
    """Of float32 weights: half a unit of the last place; Triton's are made in float32."""
    return 3e-7 if backend == "triton" else 6.1e-8


@each_backend("masked_upsample_pool", but=("reference",))
@settings(max_examples=80, deadline=None, database=None, derandomize=True)
@given(size=st.tuples(SIDES, SIDES), cells=st.tuples(st.integers(1, 18), st.integers(1, 18)), data=st.data())
def test_box_weights_are_exact(
    backend: str, size: tuple[int, int], cells: tuple[int, int], data: st.DataObject
) -> None:
    x0, x1 = sorted(data.draw(st.tuples(*[st.integers(0, size[1])] * 2)))
    y0, y1 = sorted(data.draw(st.tuples(*[st.integers(0, size[0])] * 2)))
    box = (x0, y0, x1, y1)
    truth = exact_weights(box, size, cells)
    for dtype, rounding in ((torch.float64, 4e-16), (torch.float32, rounding_of(backend))):
        if refusal(NAME, backend, dtype) is not None:
            continue
        ours = region_weights(torch.tensor(box), size, cells, dtype=dtype, backend=backend)
        assert ours.shape == (1, 2, *cells) and ours.dtype == dtype
        assert ((ours[0].double() - truth).abs() <= rounding * truth).all()  # relative, each weight by itself


@each_backend("masked_upsample_pool", but=("reference",))
def test_outside_of_a_nearly_full_box_does_not_cancel(backend: str) -> None:
    size, cells, box = (224, 224), (7, 7), (0, 0, 224, 223)
    ours = region_weights(torch.tensor(box), size, cells, backend=backend)[0, 1]
    truth = exact_weights(box, size, cells)[1]
    assert (truth > 0).sum() == 7
    assert ((ours.double() - truth).abs() <= rounding_of(backend) * truth).all()


@each_backend("masked_upsample_pool", but=("reference",))
def test_sides_of_2_to_the_24(backend: str) -> None:
    """Far beyond 32 bits: the left half of a huge map, whose weights follow from symmetry."""
    side, dtype = 1 << 24, widest(backend)
    box, rounding = torch.tensor([0, 0, side // 2, side]), 4 * torch.finfo(dtype).eps
    weights = region_weights(box, (side, side), (3, 4), dtype=dtype, backend=backend)
    torch.testing.assert_close(weights[0, 0], weights[0, 1].flip(1), rtol=rounding, atol=0)
    torch.testing.assert_close(weights.sum((2, 3)), torch.ones(1, 2, dtype=dtype), rtol=rounding, atol=0)
    torch.testing.assert_close(weights.sum((1, 3))[0], torch.full((3,), 2 / 3, dtype=dtype))


@each_backend("masked_upsample_pool", but=("reference",))
@settings(max_examples=60, deadline=None, database=None, derandomize=True)
@given(
    shape=st.tuples(SIDES, SIDES, st.integers(1, 18), st.integers(1, 18)),
    kind=st.sampled_from(["bool", "uint8", "float64", "float32", "bfloat16"]),
)
def test_mask_weights_match_the_reference(backend: str, shape: tuple[int, ...], kind: str) -> None:
    height, width, h, w = shape
    mask = torch.rand(2, height, width, dtype=torch.float64, generator=generator(f"{shape} {kind}"))
    mask = mask > 0.6 if kind in ("bool", "uint8") else mask.to(getattr(torch, kind))
    mask = mask.to(torch.uint8) * 3 if kind == "uint8" else mask
    dtype = widest(backend)
    ours = region_weights(mask, None, (h, w), dtype=dtype, backend=backend)
    theirs = region_weights(mask, None, (h, w), dtype=torch.float64, backend="reference")
    torch.testing.assert_close(ours.double(), theirs, rtol=0, atol=9 * torch.finfo(dtype).eps)


@each_backend("masked_upsample_pool")
def test_sums_are_one_or_zero(backend: str, rng: torch.Generator) -> None:
    boxes = torch.tensor([[0, 0, 1, 1], [3, 5, 30, 31], [0, 0, 30, 31], [4, 4, 4, 9]])
    weights = region_weights(boxes, (31, 30), (7, 4), backend=backend)
    expected = torch.tensor([[1.0, 1.0], [1.0, 1.0], [1.0, 0.0], [0.0, 1.0]])
    torch.testing.assert_close(weights.sum((2, 3)), expected, rtol=0, atol=1e-6)
    assert (weights >= 0).all()
    mask = torch.stack([torch.rand(31, 30, generator=rng), torch.zeros(31, 30), torch.ones(31, 30)])
    expected = torch.tensor([[1.0, 1.0], [0.0, 1.0], [1.0, 0.0]])
    for regions in (mask, mask > 0.5):
        sums = region_weights(regions, (31, 30), (7, 4), backend=backend).sum((2, 3))
        torch.testing.assert_close(sums, expected, rtol=0, atol=1e-6)


@each_backend("masked_upsample_pool", but=("reference",))
def test_large_byte_masks_leave_the_float_range(backend: str, rng: torch.Generator) -> None:
    """One cell over 4,000 rows: integer sums pass 2**24, where float would stop being exact."""
    mask = torch.rand(1, 4000, 3, generator=rng) > 0.3
    dtype = widest(backend)
    ours = region_weights(mask, None, (2, 2), dtype=dtype, backend=backend)
    theirs = region_weights(mask.double(), None, (2, 2), dtype=torch.float64, backend="reference")
    torch.testing.assert_close(ours.double(), theirs, rtol=1e-12 if dtype == torch.float64 else 1e-6, atol=0)


@each_backend("masked_upsample_pool")
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16], ids=str)
def test_weights_serve_several_maps(backend: str, dtype: torch.dtype, rng: torch.Generator) -> None:
    skip_if_refused(NAME, backend, dtype)
    boxes = torch.tensor([[0, 0, 9, 7], [2, 3, 20, 16]])
    sums = torch.float64 if dtype == torch.float64 else torch.float32
    for regions in (boxes, boxes[0]):
        weights = region_weights(regions, (16, 20), (4, 5), dtype=sums, backend=backend)
        for channels in (3, 70):
            features = torch.randn(2, channels, 4, 5, generator=rng).to(dtype)
            pooled = weighted_pool(features, weights, backend=backend)
            slack = {torch.float16: 2e-3, torch.bfloat16: 2e-2, torch.float32: 1e-6, torch.float64: 1e-14}[dtype]
            for a, b in zip(pooled, masked_upsample_pool(features, regions, (16, 20), backend=backend), strict=True):
                torch.testing.assert_close(a, b, rtol=0, atol=slack)
