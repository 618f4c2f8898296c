"""Argument checks of the pooling operations. Nothing here reads a tensor's values except `check_values`."""

from typing import Any

import torch
from torch import Tensor

from mixfast.ops._check import FLOATS, statistics_dtype

INTEGERS = (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8)
LARGEST_SIDE = 1 << 24  # pixels; keeps the integer arithmetic of the box weights exact


def check_features(name: str, features: Any) -> None:
    if not isinstance(features, Tensor):
        raise TypeError(f"{name}: features must be a tensor [B, C, h, w]; got {type(features).__name__}.")
    if features.ndim != 4:
        raise ValueError(f"{name}: features must be [B, C, h, w]; got {features.ndim}-D {list(features.shape)}.")
    if features.dtype not in FLOATS:
        raise TypeError(
            f"{name}: features must be float16, bfloat16, float32 or float64; got {features.dtype}. "
            "Convert them, with .float() for instance."
        )
    if features.layout is not torch.strided:
        raise TypeError(f"{name}: features must be dense; got layout {features.layout}. Call .to_dense() first.")
    if features.shape[2] < 1 or features.shape[3] < 1:
        raise ValueError(f"{name}: features need at least one position; got [B, C, h, w] = {list(features.shape)}.")


def check_size(name: str, argument: str, size: Any) -> tuple[int, int]:
    if not isinstance(size, (tuple, list)) or len(size) != 2:
        raise TypeError(f"{name}: {argument} must be (height, width), two integers; got {size!r}.")
    for side in size:
        if not isinstance(side, (int, torch.SymInt)) or isinstance(side, bool):
            raise TypeError(f"{name}: {argument} must be (height, width), two integers; got {size!r}.")
        if not 1 <= side <= LARGEST_SIDE:
            raise ValueError(f"{name}: {argument} must have sides between 1 and 2**24; got {tuple(size)}.")
    return size[0], size[1]


def check_regions(name: str, regions: Any, output_size: Any, features: Tensor | None) -> tuple[Tensor, int, int]:
    """Boxes as [B, 4] or [1, 4], or a mask as [B, H, W], with the height and width of the upsampled map."""
    if not isinstance(regions, Tensor):
        raise TypeError(
            f"{name}: regions must be a tensor, boxes [B, 4] or a mask [B, H, W]; got {type(regions).__name__}."
        )
    if features is not None and regions.device != features.device:
        raise ValueError(
            f"{name}: regions must be on the device of features, {features.device}; got {regions.device}. "
            f"Call regions.to({str(features.device)!r})."
        )
    if regions.requires_grad:
        raise ValueError(f"{name}: regions receive no gradient, but they require one. Pass regions.detach().")
    if regions.layout is not torch.strided:
        raise TypeError(f"{name}: regions must be dense; got layout {regions.layout}. Call .to_dense() first.")
    batch = None if features is None else features.shape[0]
    if regions.ndim == 4 and regions.shape[1] == 1:
        regions = regions.squeeze(1)
    elif _several_boxes(regions, output_size):
        count = regions.shape[1]
        raise ValueError(
            f"{name}: regions must be one box for each image, [B, 4] or [4]; got {list(regions.shape)}, {count} boxes "
            f"for each. Pass features.repeat_interleave({count}, dim=0) and regions.flatten(0, 1)."
        )
    if regions.ndim == 3:
        return _check_mask(name, regions, output_size, batch)
    return _check_boxes(name, regions, output_size, batch)


def _several_boxes(regions: Tensor, output_size: Any) -> bool:
    """Whether [B, M, 4] are boxes: integers, or what would be masks of a size that was not asked for."""
    if regions.ndim != 3 or regions.shape[2] != 4 or regions.dtype in (torch.bool, torch.uint8):
        return False
    size = tuple(output_size) if isinstance(output_size, (tuple, list)) else tuple(regions.shape[1:])
    return regions.dtype in INTEGERS or size != tuple(regions.shape[1:])


