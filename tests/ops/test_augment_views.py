"""augment_views: every backend against torchvision image by image, and against the reference in every shape."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import mixfast
from mixfast.augment import AugmentConfig
from mixfast.ops.views import cpu_native
from tests.backends import device_of, each_backend
from tests.ops.augmenting import RECIPES, assert_same, by_torchvision, byte_images, new_state, options

LAYOUTS = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}
needs_cpu = pytest.mark.skipif(cpu_native.unavailable() is not None, reason=str(cpu_native.unavailable()))


def views(images: Tensor, parameters: Tensor, backend: str, **others: Any) -> list[Tensor]:
    """On the backend's device and back."""
    device = device_of(backend)
    moved = {name: value.to(device) if isinstance(value, Tensor) else value for name, value in others.items()}
    made = mixfast.augment_views(images.to(device), parameters.to(device), backend=backend, **moved)
    return [view.cpu() for view in made]


def drawn(cfg: AugmentConfig, count: int, size: tuple[int, int], rng: torch.Generator, number: int = 1) -> Tensor:
    return mixfast.draw_views(new_state(rng), count, size, [cfg] * number, backend="reference")


@each_backend("augment_views")
@pytest.mark.parametrize("name", RECIPES)
def test_recipes_match_torchvision(backend: str, name: str, rng: torch.Generator) -> None:
    pytest.importorskip("torchvision", reason="torchvision is the oracle")
    cfg, images, size = RECIPES[name], byte_images(40, rng), (24, 20)
    parameters = drawn(cfg, 40, (32, 32), rng)
    (ours,) = views(images, parameters, backend, **options(cfg, size=size))
    theirs = torch.stack([by_torchvision(images[i], parameters[0, i], cfg, size) for i in range(40)])
    assert ours.shape == (40, 3, 24, 20) and ours.dtype == torch.float32
    assert_same(ours, theirs, cfg, 2e-5)


