"""The Triton backends on CPU tensors, through Triton's interpreter: test_triton_interpreted.py runs this file.

What the interpreter does not show: races, the precision of tensor cores (it multiplies float32 exactly, and bfloat16
not at all: those products are done in float32 here), rounding to bfloat16 (it truncates), unaligned or too large tiles.
"""

import functools
from typing import Any

import pytest
import torch
from torch import Tensor

import mixfast
from mixfast.ops.infonce import gpu_triton as infonce
from mixfast.ops.infonce import multi_queue_infonce
from mixfast.ops.pool import gpu_triton as pool
from mixfast.ops.pool import gpu_triton_kernels as pool_kernels
from mixfast.ops.pool import reference as pool_reference
from tests.ops import infonce as infonce_tests
from tests.ops import test_masked_upsample_pool as pool_tests
from tests.ops import test_multi_queue_infonce_valid_len as valid_len_tests
from tests.ops.compare import SLACK, assert_no_worse

DTYPES = (torch.float32, torch.float16, torch.bfloat16)


# Kinds of regions, dtypes, layouts and shapes take turns: each pair occurs, but not each combination of all.
POOL = [
    ((1, 1, 1, 1, 1, 1), "boxes", torch.float32, False),
    ((3, 5, 4, 4, 32, 32), "boxes", torch.float32, True),
    ((2, 70, 7, 5, 31, 33), "boxes", torch.bfloat16, False),  # two blocks of channels
    ((2, 66, 7, 7, 56, 40), "one box", torch.float16, True),
    ((2, 9, 12, 11, 40, 24), "boxes", torch.float16, False),  # two blocks of positions
    ((2, 3, 17, 16, 5, 3), "boxes", torch.float32, False),  # ready weights; larger than the output
    ((2, 3, 17, 16, 19, 3), "one box", torch.bfloat16, True),
    ((2, 6, 3, 2, 9, 9), "bool", torch.float32, False),
    ((2, 6, 4, 4, 33, 35), "uint8", torch.float16, True),
    ((1, 5, 2, 16, 1, 50), "float32", torch.float32, True),
    ((2, 3, 4, 5, 3, 2), "float64", torch.bfloat16, False),
    ((1, 2, 2, 33, 8, 40), "float16", torch.float32, False),  # two tiles of cells, then the areas
]


@pytest.mark.parametrize(("shape", "kind", "dtype", "channels_last"), POOL, ids=str)
def test_pool(shape: tuple[int, ...], kind: str, dtype: torch.dtype, channels_last: bool, rng: torch.Generator) -> None:
    pool_tests.check("triton", shape, kind, dtype, channels_last, rng)