def _check_boxes(name: str, boxes: Tensor, output_size: Any, batch: int | None) -> tuple[Tensor, int, int]:
    if boxes.ndim not in (1, 2) or boxes.shape[-1] != 4:
        raise ValueError(
            f"{name}: regions must be boxes [B, 4] or [4] as (x0, y0, x1, y1), or a mask [B, H, W] or "
            f"[B, 1, H, W]; got {list(boxes.shape)}."
        )
    if boxes.dtype not in INTEGERS:
        raise TypeError(
            f"{name}: boxes must be integers, in output pixels; got {boxes.dtype}. Round them, then call .long()."
        )
    if boxes.ndim == 1:
        boxes = boxes.unsqueeze(0)
    elif batch is not None and boxes.shape[0] != batch:
        raise ValueError(
            f"{name}: boxes must be [B, 4] with B = {batch} as in features, or [4] for one box for all; "
            f"got {list(boxes.shape)}."
        )
    if output_size is None:
        raise TypeError(f"{name}: boxes need output_size=(height, width), the size of the map they are drawn on.")
    height, width = check_size(name, "output_size", output_size)
    return boxes, height, width


def _check_mask(name: str, mask: Tensor, output_size: Any, batch: int | None) -> tuple[Tensor, int, int]:
    if mask.dtype not in (torch.bool, torch.uint8) and mask.dtype not in FLOATS:
        raise TypeError(
            f"{name}: a mask must be bool, uint8, or a float in [0, 1]; got {mask.dtype}. Pass mask != 0, say."
        )
    if batch is not None and mask.shape[0] != batch:
        raise ValueError(f"{name}: a mask must be [B, H, W] with B = {batch} as in features; got {list(mask.shape)}.")
    height, width = check_size(name, "the mask's size", tuple(mask.shape[1:]))
    if output_size is not None and check_size(name, "output_size", output_size) != (height, width):
        raise ValueError(
            f"{name}: output_size must be None or the mask's own size ({height}, {width}); got {tuple(output_size)}. "
            "A mask is not resized."
        )
    return mask, height, width


def check_weights(name: str, weights: Any, features: Tensor) -> None:
    if not isinstance(weights, Tensor):
        raise TypeError(f"{name}: weights must be a tensor [B, 2, h, w]; got {type(weights).__name__}.")
    h, w = features.shape[2:]
    if weights.ndim != 4 or weights.shape[1:] != (2, h, w) or weights.shape[0] not in (1, features.shape[0]):
        raise ValueError(
            f"{name}: weights must be [B, 2, h, w] = [{features.shape[0]} or 1, 2, {h}, {w}] as features "
            f"{list(features.shape)} ask; got {list(weights.shape)}. region_weights makes them."
        )
    wanted = statistics_dtype(features.dtype)
    if weights.dtype != wanted:
        raise TypeError(
            f"{name}: weights must be {wanted} for {features.dtype} features; got {weights.dtype}. "
            f"Pass dtype={wanted} to region_weights."
        )
    if weights.device != features.device:
        raise ValueError(
            f"{name}: weights must be on the device of features, {features.device}; got {weights.device}. "
            f"Call weights.to({str(features.device)!r})."
        )
    if weights.requires_grad:
        raise ValueError(f"{name}: weights receive no gradient, but they require one. Pass weights.detach().")


def check_values(name: str, regions: Tensor, height: int, width: int) -> None:
    """Raises if a box leaves the map or is inverted, or a mask leaves [0, 1]. Reads values, of CPU tensors only."""
    if regions.device.type != "cpu":
        return
    if regions.ndim == 3:
        if regions.is_floating_point():
            bad = ~((regions >= 0) & (regions <= 1))
            if bad.any():
                b, y, x = bad.nonzero()[0].tolist()
                raise ValueError(
                    f"{name}: a float mask must lie in [0, 1]; got {regions[b, y, x].item():g} in image {b} "
                    f"at y = {y}, x = {x}. Call .clamp(0, 1), or pass a bool mask."
                )
        return
    for b, (x0, y0, x1, y1) in enumerate(regions.tolist()):
        if x1 < x0 or y1 < y0:
            raise ValueError(
                f"{name}: box {b} is inverted: (x0, y0, x1, y1) = ({x0}, {y0}, {x1}, {y1}) needs x0 <= x1 and "
                "y0 <= y1. The order is torchvision's, corners and not sizes."
            )
        if x0 < 0 or y0 < 0 or x1 > width or y1 > height:
            raise ValueError(
                f"{name}: box {b} leaves the map: (x0, y0, x1, y1) = ({x0}, {y0}, {x1}, {y1}) must lie within "
                f"width {width} and height {height}. Clamp it."
            )
