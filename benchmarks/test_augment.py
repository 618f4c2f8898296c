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
Measure = Callable[[str, str, Callable[[], object]], None]


def images(smoke: bool) -> Tensor:
    return scenes.generate(8 if smoke else IMAGES, 32, 0, "train", SceneConfig()).images


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("recipe", ["demo", "ref", "vicreg"])
def test_mixfast(measure: Measure, smoke: bool, recipe: str, threads: int) -> None:
    given, generator = images(smoke), torch.Generator().manual_seed(0)

    def run() -> list[Tensor]:
        return [augment(given, PRESETS[recipe], generator, MEAN, STD) for _ in range(2)]

    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        measure(f"augment, {recipe}, two views of {len(given)} images", f"mixfast, {threads} threads", run)
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("kind", ["torchvision v2 on tensors", "torchvision v1 on PIL images"])
def test_torchvision(measure: Measure, smoke: bool, kind: str) -> None:
    v2 = pytest.importorskip("torchvision.transforms.v2", reason="torchvision is the baseline")
    from torchvision import transforms as v1

    given = images(smoke)
    if kind.startswith("torchvision v2"):
        view = v2.Compose(
            [*recipe(v2, antialias=False), v2.ToDtype(torch.float32, scale=True), v2.Normalize(MEAN, STD)]
        )
        sources: list[Any] = list(given)
    else:
        view = v1.Compose([*recipe(v1, antialias=True), v1.ToTensor(), v1.Normalize(MEAN, STD)])
        sources = [v1.functional.to_pil_image(image) for image in given]

    def run() -> list[Tensor]:
        return [torch.stack([view(source) for source in sources]) for _ in range(2)]

    measure(f"augment, demo, two views of {len(given)} images", kind, run)


def recipe(transforms: Any, antialias: bool) -> list[Any]:
    """Preset "demo" as torchvision writes it."""
    return [
        transforms.RandomResizedCrop(32, antialias=antialias),
        transforms.RandomHorizontalFlip(),
        transforms.RandomApply([transforms.ColorJitter(0.4, 0.4, 0.4, 0.1)], p=0.8),
        transforms.RandomGrayscale(0.2),
    ]
