"""Components equal a flood fill, whatever their shape."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from mixfast.scoring.labelling import connected_components, label_components

SPIRAL = """
#########
........#
#######.#
#.....#.#
#.###.#.#
#.#...#.#
#.#####.#
#.......#
#########
"""
STAIRS = """
#...#
.#.#.
..#..
.#.#.
#...#
"""


def drawn(picture: str) -> Tensor:
    return torch.tensor([[cell == "#" for cell in line] for line in picture.split()])


def flood(mask: Tensor, diagonal: bool) -> Tensor:
    """The definition: from every pixel in reading order, fill what is connected and not yet filled."""
    height, width = mask.shape
    found = torch.full((height, width), -1)
    steps = [(0, 1), (1, 0), (0, -1), (-1, 0)] + ([(1, 1), (1, -1), (-1, 1), (-1, -1)] if diagonal else [])
    for start in range(height * width):
        stack = [divmod(start, width)]
        while stack:
            y, x = stack.pop()
            if 0 <= y < height and 0 <= x < width and mask[y, x] and found[y, x] < 0:
                found[y, x] = start
                stack += [(y + dy, x + dx) for dy, dx in steps]
    return found


def by_hand(masks: Tensor, diagonal: bool) -> list[tuple[int, int, list[int]]]:
    """(mask, area, box) of every component, from the flood fill."""
    rows = []
    for number, mask in enumerate(masks):
        labels = flood(mask, diagonal)
        for name in labels.unique().tolist():
            if name >= 0:
                y, x = (labels == name).nonzero().T
                box = [x.min().item(), y.min().item(), x.max().item() + 1, y.max().item() + 1]
                rows.append((number, len(y), box))
    return rows


def assert_components(masks: Tensor, diagonal: bool) -> None:
    assert torch.equal(
        label_components(masks, diagonal=diagonal), torch.stack([flood(mask, diagonal) for mask in masks])
    )
    found = connected_components(masks, diagonal=diagonal)
    rows = zip(found.mask.tolist(), found.area.tolist(), found.box.tolist(), strict=True)
    assert list(rows) == by_hand(masks, diagonal)


@pytest.mark.parametrize("diagonal", [True, False])
@pytest.mark.parametrize("share", [0.2, 0.45, 0.6, 0.9])
def test_random_masks_equal_the_flood_fill(share: float, diagonal: bool, rng: torch.Generator) -> None:
    assert_components(torch.rand(12, 13, 9, generator=rng) < share, diagonal)


@pytest.mark.parametrize("diagonal", [True, False])
@pytest.mark.parametrize("picture", [SPIRAL, STAIRS], ids=["spiral", "stairs"])
def test_long_paths(picture: str, diagonal: bool) -> None:
    mask = drawn(picture)
    assert_components(torch.stack([mask, mask.flip(0), mask.flip(1), ~mask]), diagonal)


def test_corners_join_only_if_they_may() -> None:
    mask = drawn(STAIRS)[None]
    assert connected_components(mask).area.tolist() == [9]
    assert connected_components(mask, diagonal=False).area.tolist() == [1] * 9


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 7), st.integers(1, 7), st.booleans(), st.data())
def test_small_masks_equal_the_flood_fill(height: int, width: int, diagonal: bool, data: st.DataObject) -> None:
    cells = data.draw(st.lists(st.booleans(), min_size=2 * height * width, max_size=2 * height * width))
    assert_components(torch.tensor(cells).view(2, height, width), diagonal)


def test_empty_and_full_masks() -> None:
    masks = torch.stack([torch.zeros(3, 4, dtype=torch.bool), torch.ones(3, 4, dtype=torch.bool)])
    found = connected_components(masks)
    assert (found.mask.tolist(), found.area.tolist(), found.box.tolist()) == ([1], [12], [[0, 0, 4, 3]])
    nothing = connected_components(masks[:1])
    assert nothing.mask.shape == (0,) and nothing.box.shape == (0, 4)
    assert torch.equal(label_components(masks[:1]), torch.full((1, 3, 4), -1))


def test_many_masks_are_numbered_through(rng: torch.Generator) -> None:
    """Two million pixels are labelled in several parts, and give the components of each mask alone."""
    masks = torch.rand(8, 500, 500, generator=rng) < 0.01
    together, alone = connected_components(masks), [connected_components(mask[None]) for mask in masks]
    assert torch.equal(together.mask, torch.cat([part.mask + number for number, part in enumerate(alone)]))
    assert torch.equal(together.area, torch.cat([part.area for part in alone]))
    assert torch.equal(together.box, torch.cat([part.box for part in alone]))
