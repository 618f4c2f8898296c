"""Streams other than the default one, devices other than the first, and torch.compile."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

import mixfast
from tests.gpu.device import (
    DEVICE,
    INDEX,
    boxes,
    each_infonce_backend,
    each_pool_backend,
    each_views_backend,
    infonce,
    pool,
    unit,
    views,
)
from tests.ops.augmenting import EVERYTHING, assert_same, byte_images

WAIT = 100_000_000  # clock cycles, some 50 ms
needs_two = pytest.mark.skipif(torch.cuda.device_count() < 2, reason="there is no second GPU")


def assert_stays_on_its_stream(given: list[Tensor], run: Callable[[], tuple[Tensor, ...]]) -> None:
    """`given` gets its values late, on another stream: work on any other stream would still see NaN or 0."""
    expected, values, stream = run(), [each.clone() for each in given], torch.cuda.Stream()
    torch.cuda.synchronize()
    with torch.cuda.stream(stream):
        run()  # what this allocates, the call below finds
        for each in given:
            each.fill_(float("nan") if each.is_floating_point() else 0)
        torch.cuda.synchronize()
        torch.cuda._sleep(WAIT)
        for each, value in zip(given, values, strict=True):
            each.copy_(value)
        results = run()
        assert not stream.query(), "the call waited for the GPU"
    stream.synchronize()
    for ours, theirs in zip(results, expected, strict=True):
        assert torch.equal(ours, theirs)


@each_pool_backend
def test_pooling_on_another_stream(backend: str, rng: torch.Generator) -> None:
    features, regions = torch.randn(6, 40, 7, 7, generator=rng).to(DEVICE), boxes(6, 56, rng)
    grads = torch.randn(2, 6, 40, generator=rng).to(DEVICE)
    assert_stays_on_its_stream([features, grads], lambda: pool(features, regions, (56, 56), grads, backend))


@each_infonce_backend
def test_infonce_on_another_stream(backend: str, rng: torch.Generator) -> None:
    queries, positives = ([unit(rows, 64, rng=rng) for rows in (33, 64, 5)] for _ in range(2))
    queues = [unit(keys, 64, rng=rng) for keys in (300, 1100)]
    assert_stays_on_its_stream([*queries, *queues], lambda: infonce(queries, positives, queues, backend))


@each_views_backend
def test_views_on_another_stream(backend: str, rng: torch.Generator) -> None:
    images, state = byte_images(9, rng, (48, 80)).to(DEVICE), torch.tensor([3, 1], device=DEVICE)

    def run() -> tuple[Tensor, ...]:
        results = views(state, images, None, backend)
        state[1].sub_(1)
        return results

    assert_stays_on_its_stream([images, state], run)


@needs_two
@each_pool_backend
def test_pooling_on_another_device(backend: str, rng: torch.Generator) -> None:
    features, regions = torch.randn(6, 40, 7, 7, generator=rng), boxes(6, 56, rng).to("cuda:1")
    grads = torch.randn(2, 6, 40, generator=rng).to("cuda:1")
    ours = pool(features.to("cuda:1"), regions, (56, 56), grads, backend)
    theirs = pool(features.double(), regions.cpu(), (56, 56), grads.cpu().double(), "reference")
    assert torch.cuda.current_device() == 0
    for each, expected in zip(ours, theirs, strict=True):
        assert each.device == torch.device("cuda:1")
        torch.testing.assert_close(each.cpu().double(), expected, rtol=1e-6, atol=1e-6)


@needs_two
@each_infonce_backend
def test_infonce_on_another_device(backend: str, rng: torch.Generator) -> None:
    queries, positives = ([unit(rows, 64, rng=rng).to("cuda:1") for rows in (33, 64, 5)] for _ in range(2))
    queues = [unit(keys, 64, rng=rng).to("cuda:1") for keys in (300, 1100)]
    ours = infonce(queries, positives, queues, backend)
    theirs = infonce(*([each.cpu() for each in group] for group in (queries, positives, queues)), "reference")
    assert torch.cuda.current_device() == 0
    for each, expected in zip(ours, theirs, strict=True):
        assert each.device == torch.device("cuda:1")
        torch.testing.assert_close(each.cpu(), expected, rtol=1e-4, atol=1e-5)


@needs_two
@each_views_backend
def test_views_on_another_device(backend: str, rng: torch.Generator) -> None:
    images, state = byte_images(9, rng), torch.tensor([3, 1])
    ours = views(state.to("cuda:1"), images.to("cuda:1"), None, backend)
    theirs = views(state, images, None, "reference")
    assert torch.cuda.current_device() == 0 and torch.equal(ours[0].cpu(), theirs[0])
    for each, expected in zip(ours, theirs, strict=True):
        assert each.device == torch.device("cuda:1")
        assert_same(each.cpu(), expected, EVERYTHING, 3e-5)


@each_views_backend
def test_views_compile_whole(backend: str, rng: torch.Generator) -> None:
    images, state = byte_images(9, rng).to(DEVICE), torch.tensor([3, 1], device=DEVICE)
    compiled = torch.compile(views, fullgraph=True)
    for ours, theirs in zip(
        compiled(state.clone(), images, None, backend), views(state, images, None, backend), strict=True
    ):
        assert torch.equal(ours, theirs)


@each_pool_backend
def test_pooling_compiles_whole(backend: str, rng: torch.Generator) -> None:
    features = torch.randn(6, 40, 7, 7, generator=rng).to(DEVICE).requires_grad_()
    regions = boxes(6, 56, rng)

    def loss(features: Tensor) -> Tensor:
        inside, outside = mixfast.masked_upsample_pool(features * 2, regions, (56, 56), backend=backend)
        return (inside * outside).sin().sum()

    assert_same_as_compiled(loss, features)


@each_infonce_backend
def test_infonce_compiles_whole(backend: str, rng: torch.Generator) -> None:
    query, positive = unit(40, 64, rng=rng).requires_grad_(), unit(40, 64, rng=rng)
    queues = [unit(keys, 64, rng=rng) for keys in (300, 1100)]
    valid_len = torch.tensor([120, 1100], device=DEVICE)

    def loss(query: Tensor) -> Tensor:
        queries = [query, query * 1.5, query.neg()]
        given = queries, [positive] * 3, queues, INDEX
        return mixfast.multi_queue_infonce(*given, valid_len=valid_len, backend=backend).square().sum()

    assert_same_as_compiled(loss, query)


def assert_same_as_compiled(loss: Callable[[Tensor], Tensor], leaf: Tensor) -> None:
    compiled = torch.compile(loss, fullgraph=True)
    for ours, theirs in zip(value_and_gradient(compiled, leaf), value_and_gradient(loss, leaf), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)


def value_and_gradient(loss: Callable[[Tensor], Tensor], leaf: Tensor) -> tuple[Tensor, Tensor]:
    value = loss(leaf)
    return value.detach(), torch.autograd.grad(value, leaf)[0]
