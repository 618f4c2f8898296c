"""The operators as torch sees them. They have no derivatives, because views of images are data."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from mixfast.ops import _dispatch
from mixfast.ops._register import LIBRARY, define, refuse_vmap
from mixfast.ops.views._layout import COLUMNS, Law, Options, empty_views, memory_format

NAME = "augment_views"
Flat = tuple[int, int, Sequence[float], Sequence[float], str, bool, bool, int, torch.dtype, bool]


def _options(flat: Flat) -> Options:
    height, width, mean, std, *rest = flat
    return Options(height, width, tuple(mean), tuple(std), *rest)  # type: ignore[arg-type]


def _augment(images: Tensor, parameters: Tensor, index: Tensor | None, *flat: Any) -> Tensor:
    *numbers, backend = flat
    run = _dispatch.module(NAME, backend).augment_views
    rows = None if index is None else index.contiguous()
    return run(images, parameters.contiguous(), rows, _options(tuple(numbers)))  # type: ignore[no-any-return,arg-type]


def _augment_fake(images: Tensor, parameters: Tensor, index: Tensor | None, *flat: Any) -> Tensor:
    return empty_views(images, parameters, _options(flat[:-1]))  # type: ignore[arg-type]


def laws(numbers: Sequence[float]) -> tuple[Law, ...]:
    """One law for each view, from the numbers of all laws in one sequence."""
    width = len(Law._fields)
    return tuple(Law(*numbers[i : i + width]) for i in range(0, len(numbers), width))


def _draw(state: Tensor, batch: int, height: int, width: int, numbers: Sequence[float], backend: str) -> Tensor:
    drawn: Tensor = _dispatch.module(NAME, backend).draw_views(state, batch, (height, width), laws(numbers))
    return drawn


def _draw_fake(state: Tensor, batch: int, height: int, width: int, numbers: Sequence[float], backend: str) -> Tensor:
    return state.new_empty((len(laws(numbers)), batch, len(COLUMNS)), dtype=torch.float32)


def _mix(base: Tensor, donor: Tensor, boxes: Tensor, share: Tensor, backend: str) -> Tensor:
    layout = memory_format(base)
    views = (view.contiguous(memory_format=layout) for view in (base, donor))
    mixed: Tensor = _dispatch.module(NAME, backend).mix_views(*views, boxes.contiguous(), share.contiguous())
    return mixed


def _mix_fake(base: Tensor, donor: Tensor, boxes: Tensor, share: Tensor, backend: str) -> Tensor:
    return torch.empty_like(base, memory_format=memory_format(base))


# -> [V, B, 3, S, T]
augment = define(
    f"{NAME}(Tensor images, Tensor parameters, Tensor? index, SymInt height, SymInt width, float[] mean, float[] std, "
    "str interpolation, bool colour_first, bool grey_first, SymInt blur_reach, ScalarType dtype, bool channels_last, "
    "str backend) -> Tensor",
    _augment,
    _augment_fake,
)
# -> [V, B, 16]; the second number of the state grows by one.
draw = define(
    "draw_views(Tensor(a!) state, SymInt batch, SymInt height, SymInt width, float[] numbers, str backend) -> Tensor",
    _draw,
    _draw_fake,
)
mix = define("mix_views(Tensor base, Tensor donor, Tensor boxes, Tensor share, str backend) -> Tensor", _mix, _mix_fake)
refuse_vmap(f"{NAME}: vmap is not supported. Give all images in one call.", augment, draw, mix)


def _count_version(keyset: Any, state: Tensor, *rest: Any) -> Tensor:
    """Count a new version of `state`, as torch's in-place operations do, and draw."""
    torch.autograd.graph.increment_version([state])
    with torch._C._AutoDispatchBelowADInplaceOrView():
        drawn: Tensor = draw.redispatch(keyset & torch._C._after_ADInplaceOrView_keyset, state, *rest)
        return drawn


LIBRARY.impl("draw_views", _count_version, "ADInplaceOrView", with_keyset=True)
