"""Two views of every image by one call of augment_views, with their draws, against batched PyTorch and torchvision;
and mixtures of two views by mix_views, against torch.where with a mask.

"batched PyTorch" is the reference backend. torchvision's transforms draw one set of parameters per call, so a batch
needs a call per image: on tensors (v2) and on PIL images (v1, the loader of most published code). The floor copies as
many bytes as are read and written.
"""

import os
from collections.abc import Callable, Mapping
from typing import Any

import pytest
import torch
from torch import Tensor

import mixfast
from benchmarks.interleave import BUSY
from mixfast.augment import PRESETS, augment
from mixfast.data import SceneConfig, scenes
from mixfast.mix import boxes_around, paste, sample_centres

MEAN, STD = (0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010)
CASES = [(32, 256, "demo"), (32, 256, "ref"), (32, 256, "vicreg"), (64, 64, "demo"), (224, 8, "demo"), (224, 8, "v2")]
Measure = Callable[[str, Mapping[str, Callable[[], object]]], None]


def by_mixfast(recipe: str, images: Tensor, backend: str, threads: int = 1) -> Callable[[], list[Tensor]]:
    state = torch.tensor([0, 0])

    def run() -> list[Tensor]:
        before = torch.get_num_threads()
        torch.set_num_threads(threads)
        os.environ["MIXFAST_BACKEND"] = backend
        try:
            return augment(images, PRESETS[recipe], state, MEAN, STD)
        finally:
            torch.set_num_threads(before)
            del os.environ["MIXFAST_BACKEND"]

    return run


def floor(images: Tensor) -> Callable[[], object]:
    """A copy reads and writes: half of one read of the bytes and one write of two float32 views."""
    source = torch.zeros((images.nbytes + 2 * 4 * images.numel()) // 2, dtype=torch.uint8)
    return lambda: source.clone()


def torchvision(images: Tensor) -> dict[str, Callable[[], list[Tensor]]]:
    v2 = pytest.importorskip("torchvision.transforms.v2", reason="torchvision is the baseline")
    from torchvision import transforms as v1

    side = images.shape[-1]
    pixels = [v2.ToDtype(torch.float32, scale=True), v2.Normalize(MEAN, STD)]
    pictures = [v1.functional.to_pil_image(image) for image in images]
    views: dict[str, tuple[Any, list[Any]]] = {
        "torchvision v2 on tensors": (v2.Compose([*demo(v2, side, antialias=False), *pixels]), list(images)),
        "torchvision v1 on PIL images": (
            v1.Compose([*demo(v1, side, antialias=True), v1.ToTensor(), v1.Normalize(MEAN, STD)]),
            pictures,
        ),
    }

    def two_views(view: Any, sources: list[Any]) -> Callable[[], list[Tensor]]:
        return lambda: [torch.stack([view(source) for source in sources]) for _ in range(2)]

    return {name: two_views(*arguments) for name, arguments in views.items()}


@pytest.mark.parametrize(("side", "count", "recipe"), CASES, ids=[f"{side}-{recipe}" for side, _, recipe in CASES])
def test_views(measure: Measure, smoke: bool, side: int, count: int, recipe: str) -> None:
    images = scenes.generate(4 if smoke else count, side, 0, "train", SceneConfig()).images
    assert isinstance(images, Tensor)
    runs: dict[str, Callable[[], object]] = {
        "mixfast, 1 thread": by_mixfast(recipe, images, "cpu"),
        "batched PyTorch, 1 thread": by_mixfast(recipe, images, "reference"),
        "floor: a copy": floor(images),
    }
    if not BUSY:  # else processor seconds are counted, of which two threads take more
        runs["mixfast, 2 threads"] = by_mixfast(recipe, images, "cpu", threads=2)
    if recipe == "demo":
        runs |= torchvision(images)
    measure(f"augment_views, {recipe}: two views of [{len(images)}, 3, {side}, {side}], float32", runs)


@pytest.mark.parametrize(("side", "count"), [(32, 64), (32, 256), (224, 32)])
def test_mixtures(measure: Measure, smoke: bool, side: int, count: int) -> None:
    generator, count = torch.Generator().manual_seed(0), 4 if smoke else count
    base, donor = (
        torch.randn(count, 3, side, side, generator=generator).contiguous(memory_format=torch.channels_last)
        for _ in range(2)
    )
    boxes, _ = boxes_around(sample_centres(count, (side, side), generator), torch.full((count,), 0.5), (side, side))
    ones, half = torch.ones(count), torch.full((count,), 0.5)
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        measure(
            f"mix_views: [{count}, 3, {side}, {side}], float32, channels last, 1 thread",
            {
                "mixfast, CutMix": lambda: mixfast.mix_views(base, donor, boxes, ones),
                "mixfast, mixup": lambda: mixfast.mix_views(base, donor, boxes * 0, half),
                "torch.where": lambda: paste(base, donor, boxes),
                "torch.lerp": lambda: torch.lerp(donor, base, 0.5),
                "floor: a copy": base.clone,
            },
        )
    finally:
        torch.set_num_threads(before)


def demo(transforms: Any, side: int, antialias: bool) -> list[Any]:
    """Preset "demo" as torchvision writes it."""
    return [
        transforms.RandomResizedCrop(side, antialias=antialias),
        transforms.RandomHorizontalFlip(),
        transforms.RandomApply([transforms.ColorJitter(0.4, 0.4, 0.4, 0.1)], p=0.8),
        transforms.RandomGrayscale(0.2),
    ]
