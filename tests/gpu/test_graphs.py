"""Captured graphs: replays see new features, boxes, keys, queue lengths and ring pointers in the same memory."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from tests.gpu.device import (
    DEVICE,
    INDEX,
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


def captured(run: Callable[[], tuple[Tensor, ...]]) -> tuple[torch.cuda.CUDAGraph, tuple[Tensor, ...]]:
    """A graph of the call, and the tensors that its replays write."""
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        run()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        results = run()
    return graph, results


@each_pool_backend
@pytest.mark.parametrize("kind", ["boxes", "bool"])
def test_pooling(backend: str, kind: str, rng: torch.Generator) -> None:
    def draw() -> tuple[Tensor, Tensor, Tensor]:
        features = torch.randn(6, 40, 7, 7, generator=rng).to(DEVICE)
        mask = torch.rand(6, 56, 56, generator=rng).to(DEVICE) > 0.7
        regions = boxes(6, 56, rng) if kind == "boxes" else mask
        return features, regions, torch.randn(2, 6, 40, generator=rng).to(DEVICE)

    features, regions, grads = draw()
    graph, results = captured(lambda: pool(features, regions, (56, 56), grads, backend))
    for _ in range(3):
        new = draw()
        for static, fresh in zip((features, regions, grads), new, strict=True):
            static.copy_(fresh)
        graph.replay()
        expected = pool(new[0].double(), new[1], (56, 56), new[2].double(), "reference")
        for ours, theirs in zip(results, expected, strict=True):
            torch.testing.assert_close(ours.double(), theirs, rtol=1e-6, atol=1e-6)


@each_norm_backend
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=str)
def test_norm(backend: str, layout: torch.memory_format, rng: torch.Generator) -> None:
    def draw() -> list[Tensor]:
        x, residual, upstream = torch.randn(3, 6, 40, 7, 8, generator=rng).to(DEVICE)
        # No sum is so near to zero that rounding decides its gradient.
        return [each.contiguous(memory_format=layout) for each in (x, 8 * residual.sign(), upstream)]

    inputs = draw()
    graph, results = captured(lambda: norm(*inputs, backend))
    for _ in range(3):
        new = draw()
        for static, fresh in zip(inputs, new, strict=True):
            static.copy_(fresh)
        graph.replay()
        expected = norm(*(each.double() for each in new), "reference")
        for ours, theirs in zip(results, expected, strict=True):
            torch.testing.assert_close(ours.double(), theirs, rtol=1e-5, atol=1e-5)


@each_infonce_backend
def test_infonce_with_a_queue_that_fills(backend: str, rng: torch.Generator) -> None:
    """What lies beyond the valid length is NaN, so that reading it would show."""
    queries = [unit(rows, 64, rng=rng) for rows in (33, 64, 5)]
    positives = [unit(len(each), 64, rng=rng) for each in queries]
    queues = [torch.full((keys, 64), float("nan"), device=DEVICE) for keys in (300, 1100)]
    valid_len = torch.zeros(2, dtype=torch.int64, device=DEVICE)
    graph, results = captured(lambda: infonce(queries, positives, queues, backend, valid_len))
    for lengths in ((0, 0), (1, 700), (299, 0), (300, 1100)):
        for queue, length in zip(queues, lengths, strict=True):
            queue[:length] = unit(length, 64, rng=rng)
        for static in (*queries, *positives):
            static.copy_(unit(*static.shape, rng=rng))
        valid_len.copy_(torch.tensor(lengths))
        graph.replay()
        full = [queue[: max(length, 1)].nan_to_num(0) for queue, length in zip(queues, lengths, strict=True)]
        expected = infonce(queries, positives, full, "reference")
        terms = len(INDEX)
        for place, (ours, theirs) in enumerate(zip(results, expected, strict=True)):
            if place == 0:
                theirs = theirs * torch.tensor([lengths[queue] > 0 for queue in INDEX], device=DEVICE)
            elif lengths[INDEX[(place - 1) % terms]] == 0:
                theirs = torch.zeros_like(theirs)
            torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


@each_views_backend
@pytest.mark.parametrize("side", [32, 96])
def test_every_replay_draws_other_views(backend: str, side: int, rng: torch.Generator) -> None:
    """A graph's third replay makes the views of the third eager draw, of whatever rows stand in the index by then."""
    images = byte_images(50, rng, (side, side)).to(DEVICE)
    index = torch.zeros(8, dtype=torch.int64, device=DEVICE)
    state = torch.tensor([123456789, 0], device=DEVICE)
    graph, results = captured(lambda: views(state, images, index, backend))
    eager = torch.tensor([123456789, 0], device=DEVICE)
    state.copy_(eager)
    for draw in range(1, 4):
        index.copy_(torch.randint(50, (8,), generator=rng))
        graph.replay()
        for ours, expected in zip(results, views(eager, images, index, backend), strict=True):
            assert torch.equal(ours, expected)
        assert state.tolist() == [123456789, draw]
