"""mix.boxes: the rule by which CutMix boxes are drawn, against a loop and against its known moments."""

import math

import pytest
import torch
from torch import Tensor

from mixfast.mix import (
    MixtureConfig,
    boxes_around,
    boxes_of_area,
    boxes_within,
    draw,
    place,
    sample_centres,
    sample_lam,
)


def boxes_of(
    batch: int, size: tuple[int, int], seed: int, count: int = 1, *, alpha: float = 1.0, per_sample: bool = True
) -> list[tuple[Tensor, Tensor]]:
    """`count` draws of (boxes, share outside) from one lam0, as a method makes them."""
    config, rng = MixtureConfig(alpha=alpha, box_per_sample=per_sample), torch.Generator().manual_seed(seed)
    donor = torch.empty(batch, 0, *size)  # cutmix looks at its size alone
    how = draw(batch, rng, config)
    return [place(donor, how.lam0, rng, config) for _ in range(count)]


def interval(extent: int, lam0: float, centre: int) -> tuple[int, int]:
    """The rule in plain words: an even side around the centre, clipped, at least one pixel."""
    side = math.floor(extent * math.sqrt(1 - lam0))
    first, last = max(centre - side // 2, 0), min(centre + side // 2, extent)
    return first, max(last, first + 1)


@pytest.mark.parametrize("size", [(32, 32), (20, 48), (7, 5), (1, 9)], ids=str)
@pytest.mark.parametrize("per_sample", [False, True])
def test_boxes_follow_the_rule_for_the_numbers_drawn(size: tuple[int, int], per_sample: bool) -> None:
    height, width = size
    draws = 50 if per_sample else 1
    for seed in range(20):
        pairs = boxes_of(50, size, seed, 2, per_sample=per_sample)
        rng = torch.Generator().manual_seed(seed)
        lam0 = torch.rand(draws, generator=rng)
        for boxes, lam in pairs:
            rows = torch.randint(height, (draws,), generator=rng)
            columns = torch.randint(width, (draws,), generator=rng)
            for n in range(50):
                i = n if per_sample else 0
                y0, y1 = interval(height, lam0[i].item(), int(rows[i]))
                x0, x1 = interval(width, lam0[i].item(), int(columns[i]))
                assert boxes[n].tolist() == [x0, y0, x1, y1]
                assert lam[n].item() == pytest.approx(1 - (y1 - y0) * (x1 - x0) / (height * width), abs=1e-7)


def test_moments_and_limits_at_32_pixels() -> None:
    """E[lam] = 0.701, sd 0.183; two boxes of one lam0 differ in area by 0.096 on average (numerical integration)."""
    (boxes, lam), (_, other) = boxes_of(400_000, (32, 32), 0, 2)
    x0, y0, x1, y1 = boxes.unbind(dim=1)
    width, height = x1 - x0, y1 - y0
    inside = (x0 > 0) & (y0 > 0) & (x1 < 32) & (y1 < 32)
    assert lam.mean().item() == pytest.approx(0.701, abs=0.002)
    assert lam.std().item() == pytest.approx(0.183, abs=0.002)
    assert (lam - other).abs().mean().item() == pytest.approx(0.096, abs=0.002)
    assert (width >= 1).all() and (height >= 1).all()
    assert int(width.max()) == int(height.max()) == 30
    assert int((width * height).max()) == 900
    assert ((width[inside] % 2 == 0) | (width[inside] == 1)).all()  # widened boxes alone are odd
    assert (width[inside] == height[inside]).all()


def test_rows_and_columns_are_not_exchanged() -> None:
    boxes, _ = boxes_of(20_000, (8, 64), 1)[0]
    assert int(boxes[:, 2].max()) == 64 and int(boxes[:, 3].max()) == 8
    assert (boxes[:, :2] >= 0).all()


def test_one_box_per_batch_by_default_and_two_centres() -> None:
    (first, lam), (second, _) = boxes_of(6, (32, 32), 2, 2, per_sample=False)
    assert first.dtype == torch.int64 and lam.dtype == torch.float32
    assert (first == first[0]).all() and (lam == lam[0]).all()
    assert not torch.equal(first, second)


@pytest.mark.parametrize("alpha", [0.2, 1.0, 5.0])
def test_alpha_is_the_concentration_of_lam0(alpha: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """Beta(a, a) has mean 1/2 and deviation 1 / (2 sqrt(2 a + 1)); centred boxes are not clipped and show lam0."""
    monkeypatch.setattr(torch, "randint", lambda extent, shape, **_: torch.full(shape, extent // 2))
    _, lam = boxes_of(100_000, (4096, 4096), 3, alpha=alpha)[0]
    assert lam.mean().item() == pytest.approx(0.5, abs=0.01)
    assert lam.std().item() == pytest.approx(1 / (2 * math.sqrt(2 * alpha + 1)), abs=0.005)


def test_the_outside_is_never_empty_even_for_lam0_zero() -> None:
    centres = sample_centres(4000, (4, 6), torch.Generator().manual_seed(4))
    boxes, lam = boxes_around(centres, torch.zeros(1), (4, 6))
    assert lam.min().item() == pytest.approx(1 - 2 * 4 / 24)
    assert ((boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])).max() == 8


def test_same_generator_state_same_boxes() -> None:
    first, second = (boxes_of(8, (32, 32), 5, alpha=0.7)[0] for _ in range(2))
    assert torch.equal(first[0], second[0]) and torch.equal(first[1], second[1])


def test_lam0_is_uniform_for_alpha_1() -> None:
    rng = torch.Generator().manual_seed(6)
    assert torch.equal(sample_lam(5, rng), torch.rand(5, generator=torch.Generator().manual_seed(6)))


@pytest.mark.parametrize("size", [(32, 32), (20, 48), (2, 3), (1, 1)], ids=str)
def test_boxes_of_an_area_follow_the_rule_for_the_numbers_drawn(size: tuple[int, int]) -> None:
    boxes = boxes_of_area(200, size, (0.1, 0.4), (0.5, 2.0), torch.Generator().manual_seed(3))
    numbers = torch.rand(4, 200, generator=torch.Generator().manual_seed(3)).double().T.tolist()
    for (x0, y0, x1, y1), (a, r, x, y) in zip(boxes.tolist(), numbers, strict=True):
        share, ratio = 0.1 + 0.3 * a, 0.5 * 4**r
        for extent, part, at, first, last in (
            (size[1], share * ratio, x, x0, x1),
            (size[0], share / ratio, y, y0, y1),
        ):
            side = min(max(round(extent * math.sqrt(part)), 1), max(extent - 1, 1))
            assert last - first == side
            assert first == min(math.floor(at * (extent - side + 1)), extent - side)


def test_boxes_within_regions_follow_the_rule_for_the_numbers_drawn() -> None:
    regions = torch.tensor([[0.0, 0.0, 8.0, 4.0], [3.5, -2.0, 4.5, 9.0]])
    boxes = boxes_within(regions, 3, 0.25, torch.Generator().manual_seed(3))
    assert boxes.shape == (2, 3, 4)
    u = torch.rand(2, 2, 3, 2, generator=torch.Generator().manual_seed(3)).double()
    for n, m, axis in [(n, m, axis) for n in range(2) for m in range(3) for axis in range(2)]:
        low, high = regions[n, axis].item(), regions[n, 2 + axis].item()
        side = (0.25 + 0.75 * u[0, n, m, axis].item()) * (high - low)
        first = low + u[1, n, m, axis].item() * (high - low - side)
        assert boxes[n, m, axis].item() == pytest.approx(first, abs=1e-5)
        assert boxes[n, m, 2 + axis].item() == pytest.approx(first + side, abs=1e-5)
