"""The pooling operations on emulated kernels: what mixfast/ops/pool/gpu_cuda.py does on a GPU."""

from typing import Any

import torch
from torch import Tensor

from mixfast.ops._check import statistics_dtype
from mixfast.ops._native import DTYPES
from tests.cuda.emulated import Emulated

Results = dict[str, Tensor]


def in_memory(maps: Tensor, channels_last: bool) -> Tensor:
    return maps.permute(0, 2, 3, 1).contiguous() if channels_last else maps.contiguous()


def empty(*shape: int, dtype: torch.dtype) -> Tensor:
    """Filled with NaN, so that a skipped element shows."""
    return torch.full(shape, torch.nan, dtype=dtype)


def _regions(regions: Tensor, height: int, width: int) -> tuple[Any, ...]:
    if regions.ndim == 3:
        return regions.contiguous(), regions.shape[0], height, width, DTYPES[regions.dtype]
    boxes = regions.long().reshape(-1, 4).contiguous()
    return boxes, boxes.shape[0], height, width, -1


def _mask_sums(regions: Tensor, h: int, w: int, dtype: torch.dtype) -> Tensor | None:
    return empty(regions.shape[0], 2, 2, h, w + 1, dtype=dtype) if regions.ndim == 3 else None


def pool_regions(
    run: Emulated, features: Tensor, regions: Tensor, size: tuple[int, int], channels_last: bool, **how: int
) -> Results:
    """Both means, and the weights of each image."""
    (b, c, h, w), dtype = features.shape, features.dtype
    sums = statistics_dtype(dtype)
    given = _regions(regions, *size)
    results = {name: empty(b, c, dtype=dtype) for name in ("inside", "outside")}
    results["weights"] = empty(given[1], 2, h, w, dtype=sums)
    maps = (b, c, h, w, DTYPES[dtype], channels_last, in_memory(features, channels_last))
    made = (_mask_sums(regions, h, w, sums), results["weights"], results["inside"], results["outside"])
    run("pool_regions", *maps, *given, *made, **how)
    return results


def pool_weights(run: Emulated, features: Tensor, weights: Tensor, channels_last: bool, **how: int) -> Results:
    (b, c, h, w), dtype = features.shape, features.dtype
    results = {name: empty(b, c, dtype=dtype) for name in ("inside", "outside")}
    maps = (b, c, h, w, DTYPES[dtype], channels_last, in_memory(features, channels_last))
    run("pool_weights", *maps, weights.shape[0], weights, results["inside"], results["outside"], **how)
    return results


def region_weights(
    run: Emulated, regions: Tensor, size: tuple[int, int], shape: tuple[int, int], dtype: torch.dtype, **how: int
) -> Tensor:
    given = _regions(regions, *size)
    weights = empty(given[1], 2, *shape, dtype=dtype)
    run("region_weights", *given, *shape, dtype == torch.float64, _mask_sums(regions, *shape, dtype), weights, **how)
    return weights


def spread_weights(
    run: Emulated, grads: tuple[Tensor, Tensor], weights: Tensor, channels_last: bool, **how: int
) -> Tensor:
    """The gradient of the maps [B, C, h, w]."""
    (b, c), (h, w), dtype = grads[0].shape, weights.shape[2:], grads[0].dtype
    grad = empty(*((b, h, w, c) if channels_last else (b, c, h, w)), dtype=dtype)
    run("spread_weights", b, c, h, w, DTYPES[dtype], channels_last, *grads, weights.shape[0], weights, grad, **how)
    return grad.permute(0, 3, 1, 2) if channels_last else grad
