"""split_batch_norm in Triton (gpu_triton_kernels.py)."""

from typing import Any, NamedTuple

import torch
from torch import Tensor

from mixfast.ops._triton import power_of_two, unavailable, why_not
from mixfast.ops.norm._operators import empty_gradients

__all__ = ["backward", "forward", "unavailable", "why_not"]

TILE = 2048  # numbers per step; two tiles of float32 sums take 32 registers of each thread
PROGRAMS = 1056  # target for the number of programs: eight for each multiprocessor of a large GPU
LONGEST = 256  # largest number of chunks per group, which fit into one tile of the merging kernels
_LAUNCH = {"num_warps": 4, "enable_fp_fusion": True}


class Plan(NamedTuple):
    """How maps are cut into chunks. It follows from shape and layout alone: the order of sums decides the last bits."""

    sizes: tuple[int, int, int, int, int]  # groups, channels, pixels, stride of channels, stride of pixels
    steps: int  # steps per sample
    chunk: int  # steps per chunk
    chunks: int  # chunks per group
    total: int  # steps per group
    tiles: int  # tiles of channels
    constants: dict[str, Any]  # constants of the kernels that read maps


def plan(x: Tensor, splits: int) -> Plan:
    batch, channels, height, width = x.shape
    pixels = height * width
    last = channels > 1 and x.is_contiguous(memory_format=torch.channels_last)
    constants = map_constants(channels, pixels, last)
    tiles, steps = -(-channels // constants["BLOCK_C"]), -(-pixels // constants["BLOCK_P"])
    total = batch // splits * steps
    chunks = min(max(PROGRAMS // (splits * tiles), 1), total, LONGEST)
    chunk = -(-total // chunks)
    strides = (1, channels) if last else (pixels, 1)
    return Plan((splits, channels, pixels, *strides), steps, chunk, -(-total // chunk), total, tiles, constants)


def forward(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    residual: Tensor | None,
    splits: int,
    momentum: float,
    eps: float,
    relu: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """(y, means, inverses) as `_operators.forward` describes them; x is dense, and a residual has its layout."""
    from mixfast.ops.norm import gpu_triton_kernels as kernels

    cut = plan(x, splits)
    channels, pixels = cut.sizes[1:3]
    merging = merge_constants(cut.chunks)
    partial_means, squares = weight.new_empty((2, splits, cut.chunks, channels))
    y, (means, inverses, variances) = torch.empty_like(x), weight.new_empty((3, splits, channels))
    grid = cut.chunks, cut.tiles, splits
    with torch.cuda.device_of(x):
        kernels.moments[grid](
            x,
            partial_means,
            squares,
            *cut.sizes,
            cut.steps,
            cut.chunk,
            cut.chunks,
            cut.total,
            **cut.constants,
            **_LAUNCH,
        )
        kernels.merge_moments[(-(-channels // merging["BLOCK_C"]), splits)](
            partial_means,
            squares,
            means,
            inverses,
            variances,
            channels,
            pixels,
            cut.steps,
            cut.chunk,
            cut.chunks,
            cut.total,
            eps,
            BLOCK_P=cut.constants["BLOCK_P"],
            **merging,
            **_LAUNCH,
        )
        kernels.normalise[grid](
            x,
            residual,
            y,
            weight,
            bias,
            means,
            inverses,
            variances,
            running_mean,
            running_var,
            *cut.sizes,
            cut.steps,
            cut.chunk,
            cut.total,
            momentum,
            RELU=relu,
            **cut.constants,
            **_LAUNCH,
        )
    return y, means, inverses


def backward(
    dy: Tensor,
    x: Tensor,
    y: Tensor | None,
    weight: Tensor,
    means: Tensor,
    inverses: Tensor,
    splits: int,
    masked: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """(dx, d_weight, d_bias, d_residual) as `_operators.backward` describes them; all maps are dense, in one layout."""
    from mixfast.ops.norm import gpu_triton_kernels as kernels

    cut = plan(x, splits)
    channels = cut.sizes[1]
    merging = merge_constants(cut.chunks)
    partials = weight.new_empty((2, splits, cut.chunks, channels))
    sums = weight.new_empty((2, splits, channels))
    dx, d_weight, d_bias, d_residual = gradients = empty_gradients(x, weight, masked)
    grid = cut.chunks, cut.tiles, splits
    with torch.cuda.device_of(x):
        kernels.products[grid](
            dy,
            x,
            y,
            d_residual if masked else None,
            means,
            inverses,
            *partials,
            *cut.sizes,
            cut.steps,
            cut.chunk,
            cut.chunks,
            cut.total,
            **cut.constants,
            **_LAUNCH,
        )
        kernels.merge_products[(-(-channels // merging["BLOCK_C"]), splits)](
            *partials, *sums, channels, cut.chunks, **merging, **_LAUNCH
        )
        kernels.gradient[grid](
            d_residual if masked else dy,
            x,
            None if masked else y,
            dx,
            weight,
            means,
            inverses,
            *sums,
            d_weight,
            d_bias,
            *cut.sizes,
            cut.steps,
            cut.chunk,
            cut.total,
            **cut.constants,
            **_LAUNCH,
        )
    return gradients


# The constants of each kernel. scripts/triton_report.py compiles with the same.


def map_constants(channels: int, pixels: int, channels_last: bool) -> dict[str, Any]:
    """Tiles of TILE numbers: first enough neighbours in memory for efficient access, the rest along the other axis."""
    if channels_last:
        block_c = min(power_of_two(channels), 64)
        return {"BLOCK_P": min(power_of_two(pixels), TILE // block_c), "BLOCK_C": block_c}
    block_p = min(power_of_two(pixels), 512)
    return {"BLOCK_P": block_p, "BLOCK_C": min(power_of_two(channels), TILE // block_p)}


def merge_constants(chunks: int) -> dict[str, Any]:
    block_k = power_of_two(chunks)
    return {"BLOCK_K": block_k, "BLOCK_C": max(min(1024 // block_k, 32), 4)}
