"""More than 2^31 elements: of the upsampled map, which never exists, of maps, a queue, a data set and its views."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import mixfast
from tests.gpu.device import (
    DEVICE,
    boxes,
    each_infonce_backend,
    each_norm_backend,
    each_pool_backend,
    each_views_backend,
    infonce,
    needs_free,
    norm,
    pool,
    views,
)
from tests.ops import augmenting
from tests.ops.compare import SLACK, assert_no_worse

PARTS = ("inside", "outside", "gradient")


def adjoint(masks: Tensor, side: int) -> Tensor:
    """Weights [B, 2, h, w] of masks [B, H, W] in float64, by the derivative of PyTorch's own upsampling."""
    both = torch.stack([masks, ~masks], dim=1).double()
    shape = [len(masks), 2, side, side]
    weights = torch.ops.aten.upsample_bilinear2d_backward(both, list(masks.shape[1:]), shape, False)
    return weights / both.sum((2, 3)).clamp_min(1)[:, :, None, None]


@each_pool_backend
@pytest.mark.parametrize("kind", ["boxes", "bool"])
def test_upsampled_map(backend: str, kind: str, rng: torch.Generator) -> None:
    """26 thousand million pixels; all images and 16 channels against float64."""
    shape, pixels = (64, 2048, 14, 14), 448
    assert shape[0] * shape[1] * pixels**2 > 1 << 31
    features = torch.randn(*shape, generator=rng)
    regions = boxes(shape[0], pixels, rng)
    x0, y0, x1, y1 = (side.cpu()[:, None, None] for side in regions.unbind(1))
    x, y = torch.arange(pixels), torch.arange(pixels)[:, None]
    masks = (x0 <= x) & (x < x1) & (y0 <= y) & (y < y1)
    regions = regions if kind == "boxes" else masks.to(DEVICE)
    grads = torch.randn(2, *shape[:2], generator=rng)
    some = torch.arange(0, shape[1], 128)
    ours = pool(features.to(DEVICE), regions, (pixels, pixels), grads.to(DEVICE), backend)
    weights = adjoint(masks, shape[2])
    pooled = torch.einsum("bchw,bshw->sbc", features[:, some].double(), weights)
    gradient = torch.einsum("sbc,bshw->bchw", grads[:, :, some].double(), weights)
    for name, each, truth in zip(PARTS, ours, (*pooled, gradient), strict=True):
        rounded = truth.float()  # what a perfect implementation returns
        assert_no_worse(each[:, some].cpu(), rounded, truth, SLACK[torch.float32], name)


@each_pool_backend
@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("shape", [(16_400, 2048), (1, (1 << 25) + 33)], ids=["images", "channels"])
def test_features(backend: str, shape: tuple[int, int], channels_last: bool, rng: torch.Generator) -> None:
    """The first and the last images and channels against the reference, which gets these alone."""
    images, channels = shape
    assert images * channels * 64 > 1 << 31
    needs_free(16)
    device_rng = torch.Generator(DEVICE).manual_seed(0)
    layout = (images, 8, 8, channels) if channels_last else (images, channels, 8, 8)
    features = torch.randn(*layout, generator=device_rng, device=DEVICE, dtype=torch.bfloat16)
    features = features.permute(0, 3, 1, 2) if channels_last else features
    regions = boxes(images, 32, rng)
    grads = torch.randn(2, images, channels, generator=device_rng, device=DEVICE, dtype=torch.bfloat16)
    ours = pool(features, regions, (32, 32), grads, backend)
    assert ours[2].stride() == features.stride()
    for image in (0, images - 1):
        for first in (0, channels - 40):
            part = slice(image, image + 1), slice(first, first + 40)
            given, box, upstream = features[part].cpu(), regions[image].cpu(), grads[(slice(None), *part)].cpu()
            theirs = pool(given, box, (32, 32), upstream, "reference")
            truth = pool(given.double(), box, (32, 32), upstream.double(), "reference")
            for name, each, same, true in zip(PARTS, ours, theirs, truth, strict=True):
                scale = 1.0 if name == "gradient" else 1 / true.abs().max().clamp(1e-30, 1).item()
                assert_no_worse(each[part].cpu(), same, true, SLACK[torch.bfloat16] * scale, name)


