"""A thousand calls give the same bits, while other work keeps the GPU's schedule changing: no race, no atomics."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from tests.gpu.device import (
    DEVICE,
    boxes,
    each_infonce_backend,
    each_norm_backend,
    each_pool_backend,
    each_views_backend,
    infonce,
    norm,
    pool,
    unit,
    views,
)
from tests.ops.augmenting import byte_images

REPEATS = 1000


def assert_always_the_same(run: Callable[[], tuple[Tensor, ...]]) -> None:
    first = run()
    assert all(torch.isfinite(each).all() for each in first)
    same = torch.ones((), dtype=torch.bool, device=DEVICE)
    noise, other = torch.randn(512, 512, device=DEVICE), torch.cuda.Stream()
    other.wait_stream(torch.cuda.current_stream())
    for number in range(REPEATS):
        if number % 7 == 0:
            with torch.cuda.stream(other):
                noise.mm(noise)
        for again, expected in zip(run(), first, strict=True):
            same &= (again == expected).all()
    assert same.item()


@each_pool_backend
@pytest.mark.parametrize("kind", ["boxes", "bool", "float32"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_pooling(backend: str, dtype: torch.dtype, kind: str, rng: torch.Generator) -> None:
    features = torch.randn(64, 300, 7, 7, generator=rng).to(DEVICE, dtype)
    grads = torch.randn(2, 64, 300, generator=rng).to(DEVICE, dtype)
    regions, size = boxes(64, 56, rng), (56, 56)
    if kind != "boxes":
        regions = torch.rand(64, 56, 56, generator=rng).to(DEVICE)
        regions = regions > 0.6 if kind == "bool" else regions
    assert_always_the_same(lambda: pool(features, regions, size, grads, backend))


@each_infonce_backend
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
def test_infonce(backend: str, dtype: torch.dtype, rng: torch.Generator) -> None:
    queries = [unit(rows, 128, rng=rng, dtype=dtype) for rows in (200, 64, 77)]
    positives = [unit(len(each), 128, rng=rng, dtype=dtype) for each in queries]
    queues = [unit(keys, 128, rng=rng, dtype=dtype) for keys in (3000, 4096)]
    assert_always_the_same(lambda: infonce(queries, positives, queues, backend))


@each_views_backend
@pytest.mark.parametrize("side", [32, 96])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_views(backend: str, dtype: torch.dtype, side: int, rng: torch.Generator) -> None:
    images = byte_images(40, rng, (side, side)).to(DEVICE)
    state = torch.tensor([5, 7], device=DEVICE)
    layout = torch.channels_last if dtype == torch.bfloat16 else torch.contiguous_format

    def run() -> tuple[Tensor, ...]:
        return views(state.clone(), images, None, backend, dtype=dtype, memory_format=layout)

    assert_always_the_same(run)


@each_norm_backend
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=str)
def test_norm(backend: str, layout: torch.memory_format, rng: torch.Generator) -> None:
    """Many chunks of a group."""
    maps = torch.randn(3, 64, 72, 14, 14, generator=rng).to(DEVICE, torch.bfloat16)
    x, residual, upstream = (each.contiguous(memory_format=layout) for each in maps)
    assert_always_the_same(lambda: norm(x, residual, upstream, backend))
