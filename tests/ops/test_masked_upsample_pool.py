"""Every backend of masked_upsample_pool against the reference in float64, and the reference against plain loops."""

import itertools
import multiprocessing
import os

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import Tensor

from mixfast.ops import _native
from tests.backends import each_backend, refusal, skip_if_refused
from tests.ops.compare import SLACK, assert_no_worse, generator
from tests.ops.pooling import NAME, masked_upsample_pool, widest

KINDS = ("boxes", "one box", "bool", "uint8", "float32", "float64", "float16")
SHAPES = [  # B, C, h, w, H, W
    (1, 1, 1, 1, 1, 1),
    (2, 3, 1, 1, 5, 7),
    (3, 5, 4, 4, 32, 32),
    (2, 130, 4, 4, 32, 32),
    (2, 70, 7, 5, 31, 33),
    (2, 9, 7, 7, 56, 56),
    (3, 17, 3, 2, 9, 9),
    (2, 8, 14, 14, 40, 24),
    (2, 6, 16, 20, 5, 3),
    (1, 64, 8, 8, 8, 8),
    (2, 12, 2, 16, 1, 50),
]


def draw_regions(kind: str, batch: int, height: int, width: int, rng: torch.Generator) -> Tensor:
    """Random boxes, empty and full ones among them, or a random mask."""
    if "box" in kind:
        x = torch.randint(0, width + 1, (batch, 2), generator=rng).sort(1).values
        y = torch.randint(0, height + 1, (batch, 2), generator=rng).sort(1).values
        boxes = torch.stack([x[:, 0], y[:, 0], x[:, 1], y[:, 1]], dim=1)
        return boxes[0] if kind == "one box" else boxes
    mask = torch.rand(batch, height, width, generator=rng, dtype=torch.float64)
    if kind == "bool":
        return mask > 0.7
    if kind == "uint8":
        return (mask > 0.7).to(torch.uint8) * 255
    return mask.to(getattr(torch, kind))


def run(
    backend: str, features: Tensor, regions: Tensor, size: tuple[int, int] | None, grads: tuple[Tensor, Tensor]
) -> dict[str, Tensor]:
    features = features.detach().requires_grad_()
    inside, outside = masked_upsample_pool(features, regions, size, backend=backend)
    (grad,) = torch.autograd.grad([inside, outside], [features], [g.to(inside.dtype) for g in grads])
    return {"inside": inside.detach(), "outside": outside.detach(), "grad": grad}


def check(
    backend: str, shape: tuple[int, ...], kind: str, dtype: torch.dtype, channels_last: bool, rng: torch.Generator
) -> None:
    b, c, h, w, height, width = shape
    features = torch.randn(b, c, h, w, generator=rng).to(dtype)
    if channels_last:
        features = features.contiguous(memory_format=torch.channels_last)
    regions = draw_regions(kind, b, height, width, rng)
    size = (height, width) if "box" in kind else None
    grads = torch.randn(b, c, generator=rng).to(dtype), torch.randn(b, c, generator=rng).to(dtype)
    exact = regions.double() if regions.is_floating_point() else regions
    truth = run("reference", features.double(), exact, size, grads)
    theirs, ours = run("reference", features, regions, size, grads), run(backend, features, regions, size, grads)
    for name in truth:
        # A mean can be small by cancellation; its terms are of size one, so that is what errors are measured against.
        scale = 1.0 if name == "grad" else 1.0 / truth[name].abs().max().clamp(1e-30, 1).item()
        assert_no_worse(ours[name], theirs[name], truth[name], SLACK[dtype] * scale, name)


