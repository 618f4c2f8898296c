"""masked_upsample_pool in Triton (gpu_triton_kernels.py): for a torch with CUDA on a machine without a compiler."""

from typing import Any

import torch
from torch import Tensor

from mixfast.ops._triton import power_of_two, unavailable, why_not
from mixfast.ops.pool._operators import dense, empty_maps

__all__ = ["backward", "forward", "pool", "unavailable", "weights", "why_not"]

FUSED = 256  # positions up to which each block of channels works out the weights of a box anew
_LAUNCH = {"num_warps": 4, "enable_fp_fusion": True}


def forward(features: Tensor, regions: Tensor, height: int, width: int) -> tuple[Tensor, Tensor, Tensor]:
    b, c, h, w = features.shape
    boxes = regions if regions.ndim == 2 and h * w <= FUSED and b * c > 0 else None
    if boxes is None:
        ready = weights(regions, height, width, h, w, torch.float32)
    else:
        ready = features.new_empty((regions.shape[0], 2, h, w), dtype=torch.float32)
    inside, outside = _pool(features, ready, boxes, height, width)
    return inside, outside, ready


def pool(features: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
    return _pool(features, weights.contiguous(), None, 1, 1)


def _pool(features: Tensor, weights: Tensor, boxes: Tensor | None, height: int, width: int) -> tuple[Tensor, Tensor]:
    from mixfast.ops.pool import gpu_triton_kernels as kernels

    features, channels_last = dense(features)
    b, c, h, w = features.shape
    inside, outside = features.new_empty((b, c)), features.new_empty((b, c))
    constants = pool_constants(h, w, weights.shape[0] == 1, channels_last, wide(height, width, h, w))
    if b * c > 0:
        with torch.cuda.device_of(features):
            kernels.pool[(b * -(-c // constants["BLOCK_C"]),)](
                features,
                None if boxes is None else boxes.contiguous(),
                weights,
                inside,
                outside,
                c,
                height,
                width,
                **constants,
                **_LAUNCH,
            )
    return inside, outside


def backward(grad_inside: Tensor, grad_outside: Tensor, weights: Tensor, channels_last: bool) -> Tensor:
    from mixfast.ops.pool import gpu_triton_kernels as kernels

    (b, c), (h, w) = grad_inside.shape, weights.shape[2:]
    grad = empty_maps(grad_inside, h, w, channels_last)
    constants = spread_constants(h, w, weights.shape[0] == 1, channels_last)
    block_c, block_p = constants["BLOCK_C"], constants["BLOCK_P"]
    blocks = -(-c // block_c) * -(-(h * w) // block_p) if channels_last else -(-(c * h * w) // (block_c * block_p))
    if b * c > 0:
        with torch.cuda.device_of(grad):
            kernels.spread[(b * blocks,)](
                grad_inside.contiguous(),
                grad_outside.contiguous(),
                weights.contiguous(),
                grad,
                c,
                **constants,
                **_LAUNCH,
            )
    return grad


def weights(regions: Tensor, height: int, width: int, h: int, w: int, dtype: torch.dtype) -> Tensor:
    from mixfast.ops.pool import gpu_triton_kernels as kernels

    regions = regions.contiguous()
    result = regions.new_empty((regions.shape[0], 2, h, w), dtype=dtype)
    if regions.shape[0] == 0:
        return result
    with torch.cuda.device_of(regions):
        if regions.ndim == 2:
            constants = box_constants(h, w, wide(height, width, h, w))
            blocks = -(-(h * w) // constants["BLOCK_P"])
            kernels.box_weights[(len(regions) * blocks,)](regions, result, height, width, **constants, **_LAUNCH)
            return result
        constants = mask_constants(h, w, wide(height, width, h, w), regions.element_size())
        tiles = -(-h // constants["CELLS_H"]) * -(-w // constants["CELLS_W"])
        kernels.mask_weights[(len(regions) * tiles,)](regions, result, height, width, **constants, **_LAUNCH)
        if not constants["NORMALISE"]:
            kernels.normalise[(2 * len(regions),)](result, POSITIONS=h * w, BLOCK_P=1024, **_LAUNCH)
    return result


# The constants of each kernel, by shape. scripts/triton_report.py compiles with the same.


def wide(height: int, width: int, h: int, w: int) -> bool:
    """Whether the arithmetic of box and mask weights needs 64-bit integers."""
    return max(height * (2 * h + 3), width * (2 * w + 3)) >= 1 << 31


def pool_constants(h: int, w: int, shared: bool, channels_last: bool, wide: bool) -> dict[str, Any]:
    positions = power_of_two(h * w)
    block_p = min(positions, 32 if channels_last else 128)
    block_c = 64 if channels_last or block_p <= 16 else 32
    return {
        **{"h": h, "w": w, "SHARED": shared, "CHANNELS_LAST": channels_last, "WIDE": wide},
        **{"BLOCK_C": block_c, "BLOCK_P": block_p},
    }


def spread_constants(h: int, w: int, shared: bool, channels_last: bool) -> dict[str, Any]:
    block_c, block_p = (64, min(power_of_two(h * w), 32)) if channels_last else (32, 64)
    layout = {"CHANNELS_LAST": channels_last, "BLOCK_C": block_c, "BLOCK_P": block_p}
    return {"POSITIONS": h * w, "SHARED": shared, **layout}


def box_constants(h: int, w: int, wide: bool) -> dict[str, Any]:
    return {"h": h, "w": w, "WIDE": wide, "BLOCK_P": min(power_of_two(h * w), 256)}


def mask_constants(h: int, w: int, wide: bool, element_size: int) -> dict[str, Any]:
    """Matrix products need tiles of 16 at least; float masks come in narrower ones, to stay in registers."""
    cells_h, cells_w = (min(power_of_two(side, least=16), 32) for side in (h, w))
    return {
        **{"h": h, "w": w, "WIDE": wide, "NORMALISE": h <= cells_h and w <= cells_w},
        **{"CELLS_H": cells_h, "CELLS_W": cells_w, "BLOCK_H": 32, "BLOCK_W": 32 if element_size == 1 else 16},
    }
