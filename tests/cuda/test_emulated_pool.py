"""The CUDA kernels of masked_upsample_pool, run on the host under sanitizers, against the reference in float64.

Each shape is there for a path of the kernels: the width of the reads, maps in one piece or in chunks, one or several
blocks of an image, one or several passes of a block.
"""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from mixfast.ops._check import statistics_dtype
from mixfast.ops.pool import reference
from tests.cuda import pooling
from tests.cuda.emulated import FORWARD, ORDERS, Emulated, EmulationError, emulated
from tests.ops.compare import SLACK, assert_no_worse

SOURCES = ("tests/cuda/pool_driver.cpp", "csrc/pool/cuda.cu")
kernels = emulated(*SOURCES, sanitizers=("address",))
raced = emulated(*SOURCES, sanitizers=("thread",))
KINDS = ("boxes", "one box", "bool", "uint8", "float32", "float64", "float16", "bfloat16")
MASKED = ("boxes", "uint8", "float32")  # what each kernel of the regions reads
SHAPES = [  # B, C, h, w, H, W
    (1, 1, 1, 1, 1, 1),
    (2, 530, 1, 1, 5, 7),  # several channels in one 16-byte vector
    (3, 5, 2, 2, 9, 9),
    (2, 136, 4, 4, 32, 32),  # 16 positions
    (2, 64, 7, 7, 56, 56),  # 49: maps that begin at any address
    (2, 65, 7, 5, 31, 33),
    (2, 40, 8, 8, 64, 64),  # 64
    (2, 33, 14, 14, 28, 40),  # 196: 16-bit maps are multiples of 8 bytes
    (1, 24, 16, 16, 16, 16),  # 256: 32 threads for a channel, if its elements have more than 16 bits
    (2, 6, 16, 20, 5, 3),  # fewer pixels than cells
    (1, 18, 33, 34, 35, 40),  # several chunks
    (2, 12, 2, 16, 1, 50),
    (1, 2, 3, 3, 200, 1100),  # several tiles of a mask, rows beyond what 32 bits are used for
]


def draw_regions(kind: str, batch: int, height: int, width: int, rng: torch.Generator) -> Tensor:
    if "box" in kind:
        x = torch.randint(0, width + 1, (batch, 2), generator=rng).sort(1).values
        y = torch.randint(0, height + 1, (batch, 2), generator=rng).sort(1).values
        boxes = torch.stack([x[:, 0], y[:, 0], x[:, 1], y[:, 1]], dim=1)
        return boxes[0] if kind == "one box" else boxes
    mask = torch.rand(batch, height, width, generator=rng, dtype=torch.float64)
    if kind in ("bool", "uint8"):
        return mask > 0.7 if kind == "bool" else (mask > 0.7).to(torch.uint8) * 255
    return mask.to(getattr(torch, kind))


def by_reference(
    features: Tensor, regions: Tensor, size: tuple[int, int], grads: tuple[Tensor, ...]
) -> dict[str, Tensor]:
    """In the dtype of the features; the gradient's weights as the reference makes them in that precision."""
    regions = regions if regions.ndim > 1 else regions[None]
    inside, outside = reference.forward(features, regions, *size)
    sums = torch.float64 if features.dtype == torch.float64 else torch.float32
    weights = reference.weights(regions, *size, *features.shape[2:], sums)
    grad = sum(g.to(sums)[:, :, None, None] * weights[:, side, None] for side, g in enumerate(grads))
    return {"inside": inside, "outside": outside, "weights": weights, "grad": torch.as_tensor(grad).to(features.dtype)}


def check(ours: dict[str, Tensor], theirs: dict[str, Tensor], truth: dict[str, Tensor], dtype: torch.dtype) -> None:
    for name, value in ours.items():
        slack = SLACK[value.dtype]
        # A mean can be small by cancellation; its terms are of size one, so that is what errors are measured against.
        if name in ("inside", "outside"):
            slack = SLACK[dtype] / truth[name].abs().max().clamp(1e-30, 1).item()
        assert_no_worse(value, theirs[name], truth[name], slack, name)


Drawn = tuple[Tensor, Tensor, tuple[int, int], tuple[Tensor, Tensor]]


def draw(shape: tuple[int, ...], kind: str, dtype: torch.dtype, rng: torch.Generator) -> Drawn:
    b, c, h, w, height, width = shape
    features, *grads = (torch.randn(b, c, *rest, generator=rng).to(dtype) for rest in ((h, w), (), ()))
    return features, draw_regions(kind, b, height, width, rng), (height, width), (grads[0], grads[1])


