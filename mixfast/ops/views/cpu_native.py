"""The three functions on CPU in C++ (csrc/views): passes addresses and sizes of checked arguments."""

import functools

import torch
from torch import Tensor

from mixfast.ops import _native
from mixfast.ops._native import DTYPES
from mixfast.ops.views._layout import COLUMNS, Law, Options, empty_views

unavailable = _native.cpu_unavailable


def why_not(device_type: str, dtype: torch.dtype) -> str | None:
    return None if device_type == "cpu" else f"it runs on CPU tensors; these are on {device_type}"


@functools.cache
def instruction_sets() -> list[int]:
    """Codes of the instruction sets that this processor can run, from slow to fast."""
    return _native.cpu.augment_views_instruction_sets() if _native.cpu else []


def augment_views(
    images: Tensor, parameters: Tensor, index: Tensor | None, options: Options, instruction_set: int = -1
) -> Tensor:
    """[V, B, 3, S, T]; parameters and index are contiguous."""
    views = empty_views(images, parameters, options)
    refused = _native.cpu.augment_views(  # type: ignore[union-attr]
        images.data_ptr(),
        images.size(0),
        images.shape[2:],
        0 if index is None else index.data_ptr(),
        parameters.data_ptr(),
        *parameters.shape[:2],
        (options.height, options.width),
        options.scale,
        options.offset,
        options.interpolation == "bicubic",
        options.colour_first,
        options.grey_first,
        options.reach,
        DTYPES[options.dtype],
        options.channels_last,
        views.data_ptr(),
        *_native.cpu_place(instruction_sets(), instruction_set),
    )
    if refused >= 0 and index is not None:
        raise IndexError(
            f"augment_views: index must be in [0, {len(images)}), rows of images; index[{refused}] is {index[refused]}."
        )
    return views


def draw_views(state: Tensor, batch: int, size: tuple[int, int], laws: tuple[Law, ...]) -> Tensor:
    """float32 [V, B, 16]; moves state[1] on by one."""
    parameters = state.new_empty((len(laws), batch, len(COLUMNS)), dtype=torch.float32)
    numbers = [number for law in laws for number in law]
    _native.cpu.draw_views(  # type: ignore[union-attr]
        state.data_ptr(), batch, size, numbers, parameters.data_ptr()
    )
    return parameters


def mix_views(base: Tensor, donor: Tensor, boxes: Tensor, share: Tensor) -> Tensor:
    """[B, C, H, W]; all are contiguous, or the views channels_last."""
    mixed = torch.empty_like(base)
    _native.cpu.mix_views(  # type: ignore[union-attr]
        base.data_ptr(),
        donor.data_ptr(),
        boxes.data_ptr(),
        share.data_ptr(),
        base.shape,
        DTYPES[base.dtype],
        not base.is_contiguous(),
        mixed.data_ptr(),
        torch.get_num_threads(),
    )
    return mixed
