"""Boxes as detectors have them and tokens as transformers have them, against the upsampled map in float64."""

import re
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from mixfast import masked_upsample_pool
from mixfast.adapters import pool_boxes, token_map

SIZE = (24, 40)
FLOATS = [
    torch.tensor([[3.2, 4.6, 17.7, 20.4], [0.0, 0.0, 40.0, 24.0], [10.2, 3.0, 10.4, 9.0]]),  # the last is thin
    torch.zeros(0, 4),
    torch.tensor([[38.9, 22.6, 39.9, 23.4]]),
]
WHOLE = [
    [(3, 5, 18, 20), (0, 0, 40, 24), (10, 3, 11, 9)],
    [],
    [(39, 23, 40, 24)],
]  # the last: 22.6 to 23.4, centre 23.0


def by_definition(features: Tensor, box: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    """Means [C] of one upsampled map [C, h, w] over the pixels inside and outside a box."""
    large = F.interpolate(features[None], SIZE, mode="bilinear", align_corners=False)[0]
    x0, y0, x1, y1 = box
    inside = torch.zeros(SIZE, dtype=torch.bool)
    inside[y0:y1, x0:x1] = True
    return tuple(
        large[:, side].mean(dim=1) if side.any() else large.new_zeros(len(large)) for side in (inside, ~inside)
    )  # type: ignore[return-value]


def drawn(rng: torch.Generator, batch: int) -> Tensor:
    return torch.randn(batch, 5, 3, 4, generator=rng, dtype=torch.float64).requires_grad_()


def compare(features: Tensor, actual: tuple[Tensor, ...], expected: tuple[Tensor, ...], rng: torch.Generator) -> None:
    torch.testing.assert_close(actual, expected, atol=1e-12, rtol=1e-12)
    upstream = [torch.randn(side.shape, generator=rng, dtype=torch.float64) for side in expected]
    ours, theirs = (torch.autograd.grad(sides, features, upstream, retain_graph=True) for sides in (actual, expected))
    torch.testing.assert_close(ours, theirs, atol=1e-12, rtol=1e-12)


def stacked(features: Tensor, boxes: list[list[tuple[int, ...]]]) -> tuple[Tensor, ...]:
    rows = [by_definition(image, box) for image, own in zip(features, boxes, strict=True) for box in own]
    return tuple(torch.stack(side) for side in zip(*rows, strict=True))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_lists_of_float_boxes(rng: torch.Generator, dtype: torch.dtype) -> None:
    features = drawn(rng, 3)
    actual = pool_boxes(features, [rows.to(dtype) for rows in FLOATS], SIZE)
    compare(features, actual, stacked(features, WHOLE), rng)


def test_several_boxes_of_each_image(rng: torch.Generator) -> None:
    features, count = drawn(rng, 2), 3
    boxes = torch.tensor(
        [[[1, 2, 30, 20], [0, 0, 0, 0], [5, 5, 6, 6]], [[0, 0, 40, 24], [8, 1, 9, 24], [4, 4, 20, 10]]]
    )
    expected = stacked(features, [[tuple(box) for box in own] for own in boxes.tolist()])
    expected = tuple(side.view(2, count, 5) for side in expected)
    for given in (boxes, boxes.int(), boxes.double(), boxes + 0.3):
        compare(features, pool_boxes(features, given.clamp(max=40), SIZE), expected, rng)
    assert not expected[0][0, 1].any() and not expected[1][1, 0].any()  # the empty box, and what is around the full one


def test_no_boxes_at_all(rng: torch.Generator) -> None:
    features = drawn(rng, 2)
    assert [side.shape for side in pool_boxes(features, [torch.zeros(0, 4)] * 2, SIZE)] == [(0, 5)] * 2
    assert [side.shape for side in pool_boxes(features, torch.zeros(2, 0, 4), SIZE)] == [(2, 0, 5)] * 2


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32], ids=str)
def test_the_dtype_of_features_is_kept_under_autocast_too(rng: torch.Generator, dtype: torch.dtype) -> None:
    features = drawn(rng, 3).detach().to(dtype)
    expected = tuple(side.to(dtype) for side in stacked(features.double(), WHOLE))
    tolerance = 1e-6 if dtype is torch.float32 else torch.finfo(dtype).eps
    for enabled in (False, True):
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            actual = pool_boxes(features, FLOATS, SIZE)
        torch.testing.assert_close(actual, expected, atol=tolerance, rtol=tolerance)


@pytest.mark.parametrize(
    "boxes, message",
    [
        (torch.zeros(3, 4), "boxes must be 3 tensors [M_i, 4], as many as images, or [3, M, 4]; got [3, 4]"),
        (torch.zeros(2, 1, 4), "or [3, M, 4]; got [2, 1, 4]"),
        ([torch.zeros(1, 4)] * 2, "as many as images, or [3, M, 4]; got [[1, 4], [1, 4]]"),
        ([torch.zeros(1, 5)] * 3, "got [[1, 5], [1, 5], [1, 5]]"),
        (torch.tensor([0.0, 0.0, 41.2, 4.0]).expand(3, 1, 4), "box 0 leaves the map"),
        (torch.tensor([9.0, 0.0, 1.0, 4.0]).expand(3, 1, 4), "box 0 is inverted"),
    ],
)
def test_bad_boxes(rng: torch.Generator, boxes: Any, message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        pool_boxes(drawn(rng, 3), boxes, SIZE)


@pytest.mark.parametrize("prefix, grid, shape", [(1, None, (3, 3)), (0, (3, 4), (3, 4)), (5, (2, 1), (2, 1))], ids=str)
def test_tokens_as_a_map(
    rng: torch.Generator, prefix: int, grid: tuple[int, int] | None, shape: tuple[int, int]
) -> None:
    h, w = shape
    tokens = torch.randn(2, prefix + h * w, 5, generator=rng, dtype=torch.float64).requires_grad_()
    maps = token_map(tokens, grid, prefix)
    assert all(
        torch.equal(maps[:, :, y, x], tokens[:, prefix + y * w + x]) for y in range(h) for x in range(w)
    ) and maps.shape == (2, 5, h, w)
    box = (3, 5, 18, 20)
    compare(
        tokens,
        masked_upsample_pool(maps, torch.tensor(box), SIZE),
        stacked(token_map(tokens, grid, prefix), [[box], [box]]),
        rng,
    )


@pytest.mark.parametrize(
    "shape, arguments, message",
    [
        ((2, 1 + 12, 5), {}, "[B, 1 + h w, C] with a square number of patches; got [2, 13, 5]"),
        ((2, 1 + 12, 5), {"grid": (3, 5)}, "with 3 x 5 patches; got [2, 13, 5]"),
        ((2, 1, 5), {}, "a square number of patches; got [2, 1, 5]"),
        ((2, 10), {}, "got [2, 10]"),
    ],
)
def test_tokens_that_do_not_fit(shape: tuple[int, ...], arguments: Any, message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        token_map(torch.zeros(shape), **arguments)
