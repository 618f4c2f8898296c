"""Argument checks of augment_views, draw_views and mix_views. They read shapes and types, and no tensor's values."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from mixfast.ops._check import FLOAT_NAMES, FLOATS, is_finite
from mixfast.ops.views._layout import COLUMNS, Recipe

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
_FIELDS = [name for name in vars(Recipe) if not name.startswith("_")]
_RATIOS, _PAIRS = ("crop_ratio",), ("crop_scale", "crop_ratio", "blur_sigma")
FORMATS = (torch.contiguous_format, torch.channels_last)
LARGEST = 2**24  # float32 holds every integer up to it: limit of a side in pixels
MOST = 2**31  # limit of the images of a draw, whose positions are 32-bit numbers


def _tensor(operation: str, name: str, value: Any, dtype: torch.dtype) -> None:
    if not isinstance(value, Tensor):
        raise TypeError(f"{operation}: {name} must be a tensor; got {type(value).__name__}.")
    if value.dtype != dtype:
        raise TypeError(f"{operation}: {name} must be {dtype}; got {value.dtype}.")
    if value.layout is not torch.strided:
        raise ValueError(f"{operation}: {name} must be dense; got {value.layout}.")


def check_images(images: Any) -> None:
    """uint8 [N, 3, H, W], contiguous."""
    name = "augment_views"
    _tensor(name, "images", images, torch.uint8)
    if images.ndim != 4 or images.shape[1] != 3 or min(images.shape[2:]) < 1:
        raise ValueError(f"{name}: images must be [N, 3, H, W], RGB; got {list(images.shape)}.")
    if max(images.shape[2:]) >= LARGEST:
        raise ValueError(f"{name}: the sides of images must be below 2^24; got {list(images.shape)}.")
    if not images.is_contiguous():
        raise ValueError(f"{name}: images must be contiguous; got strides {images.stride()}. Pass images.contiguous().")


def check_index(index: Any, images: Tensor) -> None:
    """int64 [B] on the images' device, or None."""
    if index is None:
        return
    name = "augment_views"
    _tensor(name, "index", index, torch.int64)
    if index.ndim != 1:
        raise ValueError(f"{name}: index must be [B], rows of images; got {list(index.shape)}.")
    if len(index) and not len(images):
        raise ValueError(f"{name}: index must be empty, as there are no images; got {len(index)} rows.")
    if index.device != images.device:
        raise ValueError(f"{name}: index must be on the device of images, {images.device}; got {index.device}.")


def check_parameters(parameters: Any, images: Tensor, index: Tensor | None) -> None:
    """float32 [V, B, 16] on the images' device."""
    name, count = "augment_views", len(COLUMNS)
    _tensor(name, "parameters", parameters, torch.float32)
    batch = len(images) if index is None else len(index)
    if parameters.ndim != 3 or parameters.shape[0] < 1 or tuple(parameters.shape[1:]) != (batch, count):
        raise ValueError(
            f"{name}: parameters must be [V, {batch}, {count}], a row for each view and image; "
            f"got {list(parameters.shape)}. draw_views makes them."
        )
    if parameters.device != images.device:
        raise ValueError(
            f"{name}: parameters must be on the device of images, {images.device}; got {parameters.device}."
        )


def check_format(dtype: Any, memory_format: Any, interpolation: Any, blur_reach: Any) -> None:
    """Dtype, memory format, interpolation and blur of the views."""
    name = "augment_views"
    if dtype not in DTYPES:
        raise TypeError(f"{name}: dtype must be float32, bfloat16 or float16; got {dtype}.")
    if memory_format not in FORMATS:
        raise ValueError(f"{name}: memory_format must be contiguous_format or channels_last; got {memory_format}.")
    if interpolation not in ("bilinear", "bicubic"):
        raise ValueError(f"{name}: interpolation must be 'bilinear' or 'bicubic'; got {interpolation!r}.")
    if isinstance(blur_reach, bool) or not isinstance(blur_reach, int) or not 0 <= blur_reach < LARGEST:
        raise ValueError(
            f"{name}: blur_reach must be from 0 to below 2^24 pixels; got {blur_reach!r}. 0 omits the blur."
        )