@each_backend("augment_views", but=("reference",))
@pytest.mark.parametrize("name", ["ref", "v2", "everything, colour first"])
@pytest.mark.parametrize("side", [(1, 1), (1, 9), (37, 5), (64, 64), (224, 193)], ids=str)
def test_large_odd_and_tiny_images(backend: str, name: str, side: tuple[int, int], rng: torch.Generator) -> None:
    """The mean of a large view is a sum of many blocks; torch sums in another order."""
    cfg = replace(RECIPES[name], solarise=0.0)
    images, parameters = byte_images(4, rng, side), drawn(cfg, 4, side, rng, 2)
    for size in (side, (side[1] + 2, max(side[0] // 2, 1))):
        ours = views(images, parameters, backend, **options(cfg, size=size))
        for view, other in zip(ours, views(images, parameters, "reference", **options(cfg, size=size)), strict=True):
            torch.testing.assert_close(view, other, rtol=0, atol=3e-5)


@each_backend("augment_views")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("side", [32, 15], ids=str)
def test_formats_round_the_float32_view_once(
    backend: str, dtype: torch.dtype, layout: str, side: int, rng: torch.Generator
) -> None:
    cfg = RECIPES["demo"]
    images, parameters = byte_images(5, rng), drawn(cfg, 5, (32, 32), rng, 2)
    plain = views(images, parameters, backend, **options(cfg, size=side))
    made = views(images, parameters, backend, **options(cfg, size=side, dtype=dtype, memory_format=LAYOUTS[layout]))
    for view, other in zip(made, plain, strict=True):
        assert view.is_contiguous(memory_format=LAYOUTS[layout])
        assert torch.equal(view, other.to(dtype))


@each_backend("augment_views")
@pytest.mark.parametrize("number", [1, 2, 3])
def test_rows_are_picked_by_index(backend: str, number: int, rng: torch.Generator) -> None:
    cfg, images = RECIPES["v2"], byte_images(9, rng)
    index = torch.tensor([8, 0, 3, 3, 5])
    parameters = drawn(cfg, 5, (32, 32), rng, number)
    made = views(images, parameters, backend, **options(cfg, index=index))
    assert len(made) == number
    for view, other in zip(made, views(images[index], parameters, backend, **options(cfg)), strict=True):
        assert torch.equal(view, other)


@each_backend("augment_views")
def test_no_images(backend: str) -> None:
    none = torch.zeros(0, 3, 8, 8, dtype=torch.uint8)
    made = views(none, torch.zeros(2, 0, 16), backend, **options(RECIPES["demo"], size=4))
    assert [view.shape for view in made] == [(0, 3, 4, 4)] * 2


@needs_cpu
@settings(max_examples=30, deadline=None)
@given(
    height=st.integers(1, 40), width=st.integers(1, 40), out=st.tuples(st.integers(1, 40), st.integers(1, 40)),
    count=st.integers(1, 5), number=st.integers(1, 3), name=st.sampled_from(sorted(RECIPES)),
    layout=st.sampled_from(sorted(LAYOUTS)), seed=st.integers(0, 2**31),
)  # fmt: skip
def test_cpu_matches_the_reference_whatever_the_shape(
    height: int, width: int, out: tuple[int, int], count: int, number: int, name: str, layout: str, seed: int
) -> None:
    rng = torch.Generator().manual_seed(seed)
    cfg = replace(RECIPES[name], solarise=0.0)
    images, parameters = byte_images(count, rng, (height, width)), drawn(cfg, count, (height, width), rng, number)
    how = options(cfg, size=out, memory_format=LAYOUTS[layout])
    for view, other in zip(
        views(images, parameters, "cpu", **how), views(images, parameters, "reference", **how), strict=True
    ):
        torch.testing.assert_close(view, other, rtol=0, atol=2e-5)


@needs_cpu
@pytest.mark.parametrize("code", cpu_native.instruction_sets())
@pytest.mark.parametrize("name", ["v2", "everything, colour first"])
def test_every_instruction_set(code: int, name: str, rng: torch.Generator, monkeypatch: pytest.MonkeyPatch) -> None:
    cfg = replace(RECIPES[name], solarise=0.0)
    images, parameters = byte_images(6, rng, (70, 33)), drawn(cfg, 6, (70, 33), rng)
    monkeypatch.setattr(cpu_native.augment_views, "__defaults__", (code,))
    for layout in LAYOUTS.values():
        how = options(cfg, size=(35, 50), memory_format=layout)
        (ours,), (theirs,) = (views(images, parameters, backend, **how) for backend in ("cpu", "reference"))
        torch.testing.assert_close(ours, theirs, rtol=0, atol=2e-5)


@needs_cpu
def test_threads_change_no_bit(rng: torch.Generator) -> None:
    cfg, images = RECIPES["everything"], byte_images(64, rng)
    parameters = drawn(cfg, 64, (32, 32), rng, 2)
    before, made = torch.get_num_threads(), []
    for threads in (1, 3):
        torch.set_num_threads(threads)
        made.append(torch.stack(views(images, parameters, "cpu", **options(cfg))))
    torch.set_num_threads(before)
    assert torch.equal(*made)


@needs_cpu
def test_crops_that_leave_the_image_read_nothing_outside(rng: torch.Generator) -> None:
    """Values mean nothing, but every pixel is one of the image's."""
    images, parameters = byte_images(5, rng, (9, 7)), torch.zeros(1, 5, 16)
    parameters[0, :, 5:8] = 1
    wild = torch.tensor([[-5, -5, 99, 99], [8, 6, 9, 9], [1e30, 2, -3, 0], [float("nan"), 0, 9, 7], [0, 3, 9, 1e30]])
    parameters[0, :, :4] = wild
    (made,) = mixfast.augment_views(images, parameters, size=6, mean=(0, 0, 0), std=(1, 1, 1), backend="cpu")
    assert ((made >= 0) & (made <= 1)).all()


@each_backend("augment_views")
@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
def test_whole_image_keeps_every_byte(backend: str, interpolation: str, rng: torch.Generator) -> None:
    images, parameters = byte_images(3, rng, (8, 12)), torch.zeros(1, 3, 16)
    parameters[0] = torch.tensor([0, 0, 8, 12, 0, 1, 1, 1, 0, 0, 1, 2, 0, 0, 0, 0.0])
    plain = {"mean": (0, 0, 0), "std": (1, 1, 1), "interpolation": interpolation}
    (made,) = views(images, parameters, backend, **plain)
    assert torch.equal((made * 255).round(), images.float())
