"""augment_views, draw_views, mix_views in Triton, as triton_interpreted.py has other operations, and run beside it."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

import mixfast
from mixfast.augment import PRESETS
from mixfast.ops.views import gpu_triton
from tests.ops import augmenting
from tests.ops import test_augment_views as views_tests
from tests.ops import test_mix_views as mix_tests

LAST = torch.channels_last
# Of 16 bits beside the tolerance of float32, relative: one unit in the last place; bfloat16 is truncated.
ULP = {torch.float32: 0.0, torch.float16: 2**-10, torch.bfloat16: 2**-7}
RECIPE = replace(augmenting.EVERYTHING, jitter=1.0)
# V, N, size, view, options; dtypes and layouts take turns.
VIEWS: dict[str, tuple[int, int, tuple[int, int], tuple[int, int], dict[str, Any]]] = {
    "bilinear": (2, 3, (32, 32), (32, 32), {"interpolation": "bilinear", "blur_reach": 0}),
    "bicubic": (1, 2, (20, 17), (32, 32), {"grey_first": False, "blur_reach": 0}),
    "16-bit": (1, 2, (9, 40), (33, 7), {"blur_reach": 0, "memory_format": LAST, "dtype": torch.bfloat16}),
    "blur": (2, 2, (21, 30), (19, 27), {"blur_reach": 4, "dtype": torch.float16}),
    "long-blur": (1, 1, (9, 9), (8, 6), {"blur_reach": 40, "memory_format": LAST}),
    "colour-first": (1, 2, (18, 15), (11, 16), {"colour_first": True, "blur_reach": 2}),
    "one-pixel": (1, 2, (1, 1), (1, 1), {}),
    "to-one-pixel": (1, 2, (5, 7), (1, 1), {}),
    "from-one-pixel": (1, 2, (1, 1), (6, 5), {"memory_format": LAST, "interpolation": "bilinear"}),
}


def drawn(views: int, batch: int, size: tuple[int, int], rng: torch.Generator) -> Tensor:
    state = augmenting.new_state(rng)
    return mixfast.draw_views(state, batch, size, [RECIPE] * views, backend="reference")


def views(images: Tensor, parameters: Tensor, backend: str = "triton", **others: Any) -> Tensor:
    """[V, B, 3, S, T]."""
    given = augmenting.options(RECIPE, **others)
    return torch.stack(mixfast.augment_views(images, parameters, backend=backend, **given))


def check(images: Tensor, parameters: Tensor, **others: Any) -> None:
    """Against the reference in the same dtype: values, dtype, layout."""
    given = augmenting.options(RECIPE, **others)
    for ours, theirs in zip(
        *(mixfast.augment_views(images, parameters, backend=each, **given) for each in ("triton", "reference")),
        strict=True,
    ):
        assert ours.dtype == theirs.dtype and ours.stride() == theirs.stride()
        torch.testing.assert_close(ours, theirs, rtol=ULP[ours.dtype], atol=1e-5)


@pytest.mark.parametrize("name", VIEWS)
def test_views(name: str, rng: torch.Generator) -> None:
    count, batch, size, out, others = VIEWS[name]
    check(augmenting.byte_images(batch, rng, size), drawn(count, batch, size, rng), size=out, **others)


@pytest.mark.parametrize(
    ("interpolation", "colour_first", "index"), [("bilinear", True, [2, 2]), ("bicubic", False, [2])]
)
def test_views_of_many_tiles(
    interpolation: str, colour_first: bool, index: list[int], rng: torch.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both the source and the view are 2 x 2 tiles, the last of which are not full; bilinear, two images share a row.

    Bicubic ones are of one image: with 16 taps they take the interpreter longest.
    """
    monkeypatch.setattr(gpu_triton, "TILE", 16)
    monkeypatch.setattr(gpu_triton, "THREADS", 32)
    images, parameters = augmenting.byte_images(3, rng, (18, 30)), drawn(1, len(index), (18, 30), rng)
    others = {"interpolation": interpolation, "colour_first": colour_first}
    check(images, parameters, index=torch.tensor(index), size=(20, 17), **others)


def test_every_order_and_place_of_the_hue(rng: torch.Generator) -> None:
    """Each order at two places, each place in three orders."""
    parameters = drawn(1, 12, (3, 4), rng)
    orders = [(a, b, 3 - a - b) for a in range(3) for b in range(3) if a != b] * 2
    parameters[0, :, 9:13] = torch.tensor([(*order, i % 4) for i, order in enumerate(orders)]).float()
    check(augmenting.byte_images(12, rng, (3, 4)), parameters, blur_reach=0)