@pytest.mark.parametrize("dtype", SLACK, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_matches_reference(kernels: Emulated, shape: tuple[int, ...], dtype: torch.dtype, rng: torch.Generator) -> None:
    for number, kind in enumerate(KINDS):
        if (number + list(SLACK).index(dtype) + SHAPES.index(shape)) % 4:  # each pair of the three, not each triple
            continue
        features, regions, size, grads = draw(shape, kind, dtype, rng)
        exact = regions.double() if regions.is_floating_point() else regions
        truth = by_reference(features.double(), exact, size, tuple(g.double() for g in grads))
        theirs = by_reference(features, regions, size, grads)
        for channels_last in (False, True):
            how = {"order": ORDERS[number % len(ORDERS)], "offset": 8 * (number % 2)}
            ours = pooling.pool_regions(kernels, features, regions, size, channels_last, **how)
            ours["grad"] = pooling.spread_weights(kernels, grads, ours["weights"], channels_last, **how)
            check(ours, theirs, truth, dtype)
            again = pooling.pool_weights(kernels, features, ours["weights"], channels_last, **how)
            assert torch.equal(again["inside"], ours["inside"]) and torch.equal(again["outside"], ours["outside"])


@pytest.mark.parametrize("number", [1, 3, 5, 10, 12])
def test_every_order_gives_the_same_bits(kernels: Emulated, number: int, rng: torch.Generator) -> None:
    """Kinds take turns."""
    shape, kind = SHAPES[number], MASKED[(number + 1) % 3]
    features, regions, size, grads = draw(shape, kind, torch.float16, rng)
    for channels_last in (False, True):

        def run(order: int, channels_last: bool = channels_last) -> dict[str, Tensor]:
            results = pooling.pool_regions(kernels, features, regions, size, channels_last, order=order)
            grad = pooling.spread_weights(kernels, grads, results["weights"], channels_last, order=order)
            return {**results, "grad": grad}

        first = run(FORWARD)
        for order in ORDERS[1:]:
            for name, value in run(order).items():
                assert torch.equal(value, first[name]), f"{name}, order {order}"


@pytest.mark.parametrize("number", range(len(SHAPES)))
def test_no_races(raced: Emulated, number: int, rng: torch.Generator) -> None:
    """In one order: what ThreadSanitizer sees is that no barrier stands between two accesses. Kinds take turns."""
    shape, kind = SHAPES[number], MASKED[(number + 1) % 3]
    features, regions, size, grads = draw(shape, kind, torch.float16, rng)
    for channels_last in (False, True):
        results = pooling.pool_regions(raced, features, regions, size, channels_last)
        grad = pooling.spread_weights(raced, grads, results["weights"], channels_last)
        assert torch.isfinite(grad).all() and torch.isfinite(results["inside"]).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("kind", KINDS)
def test_weights_alone(kernels: Emulated, kind: str, dtype: torch.dtype, rng: torch.Generator) -> None:
    sizes = ((1, 1, 3, 4), (7, 7, 56, 56), (40, 30, 20, 90), (1, 1100, 1, 44))
    for h, w, height, width in sizes[(KINDS.index(kind) + (dtype == torch.float64)) % 2 :: 2]:  # by turns
        regions = draw_regions(kind, 2, height, width, rng)
        weights = pooling.region_weights(kernels, regions, (height, width), (h, w), dtype, order=ORDERS[2])
        regions = regions if regions.ndim > 1 else regions[None]
        exact = regions.double() if regions.is_floating_point() else regions
        truth = reference.weights(exact, height, width, h, w, torch.float64)
        theirs = reference.weights(regions, height, width, h, w, dtype)
        assert_no_worse(weights, theirs, truth, SLACK[dtype], f"{h} x {w}")


def whole_and_empty(kind: str) -> Tensor:
    """One region that is all of [5, 6], one that is nothing."""
    if kind == "boxes":
        return torch.tensor([[-3, 0, 6, 9], [4, 4, 2, 5]])  # beyond the map; inverted
    return torch.stack([torch.ones(5, 6), torch.zeros(5, 6)]).to(torch.bool if kind == "bool" else torch.float32)


@pytest.mark.parametrize("kind", ["boxes", "bool", "float32"])
@pytest.mark.parametrize("channels_last", [False, True])
def test_an_empty_side_is_zero(kernels: Emulated, kind: str, channels_last: bool) -> None:
    features = torch.full((2, 9, 3, 4), 0.5)
    results = pooling.pool_regions(kernels, features, whole_and_empty(kind), (5, 6), channels_last)
    for name, means in (("inside", (0.5, 0.0)), ("outside", (0.0, 0.5))):
        torch.testing.assert_close(results[name], torch.tensor(means)[:, None].expand(2, 9), rtol=3e-7, atol=0)
    assert not results["weights"][0, 1].any() and not results["weights"][1, 0].any()


@pytest.mark.parametrize("h, w, batch, what", [(1 << 14, 1 << 14, 1, "argument"), (1, 1, 1 << 41, "configuration")])
def test_too_large_is_refused(kernels: Emulated, h: int, w: int, batch: int, what: str) -> None:
    for name, after in (("pool_weights", (None, 1, None, None, None)), ("spread_weights", (None, None, 1, None, None))):
        with pytest.raises(EmulationError, match=f"invalid {what}"):
            kernels(name, batch, 3, h, w, 2, False, *after)


@pytest.mark.parametrize(
    "dtype, shape",
    [(torch.float64, (512, 33, 4, 4)), (torch.float16, (512, 65, 3, 3)), (torch.bfloat16, (513, 9, 16, 16))],
    ids=str,
)
@pytest.mark.parametrize("channels_last", [False, True])
def test_many_images(
    kernels: Emulated, dtype: torch.dtype, shape: tuple[int, ...], channels_last: bool, rng: torch.Generator
) -> None:
    """So many that a block takes several passes over its channels; only then do blocks get so large."""
    features, grads = torch.randn(shape, generator=rng).to(dtype), torch.randn(2, *shape[:2], generator=rng).to(dtype)
    weights = torch.rand(1, 2, *shape[2:], generator=rng, dtype=statistics_dtype(dtype))
    results = pooling.pool_weights(kernels, features, weights, channels_last)
    results["grad"] = pooling.spread_weights(kernels, (grads[0], grads[1]), weights, channels_last)

    def by_hand(as_type: Callable[[Tensor], Tensor]) -> dict[str, Tensor]:
        inside, outside = ((as_type(features) * as_type(weights)[:, side, None]).sum((2, 3)) for side in range(2))
        grad = sum(as_type(grads[side])[:, :, None, None] * as_type(weights)[:, side, None] for side in range(2))
        return {"inside": inside, "outside": outside, "grad": torch.as_tensor(grad)}

    truth = by_hand(Tensor.double)
    rounded = {name: value.to(dtype) for name, value in by_hand(lambda x: x.to(weights.dtype)).items()}
    check(results, rounded, truth, dtype)