@each_norm_backend
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=str)
def test_norm(backend: str, layout: torch.memory_format, rng: torch.Generator) -> None:
    """Two images, one of each group, many times: statistics are theirs, and so are the results, also the last ones."""
    times, shape = 257, (2, 64, 256, 256)
    assert times * torch.Size(shape).numel() > 1 << 31
    needs_free(40)
    x, residual, upstream = torch.randn(3, *shape, generator=rng).to(DEVICE, torch.bfloat16)
    two = x, 8 * residual.sign(), upstream
    many = (each.repeat(times, 1, 1, 1).contiguous(memory_format=layout) for each in two)
    _, _, *expected = norm(*(each.double() for each in two), "reference")
    _, _, *ours = norm(*many, backend)
    for index in (0, 1, 4):  # y, and the gradients of x and of the residual
        torch.testing.assert_close(ours[index][-2:].double(), expected[index], rtol=1e-2, atol=1e-2)
        assert torch.equal(ours[index][:2], ours[index][-2:])


@each_infonce_backend
def test_queue(backend: str) -> None:
    """2^24 + 64 keys of 128; most of what the first query sees is the very last key."""
    keys, dim, rows, tau = (1 << 24) + 64, 128, 64, 0.05
    assert keys * dim > 1 << 31
    needs_free(12)
    rng = torch.Generator(DEVICE).manual_seed(0)
    queue = torch.empty(keys, dim, dtype=torch.float16, device=DEVICE)
    for part in queue.split(1 << 20):
        part.copy_(F.normalize(torch.randn(len(part), dim, generator=rng, device=DEVICE), dim=1))
    query, positive = (F.normalize(torch.randn(rows, dim, generator=rng, device=DEVICE), dim=1) for _ in range(2))
    queue[-1] = query[0]
    query, positive = query.half(), positive.half()
    loss, d_query, _ = infonce([query], [positive], [queue, queue], backend, temperature=tau)
    sums = torch.zeros(rows, dtype=torch.float64, device=DEVICE)
    products = torch.zeros(rows, dim, dtype=torch.float64, device=DEVICE)
    for part in queue.split(1 << 18):
        terms = ((query.double() @ part.double().T - 1) / tau).exp()
        sums, products = sums + terms.sum(1), products + terms @ part.double()
    margin = sums.log() + (1 - (query.double() * positive.double()).sum(1)) / tau
    share = torch.sigmoid(margin)[:, None] / (tau * rows)
    expected = share * (products / sums[:, None] - positive.double())
    torch.testing.assert_close(loss[0].double(), F.softplus(margin).mean(), rtol=5e-5, atol=0)
    rounding = 2**-11 + 2e-4  # of the result to float16, and of the probabilities
    assert ((d_query.double() - expected).norm(dim=1) <= rounding * expected.norm(dim=1)).all()


@each_views_backend
def test_data_set(backend: str) -> None:
    """700,000 images of 32 px: views of the last ones are those of a set of their own."""
    needs_free(4)
    device_rng, state = torch.Generator(DEVICE).manual_seed(0), torch.tensor([8, 0], device=DEVICE)
    images = torch.randint(0, 256, (700_000, 3, 32, 32), generator=device_rng, device=DEVICE, dtype=torch.uint8)
    assert images.numel() > 1 << 31
    index = torch.arange(len(images) - 20, len(images), device=DEVICE)
    ours = views(state.clone(), images, index, backend)
    for each, expected in zip(ours, views(state, images[-20:], None, backend), strict=True):
        assert torch.equal(each, expected)


@each_views_backend
def test_views_of_many_images(backend: str) -> None:
    """Two times 7,200 views of 224 px, between whose stages float32 lies: the last images against the reference."""
    batch, side = 7200, 224
    assert 2 * batch * 3 * side**2 > 1 << 31
    needs_free(20)
    device_rng, state = torch.Generator(DEVICE).manual_seed(0), torch.tensor([8, 0], device=DEVICE)
    images = torch.randint(0, 256, (batch, 3, 64, 64), generator=device_rng, device=DEVICE, dtype=torch.uint8)
    how = {"size": side, "dtype": torch.bfloat16, "memory_format": torch.channels_last}
    parameters, *ours = views(state, images, None, backend, **how)
    options = augmenting.options(augmenting.EVERYTHING, **how)
    last = parameters[:, -4:].contiguous()
    theirs = mixfast.augment_views(images[-4:], last, backend="reference", **options)
    for each, expected in zip(ours, theirs, strict=True):
        augmenting.assert_same(each[-4:].float(), expected.float(), augmenting.EVERYTHING, 2**-5)
