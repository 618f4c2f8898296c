"""masked_upsample_pool inside torch: derivatives, operator checks, torch.compile, vmap, autocast, fake tensors."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from tests.backends import device_of, each_backend, skip_if_refused
from tests.ops.pooling import masked_upsample_pool, region_weights, weighted_pool

pytestmark = pytest.mark.slow

BOXES = torch.tensor([[0, 0, 3, 5], [2, 1, 9, 8], [4, 4, 4, 6]])
SIZE = (8, 9)


def features_like(rng: torch.Generator, *, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(3, 4, 3, 2, generator=rng, dtype=dtype).requires_grad_()


@each_backend("masked_upsample_pool")
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=str)
def test_first_and_second_derivatives(backend: str, layout: torch.memory_format, rng: torch.Generator) -> None:
    skip_if_refused("masked_upsample_pool", backend, torch.float64)
    features = features_like(rng).detach().contiguous(memory_format=layout).requires_grad_()
    mask = torch.rand(3, 6, 5, generator=rng, dtype=torch.float64)
    weights = region_weights(mask, None, (3, 2), dtype=torch.float64)

    def nonlinear(pool: Callable[[Tensor], tuple[Tensor, Tensor]]) -> Callable[[Tensor], tuple[Tensor, Tensor]]:
        return lambda x: pool(x.sin() * x)  # so that the second derivative is not zero

    # test_derivatives.py checks the gradient of pooling itself.
    for pool in (
        lambda x: masked_upsample_pool(x, BOXES, SIZE, backend=backend),
        lambda x: masked_upsample_pool(x, mask, backend=backend),
        lambda x: weighted_pool(x, weights, backend=backend),
    ):
        assert torch.autograd.gradcheck(nonlinear(pool), (features,))
        assert torch.autograd.gradgradcheck(nonlinear(pool), (features,))


def operator_calls(backend: str, rng: torch.Generator) -> list[tuple[Any, tuple[Any, ...]]]:
    device = device_of(backend)
    features = torch.randn(3, 4, 3, 2, generator=rng).to(device).requires_grad_()
    last = features.detach().contiguous(memory_format=torch.channels_last).requires_grad_()
    grads = [torch.randn(3, 4, generator=rng).to(device).requires_grad_() for _ in range(2)]
    weights, mask = torch.rand(3, 2, 3, 2, generator=rng).to(device), torch.rand(3, 8, 9, generator=rng).to(device)
    boxes, ops = BOXES.to(device), torch.ops.mixfast
    return [
        (ops.masked_upsample_pool, (features, boxes, *SIZE, backend)),
        (ops.masked_upsample_pool, (last, mask, *SIZE, backend)),
        (ops.masked_upsample_pool_backward, (*grads, weights, False, backend)),
        (ops.masked_upsample_pool_backward, (*grads, weights[:1].contiguous(), True, backend)),
        (ops.weighted_pool, (features, weights, backend)),
        (ops.weighted_pool, (last, weights[:1].contiguous(), backend)),
        (ops.region_weights, (boxes, *SIZE, 3, 2, torch.float32, backend)),
        (ops.check_regions, (boxes, *SIZE)),
    ]


@each_backend("masked_upsample_pool", but=("reference",))
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")  # opcheck's own doing
def test_opcheck(backend: str, rng: torch.Generator) -> None:
    for operator, args in operator_calls(backend, rng):
        torch.library.opcheck(operator.default, args)


@each_backend("masked_upsample_pool")
def test_compiles_without_graph_breaks(backend: str, rng: torch.Generator) -> None:
    def loss(features: Tensor, regions: Tensor, size: tuple[int, int] | None) -> Tensor:
        inside, outside = masked_upsample_pool(features * 2, regions, size, backend=backend)
        weights = region_weights(regions, size, (features.shape[2], features.shape[3]), backend=backend)
        again, _ = weighted_pool(features, weights, backend=backend)
        return (inside * 3 - outside + again).square().sum()

    torch._dynamo.reset()
    compiler = "eager" if backend == "reference" else "aot_eager"  # the reference's operators are torch's own
    compiled = torch.compile(loss, fullgraph=True, backend=compiler, dynamic=True)
    for batch, h in ((3, 3), (4, 5)):
        features = torch.randn(batch, 4, h, h, generator=rng).requires_grad_()
        for regions, size in (
            (BOXES[torch.arange(batch) % 3], SIZE),
            (torch.rand(batch, 7, 6, generator=rng) > 0.5, None),
        ):
            ours, theirs = compiled(features, regions, size), loss(features, regions, size)
            torch.testing.assert_close(ours, theirs)
            grads = [torch.autograd.grad(value, [features])[0] for value in (ours, theirs)]
            torch.testing.assert_close(*grads)


def test_compiles_with_inductor(rng: torch.Generator) -> None:
    # One function is compiled: precompiled headers would cost more than they save.
    options: dict[str, str | int | bool] = {"cpp_cache_precompile_headers": False}
    compiled = torch.compile(lambda x: masked_upsample_pool(x.relu(), BOXES, SIZE), fullgraph=True, options=options)
    features = features_like(rng, dtype=torch.float32)
    for ours, theirs in zip(compiled(features), masked_upsample_pool(features.relu(), BOXES, SIZE), strict=True):
        torch.testing.assert_close(ours, theirs)


@each_backend("masked_upsample_pool")
def test_vmap_folds_into_the_batch(backend: str, rng: torch.Generator) -> None:
    features = torch.randn(5, 3, 4, 3, 2, generator=rng)
    boxes = torch.stack([BOXES.roll(k, 0) for k in range(5)])
    masks = torch.rand(3, 5, 8, 9, generator=rng)

    def loop(fn: Callable[..., tuple[Tensor, Tensor]], *args: list[Tensor]) -> list[Tensor]:
        return [torch.stack(side) for side in zip(*(fn(*a) for a in zip(*args, strict=True)), strict=True)]

    def by_box(x: Tensor, r: Tensor) -> tuple[Tensor, Tensor]:
        return masked_upsample_pool(x, r, SIZE, backend=backend)

    def by_mask(x: Tensor, r: Tensor) -> tuple[Tensor, Tensor]:
        return masked_upsample_pool(x, r, backend=backend)

    def by_weights(x: Tensor, r: Tensor) -> tuple[Tensor, Tensor]:
        return weighted_pool(x, region_weights(r, SIZE, (3, 2), backend=backend), backend=backend)

    cases = [
        (by_box, (0, 0), (features, boxes)),
        (by_box, (0, None), (features, BOXES)),
        (by_box, (None, 0), (features[0], boxes)),
        (by_box, (0, None), (features, BOXES[1])),
        (by_box, (0, 0), (features, boxes[:, 0])),
        (by_mask, (0, 1), (features, masks)),
        (by_weights, (0, 0), (features, boxes)),
        (by_weights, (0, None), (features, BOXES[1])),
    ]
    for fn, dims, args in cases:
        spread = [[arg] * 5 if dim is None else list(arg.unbind(dim)) for arg, dim in zip(args, dims, strict=True)]
        for ours, theirs in zip(torch.vmap(fn, dims)(*args), loop(fn, *spread), strict=True):
            torch.testing.assert_close(ours, theirs)


def test_vmap_of_a_gradient(rng: torch.Generator) -> None:
    """The batched backward pass of torch.autograd.grad(is_grads_batched=True) maps the backward operator."""
    features = features_like(rng)
    inside, _ = masked_upsample_pool(features, BOXES, SIZE)
    basis = torch.eye(inside.numel(), dtype=torch.float64).view(-1, *inside.shape)
    (batched,) = torch.autograd.grad(inside, features, basis, is_grads_batched=True, retain_graph=True)
    single = [torch.autograd.grad(inside, features, row, retain_graph=True)[0] for row in basis]
    torch.testing.assert_close(batched, torch.stack(single))


@each_backend("masked_upsample_pool")
def test_autocast_leaves_the_dtype_alone(backend: str, rng: torch.Generator) -> None:
    for dtype in (torch.float32, torch.bfloat16):
        features = torch.randn(3, 4, 3, 2, generator=rng).to(dtype).requires_grad_()
        plain = masked_upsample_pool(features, BOXES, SIZE, backend=backend)
        with torch.autocast(device_of(backend), dtype=torch.bfloat16):
            cast = masked_upsample_pool(features, BOXES, SIZE, backend=backend)
        for ours, theirs in zip(cast, plain, strict=True):
            assert ours.dtype == dtype
            torch.testing.assert_close(ours, theirs)


def test_fake_tensors_have_the_real_shapes(rng: torch.Generator) -> None:
    real = masked_upsample_pool(features_like(rng, dtype=torch.bfloat16), BOXES, SIZE)
    with FakeTensorMode() as mode:
        features = mode.from_tensor(features_like(rng, dtype=torch.bfloat16))
        fake = masked_upsample_pool(features, mode.from_tensor(BOXES), SIZE)
        (grad,) = torch.autograd.grad(fake[0].sum(), [features])
    assert grad.shape == features.shape
    for a, b in zip(fake, real, strict=True):
        assert (a.shape, a.dtype, a.stride()) == (b.shape, b.dtype, b.stride())


def test_inference_and_no_grad(rng: torch.Generator) -> None:
    features = features_like(rng)
    expected = masked_upsample_pool(features, BOXES, SIZE)
    for context in (torch.no_grad, torch.inference_mode):
        with context():
            results = masked_upsample_pool(features, BOXES, SIZE)
        assert not any(result.requires_grad for result in results)
        assert all(torch.equal(a, b) for a, b in zip(results, expected, strict=True))