@each_backend("masked_upsample_pool", but=("reference",))
@pytest.mark.parametrize("dtype", SLACK, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_matches_reference(backend: str, shape: tuple[int, ...], dtype: torch.dtype, rng: torch.Generator) -> None:
    skip_if_refused(NAME, backend, dtype)
    for kind in KINDS:
        for channels_last in (False, True):
            check(backend, shape, kind, dtype, channels_last, rng)


@each_backend("masked_upsample_pool", but=("reference",))
@settings(max_examples=60, deadline=None, database=None, derandomize=True)
@given(
    shape=st.tuples(*(st.integers(1, n) for n in (4, 40, 9, 9, 40, 40))),
    kind=st.sampled_from(KINDS),
    dtype=st.sampled_from(list(SLACK)),
    channels_last=st.booleans(),
)
def test_matches_reference_anywhere(
    backend: str, shape: tuple[int, ...], kind: str, dtype: torch.dtype, channels_last: bool
) -> None:
    assume(refusal(NAME, backend, dtype) is None)
    check(backend, shape, kind, dtype, channels_last, generator(f"{shape} {kind} {dtype} {channels_last}"))


def by_loops(features: Tensor, inside: list[list[float]], height: int, width: int) -> tuple[list[float], list[float]]:
    """Both masked means of one image [C, h, w], pixel by pixel, from the definition of bilinear interpolation."""
    channels, h, w = features.shape
    sums = [[0.0, 0.0] for _ in range(channels)]
    areas = [0.0, 0.0]
    for y in range(height):
        sy = min(max((y + 0.5) * h / height - 0.5, 0.0), h - 1.0)
        top, bottom = int(sy), min(int(sy) + 1, h - 1)
        for x in range(width):
            sx = min(max((x + 0.5) * w / width - 0.5, 0.0), w - 1.0)
            left, right = int(sx), min(int(sx) + 1, w - 1)
            share = inside[y][x]
            areas = [areas[0] + share, areas[1] + 1 - share]
            for c in range(channels):
                f = features[c].tolist()
                upper = f[top][left] * (1 - sx + left) + f[top][right] * (sx - left)
                lower = f[bottom][left] * (1 - sx + left) + f[bottom][right] * (sx - left)
                value = upper * (1 - sy + top) + lower * (sy - top)
                sums[c] = [sums[c][0] + share * value, sums[c][1] + (1 - share) * value]
    means = [[s / area if area > 0 else 0.0 for s, area in zip(pair, areas, strict=True)] for pair in sums]
    return [m[0] for m in means], [m[1] for m in means]


@each_backend("masked_upsample_pool")
@pytest.mark.parametrize("size", [(2, 3, 8, 9), (3, 2, 7, 2), (4, 4, 3, 2), (1, 1, 2, 2)], ids=str)
@pytest.mark.parametrize("box", [(0, 0, 1, 1), (1, 0, 2, 2), (0, 0, 0, 0)], ids=str)
def test_equals_plain_loops(backend: str, size: tuple[int, ...], box: tuple[int, ...], rng: torch.Generator) -> None:
    h, w, height, width = size
    features = torch.randn(1, 2, h, w, dtype=widest(backend), generator=rng)
    tolerance = {"rtol": 0, "atol": 1e-13 if features.dtype == torch.float64 else 1e-6}
    inside, outside = masked_upsample_pool(features, torch.tensor([box]), (height, width), backend=backend)
    x0, y0, x1, y1 = box
    mask = [[float(x0 <= x < x1 and y0 <= y < y1) for x in range(width)] for y in range(height)]
    expected = by_loops(features[0], mask, height, width)
    torch.testing.assert_close(inside[0], torch.tensor(expected[0], dtype=inside.dtype), **tolerance)
    torch.testing.assert_close(outside[0], torch.tensor(expected[1], dtype=outside.dtype), **tolerance)
    soft = torch.rand(1, height, width, dtype=torch.float64, generator=rng)
    inside, outside = masked_upsample_pool(features, soft, backend=backend)
    expected = by_loops(features[0], soft[0].tolist(), height, width)
    torch.testing.assert_close(inside[0], torch.tensor(expected[0], dtype=inside.dtype), **tolerance)
    torch.testing.assert_close(outside[0], torch.tensor(expected[1], dtype=outside.dtype), **tolerance)


@each_backend("masked_upsample_pool")
@pytest.mark.parametrize("full", [False, True], ids=["empty", "full"])
@pytest.mark.parametrize("kind", ["box", "bool", "float"])
def test_empty_side_is_zero_and_passes_no_gradient(backend: str, kind: str, full: bool, rng: torch.Generator) -> None:
    features = torch.randn(2, 5, 4, 4, generator=rng).requires_grad_()
    if kind == "box":
        regions, size = torch.tensor([0, 0, 32, 32] if full else [7, 3, 7, 9]), (32, 32)
    else:
        regions, size = torch.full((2, 32, 32), full, dtype=torch.bool if kind == "bool" else torch.float32), None
    inside, outside = masked_upsample_pool(features, regions, size, backend=backend)
    empty, whole = (outside, inside) if full else (inside, outside)
    assert (empty == 0).all()
    torch.testing.assert_close(whole, features.mean((2, 3)), rtol=1e-6, atol=1e-6)  # 32 / 4 is an integer scale
    (grad,) = torch.autograd.grad(empty.sum(), [features])
    assert (grad == 0).all()


@each_backend("masked_upsample_pool")
def test_masks_with_a_channel(backend: str, rng: torch.Generator) -> None:
    """[B, 1, H, W], as segmentation networks make them."""
    features, mask = torch.randn(2, 3, 4, 4, generator=rng), torch.rand(2, 9, 7, generator=rng)
    for regions in (mask, mask > 0.5):
        pooled = (masked_upsample_pool(features, each, backend=backend) for each in (regions, regions[:, None]))
        for without, with_channel in zip(*pooled, strict=True):
            assert torch.equal(without, with_channel)


@each_backend("masked_upsample_pool")
def test_boxes_of_any_integer_type_and_masks_agree(backend: str, rng: torch.Generator) -> None:
    features = torch.randn(3, 4, 4, 4, generator=rng)
    boxes = torch.tensor([[0, 0, 8, 8], [3, 4, 32, 20], [5, 5, 6, 6]])
    expected = masked_upsample_pool(features, boxes, (32, 32), backend=backend)
    for dtype in (torch.int32, torch.int16, torch.int8, torch.uint8):
        for ours, theirs in zip(
            masked_upsample_pool(features, boxes.to(dtype), [32, 32], backend=backend), expected, strict=True
        ):
            assert torch.equal(ours, theirs)
    mask = torch.zeros(3, 32, 32, dtype=torch.bool)
    for image, (x0, y0, x1, y1) in enumerate(boxes.tolist()):
        mask[image, y0:y1, x0:x1] = True
    for regions in (mask, mask.to(torch.uint8), mask.to(torch.uint8) * 7, mask.double()):
        for ours, theirs in zip(masked_upsample_pool(features, regions, backend=backend), expected, strict=True):
            torch.testing.assert_close(ours, theirs, rtol=0, atol=3e-7)


@each_backend("masked_upsample_pool", but=("reference",))
def test_non_contiguous_inputs(backend: str, rng: torch.Generator) -> None:
    wide = torch.randn(4, 10, 8, 6, generator=rng)
    mask = torch.rand(4, 20, 40, generator=rng)
    for features, regions in (
        (wide[::2, 1:9], mask[1::2, :, ::2]),
        (wide.transpose(2, 3), mask.transpose(1, 2)),
        (wide.flip(0)[:, ::3], mask.expand(4, 20, 40)),
    ):
        ours = masked_upsample_pool(features, regions, backend=backend)
        theirs = masked_upsample_pool(features, regions, backend="reference")
        for a, b in zip(ours, theirs, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-6)


@each_backend("masked_upsample_pool", but=("reference",))
def test_gradient_keeps_the_memory_format(backend: str, rng: torch.Generator) -> None:
    boxes = torch.tensor([1, 2, 9, 12])
    for layout in (torch.contiguous_format, torch.channels_last):
        features = torch.randn(3, 5, 4, 6, generator=rng).contiguous(memory_format=layout).requires_grad_()
        inside, _ = masked_upsample_pool(features, boxes, (16, 16), backend=backend)
        (grad,) = torch.autograd.grad(inside.sum(), [features])
        assert grad.stride() == features.stride()


@each_backend("masked_upsample_pool", but=("reference",))
def test_nan_stays_in_its_channel(backend: str) -> None:
    for positions in ((4, 4), (3, 3), (7, 7)):
        for layout in (torch.contiguous_format, torch.channels_last):
            features = torch.ones(2, 11, *positions).contiguous(memory_format=layout)
            features[0, 4, 0, 0] = float("nan")
            features[1, 10, -1, -1] = float("inf")
            results = masked_upsample_pool(features, torch.tensor([2, 2, 9, 9]), (20, 20), backend=backend)
            for result in results:
                broken = ~torch.isfinite(result)
                assert broken.nonzero().tolist() == [[0, 4], [1, 10]]


@each_backend("masked_upsample_pool", but=("reference",))
@pytest.mark.parametrize("kind", ["boxes", "bool", "float32"])
def test_same_bits_for_any_thread_count(backend: str, kind: str, rng: torch.Generator) -> None:
    features = torch.randn(6, 300, 7, 7, generator=rng)
    regions = draw_regions(kind, 6, 64, 64, rng)
    size = (64, 64) if kind == "boxes" else None
    grads = torch.randn(6, 300, generator=rng), torch.randn(6, 300, generator=rng)
    before, results = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 3, 1):
            torch.set_num_threads(threads)
            for maps in (features, features.contiguous(memory_format=torch.channels_last)):
                results.append((maps.is_contiguous(), run(backend, maps, regions, size, grads)))
    finally:
        torch.set_num_threads(before)
    for contiguous in (True, False):
        first, *others = [result for layout, result in results if layout == contiguous]
        for other in others:
            assert all(torch.equal(first[name], other[name]) for name in first)