def check_channels(mean: Any, std: Any) -> None:
    """Three numbers each, finite; std positive."""
    for name, values in (("mean", mean), ("std", std)):
        if not isinstance(values, Sequence) or len(values) != 3 or not all(map(is_finite, values)):
            raise ValueError(f"augment_views: {name} must be three numbers, one for each channel; got {values!r}.")
    if min(std) <= 0:
        raise ValueError(
            f"augment_views: std must be positive; got {std!r}. Use (1, 1, 1) to leave values as they are."
        )


def check_size(operation: str, name: str, size: Any) -> tuple[int, int]:
    """(height, width) of a side or a pair."""
    pair = (size, size) if isinstance(size, int) else size
    sides = isinstance(pair, (tuple, list)) and len(pair) == 2 and all(map(_is_integer, pair))
    if not sides or not all(0 < side < LARGEST for side in pair):
        raise ValueError(f"{operation}: {name} must be a side or (height, width), at least 1; got {size!r}.")
    return pair[0], pair[1]


def _is_integer(value: Any) -> bool:
    return isinstance(value, (int, torch.SymInt)) and not isinstance(value, bool)


def check_state(state: Any) -> None:
    """int64 [2], contiguous: it is changed in place."""
    _tensor("draw_views", "state", state, torch.int64)
    if tuple(state.shape) != (2,) or not state.is_contiguous():
        raise ValueError(
            "draw_views: state must be contiguous [2], (key, next draw); "
            f"got {list(state.shape)} with strides {state.stride()}."
        )


def check_draw(batch: Any, recipes: Any) -> None:
    """A number of images, and at least one recipe."""
    if isinstance(batch, bool) or not isinstance(batch, int) or not 0 <= batch < MOST:
        raise ValueError(f"draw_views: batch must be a number of images, below 2^31; got {batch!r}.")
    if not isinstance(recipes, Sequence) or not recipes:
        raise ValueError(f"draw_views: recipes must be a sequence, one for each view; got {recipes!r}.")
    for i, recipe in enumerate(recipes):
        for name in _FIELDS:
            pair, value = name in _PAIRS, getattr(recipe, name, None)
            numbers = value if pair and isinstance(value, (tuple, list)) and len(value) == 2 else [value]
            if len(numbers) != 1 + pair or not all(map(is_finite, numbers)) or (name in _RATIOS and min(numbers) <= 0):
                expected = ("two " if pair else "a ") + ("positive " if name in _RATIOS else "") + f"number{'s' * pair}"
                raise TypeError(f"draw_views: recipes[{i}].{name} must be {expected}; got {value!r} of {recipe!r}.")


def check_mixture(base: Any, donor: Any, boxes: Any, share: Any) -> None:
    """Views [B, C, H, W] alike, int64 [B, 4] and float32 [B], on one device."""
    name = "mix_views"
    if not isinstance(base, Tensor) or base.dtype not in FLOATS:
        kind = base.dtype if isinstance(base, Tensor) else type(base).__name__
        raise TypeError(f"{name}: base must be a tensor of {FLOAT_NAMES}; got {kind}.")
    if base.ndim != 4:
        raise ValueError(f"{name}: base must be [B, C, H, W]; got {list(base.shape)}.")
    wanted = {"donor": (donor, base.dtype, base.shape), "boxes": (boxes, torch.int64, (len(base), 4))}
    for argument, (value, dtype, shape) in {**wanted, "share": (share, torch.float32, (len(base),))}.items():
        _tensor(name, argument, value, dtype)
        if tuple(value.shape) != tuple(shape):
            raise ValueError(f"{name}: {argument} must be {list(shape)}, as base has it; got {list(value.shape)}.")
        if value.device != base.device:
            raise ValueError(f"{name}: {argument} must be on the device of base, {base.device}; got {value.device}.")