@pytest.mark.parametrize("size", [(3, 2, 9, 7), (4, 5, 3, 2), (1, 1, 2, 2)], ids=str)
def test_weights_of_boxes(size: tuple[int, int, int, int]) -> None:
    h, w, height, width = size
    corners = [
        (x0, y0, x1, y1)
        for x0 in range(width + 1)
        for x1 in range(x0, width + 1)
        for y0 in range(0, height + 1, 2)
        for y1 in range(y0, height + 1)
    ]
    some = corners[:: -(-len(corners) // 8)]
    boxes = torch.tensor([*some, (0, 0, width, height), (0, 0, 0, 0)])
    weights = mixfast.region_weights(boxes, (height, width), (h, w), backend="triton")
    exact = pool_reference.weights(boxes, height, width, h, w, torch.float64)
    torch.testing.assert_close(weights.double(), exact, rtol=3e-7, atol=1e-9)


def test_weights_of_a_box_on_a_huge_map() -> None:
    """64-bit integers: 2**24 (2 * 64 + 3) needs 32 bits. Both ends of a row against hand numbers."""
    assert pool.wide(1, 1 << 24, 1, 64)
    side = 1 << 24
    weights = pool.weights(torch.tensor([[0, 0, side // 2, 1]]), 1, side, 1, 64, torch.float32)[0, :, 0]
    # All cells of 64 weigh the same but for the two at the middle, 7/8 and 1/8 of which lie on the left half.
    left = torch.tensor([1 / 32] * 31 + [7 / 8 / 32, 1 / 8 / 32] + [0.0] * 31)
    torch.testing.assert_close(weights, torch.stack([left, left.flip(0)]), rtol=1e-6, atol=1e-9)


def test_boxes_are_clamped_as_on_a_gpu() -> None:
    boxes = torch.tensor([[-3, 1, 4, 99], [3, 0, 1, 5]], dtype=torch.int16)  # the second one is inverted: empty
    weights = pool.weights(boxes, 6, 5, 2, 3, torch.float32)
    expected = pool_reference.weights(torch.tensor([[0, 1, 4, 6], [0, 0, 0, 0]]), 6, 5, 2, 3, torch.float32)
    torch.testing.assert_close(weights, expected)


def test_cells_of_an_image_are_counted_in_64_bits(rng: torch.Generator) -> None:
    """Two programs of an image of 2^32 + 64 elements, which 32 bits would take for one of 64."""
    channels, positions, adjacent = (1 << 26) + 1, 64, 2048
    upstream, weights = (torch.rand(2, size, generator=rng) for size in (2 * adjacent // positions, positions))
    grad = torch.zeros(2 * adjacent)
    constants = pool.spread_constants(8, 8, False, False)
    assert constants["BLOCK_C"] * constants["BLOCK_P"] == adjacent
    pool_kernels.spread[(2,)](*upstream, weights, grad, channels, **constants)
    torch.testing.assert_close(grad, (upstream.T @ weights).flatten())


def test_pool_derivatives_and_ready_weights(rng: torch.Generator) -> None:
    features = torch.randn(2, 3, 3, 2, generator=rng).requires_grad_()
    boxes = torch.tensor([[0, 0, 3, 2], [1, 1, 4, 4]])
    weights = mixfast.region_weights(boxes, (5, 4), (3, 2), backend="triton")
    whole = mixfast.masked_upsample_pool(features, boxes, (5, 4), backend="triton")
    ready = mixfast.weighted_pool(features, weights, backend="triton")
    assert torch.equal(torch.stack(whole), torch.stack(ready))
    upstream = torch.randn(2, 2, 3, generator=rng).requires_grad_()
    (grad,) = torch.autograd.grad(whole, features, upstream.unbind(), create_graph=True)
    second = torch.randn(grad.shape, generator=rng)
    (back,) = torch.autograd.grad(grad, upstream, second)  # the gradient is linear in upstream: a pooling of `second`
    torch.testing.assert_close(back, torch.stack(pool_reference.pool(second, weights)))


def test_no_images_or_channels() -> None:
    boxes = torch.tensor([[0, 0, 1, 1]])
    for batch, channels in ((1, 0), (0, 2)):
        features = torch.zeros(batch, channels, 2, 2)
        inside, outside, weights = pool.forward(features, boxes[:batch], 4, 4)
        assert inside.shape == outside.shape == (batch, channels)
        assert torch.equal(weights, pool.weights(boxes[:batch], 4, 4, 2, 2, torch.float32))


# rows, queue of each term, keys of each queue, D, temperatures, of which a chunk has 512 keys at least
INFONCE = {
    "one-row-one-key": ([1], [0], [1], 96, [0.1]),
    "ragged-shared-queues": ([5, 65, 1, 7], [1, 0, 1, 2], [130, 300, 9], 96, [0.1, 0.07, 0.5, 0.2]),
    "eight-terms": ([3] * 8, [0, 1] * 4, [20, 64], 7, [0.1] * 8),
    "cold": ([17, 16], [0, 0], [300], 33, [0.01, 0.02]),
    "several-chunks": ([20, 30], [0, 1], [1100, 600], 16, [0.1, 0.05]),
    "large": ([3], [0], [40], 200, [0.1]),
}


def row_losses(inputs: dict[str, Any], backend: str) -> list[Tensor]:
    losses = multi_queue_infonce(**inputs, reduction="none", backend=backend)
    assert isinstance(losses, list)
    return losses


# Every dtype with all that a shape can have, every shape with one of them.
TURNS = [(name, DTYPES[number % 3]) for number, name in enumerate(INFONCE)]
TURNS += [("ragged-shared-queues", dtype) for dtype in DTYPES if ("ragged-shared-queues", dtype) not in TURNS]


@pytest.mark.parametrize(("name", "dtype"), TURNS, ids=str)
def test_infonce(name: str, dtype: torch.dtype, rng: torch.Generator) -> None:
    inputs = infonce_tests.draw(INFONCE[name], dtype, rng)
    weights = infonce_tests.weights_for(inputs, rng)
    exact = {key: [each.double() for each in inputs[key]] for key in ("queries", "positives")}
    expected = infonce_tests.gradients({**inputs, **exact}, weights, infonce_tests.truth)
    ours, theirs = (
        infonce_tests.gradients(inputs, weights, functools.partial(row_losses, backend=backend))
        for backend in ("triton", "reference")
    )
    logits = torch.finfo(torch.float32).eps / min(inputs["temperature"])
    for key, value in expected.items():
        # Probabilities are rounded to 16 bits before the second product, which the temperature's gradient shows.
        slack = SLACK[torch.float32 if key == "loss" else dtype] + logits / (value.abs().max() if key == "loss" else 1)
        assert_no_worse(ours[key], theirs[key], value, float(slack), key)


@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_infonce_reductions_in_both_forms(reduction: str, rng: torch.Generator) -> None:
    inputs = infonce_tests.draw(([6, 6, 6], [1, 0, 1], [40, 30], 16, [0.1, 0.2, 0.3]), torch.float32, rng)
    inputs["temperature"] = torch.tensor(inputs["temperature"], dtype=torch.float64).requires_grad_()
    stacked = {key: torch.stack(inputs[key]).requires_grad_() for key in ("queries", "positives")}
    results = []
    for form, backend in (
        (stacked, "triton"),
        ({k: v.unbind() for k, v in stacked.items()}, "triton"),
        (stacked, "cpu"),
    ):
        losses = multi_queue_infonce(**{**inputs, **form}, reduction=reduction, backend=backend)
        upstream = torch.tensor([1.0, -2.0, 0.5])
        results.append((losses, *torch.autograd.grad(losses, [*stacked.values(), inputs["temperature"]], upstream)))
    for ours, listed, theirs in zip(*results, strict=True):
        assert torch.equal(ours, listed)
        torch.testing.assert_close(ours, theirs, rtol=2e-5, atol=1e-6)


def test_infonce_gives_only_what_is_wanted(rng: torch.Generator) -> None:
    inputs = infonce_tests.draw(INFONCE["eight-terms"], torch.float32, rng)
    plain = multi_queue_infonce(**inputs, backend="triton")
    inputs["positives"][2].requires_grad_()
    losses = multi_queue_infonce(**inputs, backend="triton")
    assert torch.equal(losses.detach(), plain)  # the loss alone, without the second product: the same bits
    losses.sum().backward()
    assert [each.grad is not None for each in inputs["positives"]] == [t == 2 for t in range(8)]


@pytest.mark.parametrize(("name", "dtype"), [*zip(valid_len_tests.LENGTHS, (*DTYPES, torch.float32), strict=True)])
def test_infonce_of_the_first_keys(name: str, dtype: torch.dtype, rng: torch.Generator) -> None:
    valid_len_tests.check_equals_the_sliced_queue("triton", name, dtype, rng)


def test_infonce_of_one_temperature_for_all_terms(rng: torch.Generator) -> None:
    inputs = infonce_tests.draw(([3, 2, 4], [0, 1, 0], [40, 30], 16, [0.2] * 3), torch.float32, rng)
    expanded = {**inputs, "temperature": torch.tensor([0.2]).expand(3)}
    assert torch.equal(*(multi_queue_infonce(**each, backend="triton") for each in (inputs, expanded)))


def test_infonce_without_negatives(rng: torch.Generator) -> None:
    valid_len_tests.check_without_negatives("triton", torch.float16, rng)
    valid_len_tests.check_clamped("triton", rng)


@pytest.mark.parametrize("dtypes", [(torch.float32, torch.float16), (torch.float16, torch.bfloat16)], ids=str)
def test_infonce_queue_of_another_dtype(dtypes: tuple[torch.dtype, torch.dtype], rng: torch.Generator) -> None:
    inputs = infonce_tests.draw(([5, 9], [1, 0], [33, 70], 24, [0.1, 0.2]), dtypes[0], rng, dtypes[1])
    expected = torch.stack([loss.mean() for loss in infonce_tests.truth(inputs)])
    losses = multi_queue_infonce(**inputs, backend="triton")
    torch.testing.assert_close(losses.double(), expected, rtol=2e-6, atol=1e-7)


def test_infonce_float32_as_float16_where_tf32_is_allowed(rng: torch.Generator) -> None:
    inputs = infonce_tests.draw(([5, 9], [1, 0], [33, 70], 24, [0.1, 0.2]), torch.float32, rng)
    exact = multi_queue_infonce(**inputs, backend="triton")
    torch.backends.cuda.matmul.fp32_precision = "tf32"
    try:
        assert infonce.factors(torch.float32, torch.float32) == "cast"
        losses = multi_queue_infonce(**inputs, backend="triton")
    finally:
        torch.backends.cuda.matmul.fp32_precision = "none"
    assert not torch.equal(losses, exact)
    torch.testing.assert_close(losses, exact, rtol=1e-3, atol=1e-4)


@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # the interpreter remarks on the bad row
def test_infonce_a_bad_row_stays_alone(rng: torch.Generator) -> None:
    inputs = infonce_tests.draw(([40], [0], [100], 24, [0.1]), torch.float32, rng)
    expected = row_losses(inputs, "triton")[0]
    inputs["queries"][0][7] = float("nan")
    losses = row_losses(inputs, "triton")[0]
    assert losses.isnan().tolist() == [row == 7 for row in range(40)]
    assert torch.equal(losses[8:], expected[8:])


def test_infonce_refuses_what_does_not_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    call = functools.partial(multi_queue_infonce, queue_index=[0], backend="triton")

    def unit(dim: int, dtype: torch.dtype = torch.float32) -> list[Tensor]:
        return [torch.ones(1, dim, dtype=dtype)]

    with pytest.raises(RuntimeError, match="D up to 256; got 300"):
        call(unit(300), unit(300), unit(300))
    with pytest.raises(RuntimeError, match="it has no float64"):
        call(unit(4, torch.float64), unit(4, torch.float64), unit(4, torch.float64))
    monkeypatch.setattr(infonce, "factors", lambda *dtypes: "bf16x3")  # what they are on a GPU
    with pytest.raises(RuntimeError, match="D up to 128 for float32 or mixed dtypes; got 129"):
        call(unit(129), unit(129), unit(129))


def test_infonce_plan() -> None:
    """Tiles of 64 rows, in the order of their queues; chunks depend on shapes alone."""
    plan = infonce._plan((70, 5, 64), (1, 0, 0), (100, 2000), 128, torch.device("cpu"))
    assert plan.tiles.tolist() == [
        [0, 100, 512, 70, 5, 1],
        [0, 100, 512, 75, 64, 2],
        [1, 2000, 512, 0, 64, 0],
        [1, 2000, 512, 64, 6, 0],
    ]
    assert plan.terms.tolist() == [[0, 70], [70, 5], [75, 64]]
    assert plan.chunks == 4
    assert infonce.chunk_size(65536, 40, 64) == 7296  # nine chunks: 360 programs of at most 384
    assert infonce.chunk_size(65536, 40, 128) == 10944  # six: 7.5 MiB of partial results of at most 8
    assert infonce.chunk_size(65536, 1000, 64) == 65536