@each_backend("masked_upsample_pool")
def test_empty_batches_and_no_channels(backend: str) -> None:
    for shape in ((0, 4, 3, 3), (2, 0, 3, 3)):
        features = torch.zeros(shape, requires_grad=True)
        boxes = torch.zeros(shape[0], 4, dtype=torch.int64)
        inside, outside = masked_upsample_pool(features, boxes, (8, 8), backend=backend)
        assert inside.shape == outside.shape == shape[:2]
        (inside.sum() + outside.sum()).backward()
        assert features.grad is not None and features.grad.shape == shape


@each_backend("masked_upsample_pool", but=("reference", "cuda", "triton"))
def test_large_virtual_map_takes_no_memory(backend: str, rng: torch.Generator) -> None:
    """The upsampled map would have 2**37 elements."""
    features = torch.randn(2, 256, 4, 4, generator=rng)
    size = (1 << 14, 1 << 14)
    with torch.profiler.profile(profile_memory=True) as profile:
        inside, outside = masked_upsample_pool(features, torch.tensor([0, 0, 1 << 14, 1 << 13]), size, backend=backend)
    allocated = sum(max(0, event.self_device_memory_usage, event.self_cpu_memory_usage) for event in profile.events())
    assert 0 < allocated <= 2 * inside.numel() * 4 + 2 * 16 * 4 + 4096
    torch.testing.assert_close((inside + outside) / 2, features.mean((2, 3)), rtol=1e-6, atol=1e-6)


def check_on(level: str) -> None:
    """All kinds of regions, dtypes and layouts, in turns over the shapes; numbers that are none."""
    os.environ["MIXFAST_CPU"] = level
    assert len(_native.cpu.infonce_instruction_sets()) <= 1 + (level == "avx2")  # the module reads it
    torch.use_deterministic_algorithms(True, warn_only=True)
    turns = itertools.product(SHAPES, KINDS)
    for number, (shape, kind) in enumerate(turns):
        dtype = list(SLACK)[number % len(SLACK)]
        for channels_last in (False, True):
            check("cpu", shape, kind, dtype, channels_last, generator(f"{shape} {kind}"))
    test_nan_stays_in_its_channel("cpu")


@pytest.mark.slow
@pytest.mark.skipif(_native.cpu is None, reason="the C++ module is not built")
@pytest.mark.parametrize("level", ["baseline", "avx2"])
def test_on_lesser_processors(level: str) -> None:
    """The loops for processors with fewer instructions; the choice is made once, hence another process."""
    child = multiprocessing.get_context("forkserver").Process(target=check_on, args=(level,))
    child.start()
    child.join(200)
    assert child.exitcode == 0
