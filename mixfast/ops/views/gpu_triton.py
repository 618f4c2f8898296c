"""augment_views, draw_views and mix_views in Triton (gpu_triton_*.py)."""

import functools
import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from mixfast.ops._triton import architecture, power_of_two, unavailable, why_not
from mixfast.ops.views._layout import COLUMNS, Law, Options, empty_views

__all__ = ["augment_views", "draw_views", "mix_views", "unavailable", "why_not"]

THREADS = 512  # most threads of a program; a view that they can compute is one tile, without an extra pass for its mean
TILE, STEP = 32, 16  # side of a tile of larger views; side of the block that a blur reads at once
DRAWN = 64  # images per program of `draw`
_DRAW = {"num_warps": 2, "enable_fp_fusion": False}
MIXED = 1024  # numbers per program of `mix`
_BLUR = {"num_warps": 4, "enable_fp_fusion": False}
_MIX = {"num_warps": 4, "enable_fp_fusion": False}


def draw_views(state: Tensor, batch: int, size: tuple[int, int], laws: tuple[Law, ...]) -> Tensor:
    """float32 [V, B, 16]; moves state[1] on by one."""
    from mixfast.ops.views import gpu_triton_draws as kernels

    parameters = state.new_empty((len(laws), batch, len(COLUMNS)), dtype=torch.float32)
    with torch.cuda.device_of(state):
        if batch > 0:
            kernels.draw[(-(-batch // DRAWN), len(laws))](
                state, _numbers(laws, state.device), parameters, batch, *size, BLOCK=DRAWN, **_DRAW
            )
        state[1].add_(1)
    return parameters


# Cached forever: a captured CUDA graph reads this tensor's memory at every replay.
@functools.cache
def _numbers(laws: tuple[Law, ...], device: torch.device) -> Tensor:
    """float64 [V, numbers of a law], copied to the device once: a later call neither copies nor waits."""
    return torch.tensor(laws, dtype=torch.float64, device=device)


def augment_views(images: Tensor, parameters: Tensor, index: Tensor | None, options: Options) -> Tensor:
    """The views [V, B, 3, S, T], by one kernel if a view is one tile and not blurred, else by several stages.

    Pixels between two stages are float32 in memory: [V, B, 3, H, W] between colours and a later crop, [V, B, 3, S, T]
    before a blur.
    """
    for name, (height, width) in (("images", images.shape[2:]), ("views", (options.height, options.width))):
        if 3 * height * width >= 1 << 31:
            raise ValueError(
                f"augment_views: triton takes {name} of fewer than 2^31 numbers; got 3 x {height} x {width}."
            )
    views = empty_views(images, parameters, options)
    if views.numel() == 0:
        return views
    size = options.height, options.width
    with torch.cuda.device_of(images):
        source, rows = images, index
        if options.colour_first:
            full = (*parameters.shape[:2], *images.shape[1:])
            source, rows = images.new_empty(full, dtype=torch.float32), None
            _stage(images, index, parameters, source, None, options, crop=False, colour=True)
        unblurred = images.new_empty((*views.shape[:3], *size), dtype=torch.float32) if options.reach else None
        _stage(source, rows, parameters, unblurred, views, options, crop=True, colour=not options.colour_first)
        if unblurred is not None:
            _blur(unblurred, parameters, views, options)
    return views


def _stage(
    source: Tensor,
    index: Tensor | None,
    parameters: Tensor,
    scratch: Tensor | None,
    views: Tensor | None,
    options: Options,
    *,
    crop: bool,
    colour: bool,
) -> None:
    """Crop and resize, or jitter colours, or both; writes `views`, or `scratch` if another stage follows."""
    from mixfast.ops.views import gpu_triton_kernels as kernels

    size = (options.height, options.width) if crop else tuple(source.shape[-2:])
    sizes = len(parameters), source.shape[-2:], size
    constants, launch = render_constants(architecture(source.device), *sizes, options, crop, colour)
    tiles = math.prod(-(-side // constants[block]) for side, block in zip(size, ("BLOCK_H", "BLOCK_W"), strict=True))
    count, batch = parameters.shape[:2]
    grid, rows = (count * batch * tiles,), (source.shape[0], batch)
    sums = parameters.new_empty((count, batch, tiles)) if colour and tiles > 1 else None
    if sums is not None:
        kernels.grey_sums[grid](source, index, parameters, sums, *rows, **sums_constants(constants), **launch)
    arguments = source, index, parameters, sums, scratch, views, options.scale, options.offset
    kernels.render[grid](*arguments, *rows, **constants, **launch)


def _blur(unblurred: Tensor, parameters: Tensor, views: Tensor, options: Options) -> None:
    from mixfast.ops.views import gpu_triton_kernels as kernels

    count, batch = parameters.shape[:2]
    size = options.height, options.width
    grid = (count * batch * math.prod(-(-side // TILE) for side in size), 3)
    arguments = unblurred, parameters, views, options.scale, options.offset
    kernels.blur[grid](*arguments, batch, options.reach, **blur_constants(count, options), **_BLUR)


def mix_views(base: Tensor, donor: Tensor, boxes: Tensor, share: Tensor) -> Tensor:
    """[B, C, H, W]; all are contiguous, or the views channels_last."""
    from mixfast.ops.views import gpu_triton_mix as kernels

    mixed = torch.empty_like(base)
    if mixed.numel() == 0:
        return mixed
    batch, channels, height, width = base.shape
    numbers = channels * height * width
    if numbers >= 1 << 31:
        raise ValueError(f"mix_views: triton takes views of fewer than 2^31 numbers; got {list(base.shape[1:])}.")
    constants = {"CHANNELS": 1 if base.is_contiguous() else channels, "BLOCK": MIXED}
    with torch.cuda.device_of(base):
        arguments = base, donor, boxes, share, mixed, numbers, height * width, width
        kernels.mix[(batch * -(-numbers // MIXED),)](*arguments, **constants, **_MIX)
    return mixed


# The constants of each kernel. scripts/triton_report.py compiles with the same.


def render_constants(
    architecture: int,
    views: int,
    given: Sequence[int],
    size: Sequence[int],
    options: Options,
    crop: bool,
    colour: bool,
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Constants and launch options of `render`.

    From Blackwell on a thread computes fewer pixels, and its registers are limited to 128, the most that 512 threads
    can have: otherwise the assembler spills registers.
    """
    pixels = 4 if architecture >= 100 else 8
    block_h, block_w = (power_of_two(side) for side in size)
    if block_h * block_w > (THREADS * pixels if colour else TILE * TILE):
        block_h, block_w = TILE, TILE
    constants = {
        **{"VIEWS": views, "H": given[0], "W": given[1], "OUT_H": size[0], "OUT_W": size[1]},
        **{"CROP": crop, "CUBIC": options.interpolation == "bicubic", "COLOUR": colour},
        **{"GREY_FIRST": options.grey_first, "CHANNELS_LAST": options.channels_last},
        **{"BLOCK_H": block_h, "BLOCK_W": block_w},
    }
    launch = {"num_warps": max(block_h * block_w // pixels // 32, 1), "enable_fp_fusion": False}
    return constants, launch | ({"maxnreg": 128} if architecture >= 100 else {})


def sums_constants(constants: dict[str, Any]) -> dict[str, Any]:
    """The constants of the kernel that sums grey values before `render`."""
    return {name: value for name, value in constants.items() if name not in ("COLOUR", "CHANNELS_LAST")}


def blur_constants(views: int, options: Options) -> dict[str, Any]:
    size = {"VIEWS": views, "OUT_H": options.height, "OUT_W": options.width}
    return {**size, "CHANNELS_LAST": options.channels_last, "BLOCK": TILE, "STEP": STEP}
