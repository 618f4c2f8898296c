"""Two random views of 32 px images, the recipe of MoCo's CIFAR-10 demo, against torchvision one image at a time.

torchvision's transforms draw one set of parameters per call, so a batch needs a call per image: on tensors (v2) and on
PIL images (v1, the loader of most published code). Times are for IMAGES images, two views each.
"""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from mixfast.augment import PRESETS, augment
from mixfast.data import SceneConfig, scenes

MEAN, STD = (0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010)
IMAGES = 256
Measure = Callable[[str, dict[str, Callable[[], list[Tensor]]]], None]


def images(smoke: bool) -> Tensor:
    return scenes.generate(8 if smoke else IMAGES, 32, 0, "train", SceneConfig()).images


def ours(recipe: str, given: Tensor, threads: int) -> Callable[[], list[Tensor]]:
    generator = torch.Generator().manual_seed(0)

    def run() -> list[Tensor]:
        before = torch.get_num_threads()
        torch.set_num_threads(threads)
        try:
            return [augment(given, PRESETS[recipe], generator, MEAN, STD) for _ in range(2)]
        finally:
            torch.set_num_threads(before)

    return run


def torchvision(given: Tensor) -> dict[str, Callable[[], list[Tensor]]]:
    v2 = pytest.importorskip("torchvision.transforms.v2", reason="torchvision is the baseline")
    from torchvision import transforms as v1

    pixels = [v2.ToDtype(torch.float32, scale=True), v2.Normalize(MEAN, STD)]
    pictures = [v1.functional.to_pil_image(image) for image in given]
    views: dict[str, tuple[Any, list[Any]]] = {
        "torchvision v2 on tensors": (v2.Compose([*demo(v2, antialias=False), *pixels]), list(given)),
        "torchvision v1 on PIL images": (
            v1.Compose([*demo(v1, antialias=True), v1.ToTensor(), v1.Normalize(MEAN, STD)]),
            pictures,
        ),
    }

    def two_views(view: Any, sources: list[Any]) -> Callable[[], list[Tensor]]:
        return lambda: [torch.stack([view(source) for source in sources]) for _ in range(2)]

    return {name: two_views(*each) for name, each in views.items()}


@pytest.mark.parametrize("recipe", ["demo", "ref", "vicreg"])
def test_views(measure: Measure, smoke: bool, recipe: str) -> None:
    given = images(smoke)
    runs = {f"mixfast, {threads} threads": ours(recipe, given, threads) for threads in (1, 2)}
    if recipe == "demo":
        runs |= torchvision(given)
    measure(f"augment, {recipe}, two views of {len(given)} images", runs)


def demo(transforms: Any, antialias: bool) -> list[Any]:
    """Preset "demo" as torchvision writes it."""
    return [
        transforms.RandomResizedCrop(32, antialias=antialias),
        transforms.RandomHorizontalFlip(),
        transforms.RandomApply([transforms.ColorJitter(0.4, 0.4, 0.4, 0.1)], p=0.8),
        transforms.RandomGrayscale(0.2),
    ]
