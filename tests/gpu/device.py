"""What the tests on a GPU share: its backends, its memory, calls of the operations, gradients among the results."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import mixfast
from tests.backends import each_backend
from tests.ops import augmenting

DEVICE = "cuda"
CPU_BACKENDS = ("reference", "cpu")
each_pool_backend = each_backend("masked_upsample_pool", but=CPU_BACKENDS)
each_infonce_backend = each_backend("multi_queue_infonce", but=CPU_BACKENDS)
each_norm_backend = each_backend("split_batch_norm", but=CPU_BACKENDS)
each_views_backend = each_backend("augment_views", but=CPU_BACKENDS)
INDEX = [1, 0, 1]  # the queue of each term


def needs_free(gib: float) -> None:
    """Skips the test if the GPU has less memory left."""
    free = torch.cuda.mem_get_info()[0] / 2**30
    if free < gib:
        pytest.skip(f"it takes {gib:g} GiB of the GPU's memory; {free:.1f} are free")


def unit(*shape: int, rng: torch.Generator, dtype: torch.dtype = torch.float32) -> Tensor:
    """Rows of length one, on the GPU."""
    return F.normalize(torch.randn(*shape, generator=rng), dim=-1).to(DEVICE, dtype)


def boxes(count: int, pixels: int, rng: torch.Generator) -> Tensor:
    corners = torch.randint(0, pixels + 1, (2, count, 2), generator=rng).sort(0).values
    return torch.cat([*corners], dim=1).to(DEVICE)


def pool(
    features: Tensor, regions: Tensor, size: tuple[int, int] | None, grads: Tensor, backend: str
) -> tuple[Tensor, ...]:
    """(inside, outside, gradient of the features) for upstream gradients [2, B, C]."""
    features = features.detach().requires_grad_()
    pooled = mixfast.masked_upsample_pool(features, regions, size, backend=backend)
    return (*(each.detach() for each in pooled), *torch.autograd.grad(pooled, [features], [*grads]))


def infonce(
    queries: list[Tensor],
    positives: list[Tensor],
    queues: list[Tensor],
    backend: str,
    valid_len: Tensor | None = None,
    temperature: float | Tensor = 0.1,
) -> tuple[Tensor, ...]:
    """(losses [T], gradients of the queries, of the positives) of terms against the queues INDEX."""
    leaves = [each.detach().requires_grad_() for each in (*queries, *positives)]
    losses = mixfast.multi_queue_infonce(
        leaves[: len(queries)],
        leaves[len(queries) :],
        queues,
        INDEX[: len(queries)],
        valid_len=valid_len,
        temperature=temperature,
        backend=backend,
    )
    return (losses.detach(), *torch.autograd.grad(losses.sum(), leaves))


def views(state: Tensor, images: Tensor, index: Tensor | None, backend: str, **others: Any) -> tuple[Tensor, ...]:
    """(parameters, two views), drawn and made, with every kind of step, or as `others` say."""
    batch = len(images) if index is None else len(index)
    recipes = [augmenting.EVERYTHING, augmenting.RECIPES["demo"]]
    parameters = mixfast.draw_views(state, batch, tuple(images.shape[2:]), recipes, backend=backend)
    options = augmenting.options(augmenting.EVERYTHING, **others)
    return parameters, *mixfast.augment_views(images, parameters, index=index, backend=backend, **options)


def norm(x: Tensor, residual: Tensor, upstream: Tensor, backend: str) -> tuple[Tensor, ...]:
    """Norm, sum and ReLU in two groups: (running statistics, y, gradients of x, weight, bias and residual)."""
    statistics = torch.promote_types(x.dtype, torch.float32)
    one = torch.ones(x.shape[1], dtype=statistics, device=DEVICE)
    leaves = [each.detach().requires_grad_() for each in (x, one, one / 2, residual)]
    running = torch.zeros_like(one), one.clone()
    options = {"num_splits": 2, "relu": True, "residual": leaves[3], "backend": backend}
    y = mixfast.ops.split_batch_norm(*leaves[:3], *running, **options)
    return (*running, y.detach(), *torch.autograd.grad(y, leaves, upstream))


def peak_bytes(run: Callable[[], object]) -> int:
    """Memory at the peak of a call, beyond what was taken before; of the second call, whose tables are made."""
    run()
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    run()
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated() - before