def test_rows_and_no_images(rng: torch.Generator) -> None:
    views_tests.test_rows_are_picked_by_index("triton", 1, rng)
    views_tests.test_no_images("triton")


def test_views_of_more_than_32_bits_are_refused() -> None:
    with pytest.raises(ValueError, match=r"views of fewer than 2\^31 numbers; got 3 x 30000 x 30000"):
        views(torch.zeros(0, 3, 2, 2, dtype=torch.uint8), torch.zeros(1, 0, 16), size=30000)


def test_wrong_crops_and_rows_read_no_other_memory(rng: torch.Generator) -> None:
    """A GPU cannot raise without being waited for. What lies outside is clamped: to the image, the first, the last."""
    images, right = augmenting.byte_images(2, rng, (6, 5)), drawn(1, 3, (6, 5), rng)
    wrong = right.clone()
    right[0, :, :4] = torch.tensor([[0.0, 3.0, 6.0, 2.0], [5.0, 0.0, 1.0, 5.0], [0.0, 0.0, 6.0, 5.0]])
    wrong[0, :, :4] = torch.tensor([[-4.0, 3.0, 6.0, 2.0], [99.0, 0.0, 1.0, 5.0], [0.0, 0.0, 6.0, 5.0]])
    right[0, :, 9], wrong[0, :, 9] = torch.tensor([2.0, 0.0, 1.0]), torch.tensor([7.0, -3.0, 1.0])
    first = torch.tensor([0, 1, 1])
    clamped = views(images, wrong, index=torch.tensor([-8, 50, 1]), size=(6, 4))
    assert torch.equal(clamped, views(images, right, index=first, size=(6, 4)))
    right[0, :2, :4] = torch.tensor([[2.0, 2.0, 6.0, 5.0], [0.0, 0.0, 1.0, 1.0]])
    wrong[0, :2, :4] = torch.tensor([[2.0, 2.0, 1e30, 900.0], [-1e30] * 4])
    assert torch.equal(views(images, wrong, index=first, size=3), views(images, right, index=first, size=3))


@pytest.mark.parametrize(
    ("size", "recipes"), [((224, 200), list(PRESETS)), ((3, 1000), ["demo", "wmse"]), ((1, 1), ["v1"])], ids=str
)
def test_draws(size: tuple[int, int], recipes: list[str]) -> None:
    """Bit for bit; in a row of 3 x 1000 pixels few crops fit, so that some are the central one."""
    state, batch = torch.tensor([-(2**61) + 12345, 2**32 - 1]), gpu_triton.DRAWN + 1
    laws = [PRESETS[name] for name in recipes]
    expected = mixfast.draw_views(state.clone(), batch, size, laws, backend="reference")
    assert torch.equal(mixfast.draw_views(state, batch, size, laws, backend="triton"), expected)
    assert state.tolist() == [-(2**61) + 12345, 2**32]
    assert size != (3, 1000) or (expected[..., 3] == 4).any()


def test_no_draws() -> None:
    state = torch.tensor([5, 0])
    assert mixfast.draw_views(state, 0, (4, 4), [PRESETS["demo"]], backend="triton").shape == (1, 0, 16)
    assert state.tolist() == [5, 1]


@pytest.mark.parametrize("layout", [torch.contiguous_format, LAST], ids=str)
@pytest.mark.parametrize("dtype", ULP, ids=str)
def test_mixtures(dtype: torch.dtype, layout: torch.memory_format, rng: torch.Generator) -> None:
    mix_tests.test_boxes_and_blends("triton", dtype, layout, 3, rng)


def test_mixtures_of_every_size(rng: torch.Generator) -> None:
    """Of several programs for an image, of one number and of none."""
    for size in ((1, 1), (40, 37)):
        mix_tests.test_sizes("triton", size, rng)
    mix_tests.test_no_images("triton")
    mix_tests.test_strides_change_nothing("triton", rng)


def test_mixtures_of_more_than_32_bits_are_refused() -> None:
    views = torch.empty(1, 3, 1, 1).expand(1, 3, 30000, 30000)
    with pytest.raises(ValueError, match=r"views of fewer than 2\^31 numbers; got \[3, 30000, 30000\]"):
        gpu_triton.mix_views(views.to("meta"), views.to("meta"), torch.zeros(1, 4).long(), torch.ones(1))
