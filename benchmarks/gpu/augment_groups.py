"""augment_views, draw_views and mix_views on a GPU: two views of a batch, by recipe, size and format; mixtures."""

import math
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor

import mixfast
from benchmarks.gpu.floors import Work
from benchmarks.gpu.group import Group, Peer, usable_backends
from benchmarks.gpu.timing import Call
from mixfast.augment import PRESETS

MEAN, STD = (0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010)
VIEWS, COLUMNS = 2, 16
SMALL, LARGE = (512, 32), (256, 224)  # images and their side, of a batch
GOAL = 0.6 * 4.2e12  # bytes/s: three fifths of what an H200 copies


class Inputs(NamedTuple):
    images: Tensor
    parameters: Tensor
    state: Tensor


def inputs(count: int, side: int, recipe: str, generator: torch.Generator) -> Inputs:
    device = generator.device
    images = torch.randint(0, 256, (count, 3, side, side), generator=generator, dtype=torch.uint8, device=device)
    state = torch.randint(2**62, (2,), generator=generator, device=device)
    parameters = mixfast.draw_views(state, count, (side, side), [PRESETS[recipe]] * VIEWS, backend="reference")
    return Inputs(images, parameters, state)


def views(data: Inputs, recipe: str, backend: str, **format: Any) -> Call:
    cfg = PRESETS[recipe]
    orders = {"colour_first": cfg.colour_first, "grey_first": cfg.grey_first, "interpolation": cfg.interpolation}
    reach = math.ceil(3 * cfg.blur_sigma[1]) if cfg.blur else 0
    options = {**orders, **format, "blur_reach": reach, "mean": MEAN, "std": STD}
    return lambda: mixfast.augment_views(data.images, data.parameters, backend=backend, **options)


def group(count: int, side: int, recipe: str, dtype: torch.dtype, channels_last: bool, goal: bool = False) -> Group:
    name = f"{str(dtype).removeprefix('torch.')}{', channels last' if channels_last else ''}"
    layout = torch.channels_last if channels_last else torch.contiguous_format
    format = {"dtype": dtype, "memory_format": layout}
    backends = {f"mixfast {backend}": backend for backend in usable_backends("augment_views")} | {
        "batched PyTorch": "reference"
    }
    pixels = count * 3 * side**2
    work = Work(pixels + VIEWS * pixels * dtype.itemsize + VIEWS * count * COLUMNS * 4)
    return Group(
        task=f"augment_views, two views: {count} x {side} px, {recipe}, {name}",
        draw=lambda generator: inputs(count, side, recipe, generator),
        peers={backend: Peer(lambda data, b=b: views(data, recipe, b, **format)) for backend, b in backends.items()},
        work=work,
        truth=lambda data: views(data, recipe, "reference")(),
        goals_us={backend: work.bytes / GOAL * 1e6 for backend in backends if backend.startswith("mixfast") and goal},
        facts={"images": count, "side": side, "recipe": recipe, "dtype": str(dtype).removeprefix("torch.")},
    )


def draws(count: int) -> Group:
    """The parameters alone; of each set of inputs the next draw, so that no two calls return the same."""

    def drawn(data: Inputs, backend: str) -> Call:
        return lambda: mixfast.draw_views(
            data.state, count, (SMALL[1], SMALL[1]), [PRESETS["demo"]] * VIEWS, backend=backend
        )

    backends = {f"mixfast {backend}": backend for backend in usable_backends("augment_views")} | {
        "batched PyTorch": "reference"
    }
    return Group(
        task=f"draw_views, two views: {count} images, demo",
        draw=lambda generator: inputs(count, SMALL[1], "demo", generator),
        peers={backend: Peer(lambda data, b=b: drawn(data, b), comparable=False) for backend, b in backends.items()},
        work=Work(VIEWS * count * COLUMNS * 4),
        truth=lambda data: data.parameters,
        facts={"images": count, "dtype": "float32"},
    )


class Pair(NamedTuple):
    base: Tensor
    donor: Tensor
    boxes: Tensor
    share: Tensor


def mixtures(count: int, side: int, layout: torch.memory_format) -> Group:
    """CutMix of finished views: of two that are there one is read wherever it shows, and one is written."""

    def pair(generator: torch.Generator) -> Pair:
        device, shape = generator.device, (count, 3, side, side)
        views = (torch.randn(shape, generator=generator, device=device) for _ in range(2))
        box = torch.tensor([side // 4, 0, side, side * 3 // 4], device=device)
        return Pair(
            *(view.contiguous(memory_format=layout) for view in views),
            box.repeat(count, 1),
            box.new_ones(count).float(),
        )

    backends = {f"mixfast {backend}": backend for backend in usable_backends("augment_views")} | {
        "batched PyTorch": "reference"
    }
    last = ", channels last" if layout == torch.channels_last else ""
    work = Work(2 * count * 3 * side**2 * 4)
    return Group(
        task=f"mix_views, CutMix: {count} x {side} px, float32{last}",
        draw=pair,
        peers={
            backend: Peer(lambda data, b=b: lambda: mixfast.mix_views(*data, backend=b))
            for backend, b in backends.items()
        },
        work=work,
        truth=lambda data: mixfast.mix_views(*data, backend="reference"),
        goals_us={backend: work.bytes / GOAL * 1e6 for backend in backends if backend.startswith("mixfast")},
        facts={"images": count, "side": side, "dtype": "float32"},
    )


def step(smoke: bool) -> Iterator[Group]:
    """What training makes of its batches: the plain recipe in both formats, then what each other recipe adds."""
    small, large = ((4, 8), (2, 70)) if smoke else (SMALL, LARGE)
    for shape in (small, large):
        for dtype, last in ((torch.float32, False), (torch.bfloat16, True)):
            yield group(*shape, "demo", dtype, last, goal=True).among(graph=True, cold=True)
        for recipe in ("ref", "v2", "wmse"):
            yield group(*shape, recipe, torch.bfloat16, True, goal=recipe == "ref").among(graph=True, cold=True)
        for layout in (torch.contiguous_format, torch.channels_last):
            yield mixtures(*shape, layout).among(graph=True, cold=True)
    yield draws(small[0]).among(graph=True, cold=False)


def eager(smoke: bool) -> Iterator[Group]:
    """What a training step calls without a graph; first so little that the host's part shows."""
    for count, side in ((1, 1), *(((4, 8),) if smoke else (SMALL, LARGE))):
        yield group(count, side, "demo", torch.bfloat16, True).among(graph=False, cold=False)
    yield draws(4 if smoke else SMALL[0]).among(graph=False, cold=False)
