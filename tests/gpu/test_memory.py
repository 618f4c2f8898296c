"""Memory at the peak of a call: the results and a few numbers per image or row, never a map or a matrix of logits."""

import pytest
import torch

import mixfast
from tests.gpu.device import (
    DEVICE,
    boxes,
    each_infonce_backend,
    each_pool_backend,
    each_views_backend,
    needs_free,
    peak_bytes,
    unit,
    views,
)
from tests.ops.augmenting import byte_images

MIB = 1 << 20
ROUNDING = 8 * 512  # the allocator hands out blocks of 512 bytes


@each_pool_backend
@pytest.mark.parametrize("kind", ["boxes", "bool"])
@pytest.mark.parametrize("shape", [(512, 128, 4, 32), (256, 2048, 7, 224), (64, 2048, 14, 448)], ids=str)
def test_pooling(backend: str, shape: tuple[int, int, int, int], kind: str, rng: torch.Generator) -> None:
    """Forward: both results and the float32 weights; masks also the sums, in float64, that become weights."""
    images, channels, side, pixels = shape
    torch.use_deterministic_algorithms(False)  # nothing is filled, so nothing but the operation takes memory
    features = torch.zeros(images, channels, side, side, dtype=torch.bfloat16, device=DEVICE).requires_grad_()
    regions = boxes(images, pixels, rng)
    if kind == "bool":
        regions = torch.zeros(images, pixels, pixels, dtype=torch.bool, device=DEVICE)
    results, cells = 2 * images * channels * 2, 2 * images * side**2
    allowed = results + cells * (4 if kind == "boxes" else 12) + ROUNDING
    grads = [torch.zeros(images, channels, dtype=torch.bfloat16, device=DEVICE) for _ in range(2)]

    def forward() -> object:
        return mixfast.masked_upsample_pool(features, regions, (pixels, pixels), backend=backend)

    assert peak_bytes(forward) <= allowed
    both = peak_bytes(lambda: torch.autograd.grad(forward(), [features], grads))
    assert both <= allowed + features.nbytes


CASES = {  # terms, queues, rows, keys: MiB with gradients
    (5, 3, 512, 4096): 10,
    (5, 3, 512, 65536): 20,
    (1, 1, 4096, 65536): 12,
    (5, 3, 4096, 65536): 32,
}


@each_infonce_backend
@pytest.mark.parametrize("case", CASES, ids=str)
def test_infonce(backend: str, case: tuple[int, int, int, int], rng: torch.Generator) -> None:
    """The gradients of the queries, and partial sums; a mebibyte without gradients."""
    terms, count, rows, keys = case
    torch.use_deterministic_algorithms(False)
    needs_free(2)
    queries = [unit(rows, 128, rng=rng, dtype=torch.float16).requires_grad_() for _ in range(terms)]
    positives = [unit(rows, 128, rng=rng, dtype=torch.float16) for _ in range(terms)]
    queues = [unit(keys, 128, rng=rng, dtype=torch.float16) for _ in range(count)]
    index = [term % count for term in range(terms)]

    def losses() -> torch.Tensor:
        return mixfast.multi_queue_infonce(queries, positives, queues, index, backend=backend)

    assert peak_bytes(lambda: torch.autograd.grad(losses().sum(), queries)) <= CASES[case] * MIB
    with torch.no_grad():
        copies = 2 * terms * rows * 128 * 2 if terms > 1 else 0  # lists are joined before the first kernel
        assert peak_bytes(losses) <= MIB + copies


@each_views_backend
@pytest.mark.parametrize("blurred", [False, True])
@pytest.mark.parametrize("side", [32, 224])
def test_views(backend: str, side: int, blurred: bool, rng: torch.Generator) -> None:
    """Views and parameters, no batch of images; of large views a sum for each tile, for a blur one float32 copy."""
    torch.use_deterministic_algorithms(False)
    images = byte_images(300, rng, (side, side)).to(DEVICE)
    index, state = torch.arange(256, device=DEVICE), torch.tensor([1, 1], device=DEVICE)
    others = {"dtype": torch.bfloat16, "blur_reach": 6 if blurred else 0}
    numbers = 2 * 256 * 3 * side**2
    allowed = numbers * (2 + 4 * blurred) + 2 * 256 * (16 + 49) * 4 + ROUNDING
    assert peak_bytes(lambda: views(state, images, index, backend, **others)) <= allowed
