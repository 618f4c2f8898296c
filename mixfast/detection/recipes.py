"""Recipes of the literature for training detectors on a pre-trained network, and their published figures.

Options that a recipe does not set have detectron2's defaults. Rates, steps and sizes are those of a single process with
the whole batch, which computes what eight devices with two images each and synchronised batch norm do.
"""

from dataclasses import dataclass, replace
from typing import Literal, NamedTuple

import torch

DATA_FORMS = {
    "voc": "--data voc VOC2007 [VOC2012 ...]",
    "coco": "--data coco IMAGES INSTANCES.json TEST_IMAGES TEST_INSTANCES.json",
}


class Figure(NamedTuple):
    """A published result."""

    network: str  # what the detector began with
    scores: dict[str, float]  # percent, by metric
    source: str


@dataclass(frozen=True)
class PublishedRecipe:
    """The training of Faster or Mask R-CNN. All weights are trained, including first layers and batch norms."""

    name: str
    data: Literal["voc", "coco"]
    detector: Literal["c4", "fpn"]
    steps: int
    drops: tuple[int, ...]  # steps after which the rate is a tenth
    warm_up: int  # steps in which the rate rises from `warm_up_factor` of itself
    sides: tuple[int, ...]  # pixels of the shortest side; one is drawn for every image, the last is that of the test
    # Proposals of an image before (of each map of a pyramid) and after non-maximum suppression.
    proposals: tuple[int, int]  # in training
    test_proposals: tuple[int, int]
    images: tuple[int, int]  # photographs with objects that are trained on, and photographs that are scored
    batch_size: int = 16
    lr: float = 0.02
    warm_up_factor: float = 1e-3
    momentum: float = 0.9
    weight_decay: float = 1e-4
    norm_decay: float = 0.0  # weight decay of batch norms
    longest: int = 1333  # pixels of the longest side, at most: larger images get a smaller shortest side
    flip: float = 0.5  # probability
    precise_batches: int = 200  # training batches whose mean statistics the batch norms get before the test
    anchors: int = 256  # of an image, on which the proposals are trained
    regions: int = 512  # of an image, on which the head is trained
    masks: bool = False  # whether masks are trained and scored too
    channels: int = 256  # of a pyramid, and of the convolutions for masks
    hidden: int = 1024  # outputs of each linear layer of a pyramid's head

    def rate(self, step: int) -> float:
        """The learning rate of a step, counted from 0."""
        share = min(1.0, step / self.warm_up)
        rising = self.warm_up_factor * (1 - share) + share
        return self.lr * rising * 0.1 ** sum(step >= drop for drop in self.drops)


@dataclass(frozen=True)
class VocC424k(PublishedRecipe):
    """Faster R-CNN C4 on VOC07+12: 24,000 steps, scored on VOC07 test by the 11-point AP at ten thresholds.

    Source: MoCo's detection/configs/pascal_voc_R_50_C4_24k_moco.yaml, Base-RCNN-C4-BN.yaml and train_net.py
    (github.com/facebookresearch/moco), which DenseCL, PixPro, solo-learn and mmselfsup repeat; detectron2's defaults.
    """

    name: str = "voc-c4-24k"
    data: Literal["voc", "coco"] = "voc"
    detector: Literal["c4", "fpn"] = "c4"
    steps: int = 24_000
    drops: tuple[int, ...] = (18_000, 22_000)
    warm_up: int = 100
    sides: tuple[int, ...] = tuple(range(480, 801, 32))
    proposals: tuple[int, int] = (12_000, 2000)
    test_proposals: tuple[int, int] = (6000, 1000)
    images: tuple[int, int] = (16_551, 4952)


@dataclass(frozen=True)
class CocoFpn1x(PublishedRecipe):
    """Mask R-CNN FPN on COCO train2017: 90,000 steps, scored on val2017 by COCO's 101-point AP of boxes and of masks.

    Batch norm in the backbone and in the pyramid alone, and a head of two linear layers: of the two variants in
    circulation MoCo's own. The other has batch norm in every head, and four convolutions before a linear layer. Source:
    its authors in github.com/facebookresearch/moco/issues/34, and detectron2's configs/Base-RCNN-FPN.yaml,
    COCO-InstanceSegmentation/mask_rcnn_R_50_FPN_1x.yaml and defaults.
    """

    name: str = "coco-fpn-1x"
    data: Literal["voc", "coco"] = "coco"
    detector: Literal["c4", "fpn"] = "fpn"
    steps: int = 90_000
    drops: tuple[int, ...] = (60_000, 80_000)
    warm_up: int = 1000
    sides: tuple[int, ...] = tuple(range(640, 801, 32))
    proposals: tuple[int, int] = (2000, 1000)
    test_proposals: tuple[int, int] = (1000, 1000)
    images: tuple[int, int] = (117_266, 5000)
    masks: bool = True


@dataclass(frozen=True)
class CocoFpn2x(CocoFpn1x):
    """`CocoFpn1x` with twice the steps.

    Source: as there; detectron2's model zoo for the schedule, MoCo's coco_R_50_C4_2x.yaml for its steps.
    """

    name: str = "coco-fpn-2x"
    steps: int = 180_000
    drops: tuple[int, ...] = (120_000, 160_000)


RECIPES: dict[str, PublishedRecipe] = {recipe.name: recipe for recipe in (VocC424k(), CocoFpn1x(), CocoFpn2x())}


def dry(recipe: PublishedRecipe) -> PublishedRecipe:
    """The recipe with tiny sizes and few steps, to try data, network and machine."""
    return replace(
        recipe,
        steps=4,
        drops=(2, 3),
        warm_up=2,
        sides=(64, 80, 96),
        longest=160,
        batch_size=4,
        proposals=(64, 32),
        test_proposals=(64, 32),
        precise_batches=2,
        anchors=32,
        regions=16,
        channels=32,
        hidden=64,
    )


def parameter_groups(model: torch.nn.Module, recipe: PublishedRecipe) -> list[dict[str, object]]:
    """The parameters of batch norms and all others, as two groups with their weight decays."""
    norms: list[torch.nn.Parameter] = []
    other_weights: list[torch.nn.Parameter] = []
    for module in model.modules():
        group = norms if isinstance(module, torch.nn.modules.batchnorm._BatchNorm) else other_weights
        group += list(module.parameters(recurse=False))
    decays = ((other_weights, recipe.weight_decay), (norms, recipe.norm_decay))
    return [{"params": weights, "weight_decay": decay} for weights, decay in decays if weights]


def _voc(network: str, ap50: float, ap: float, ap75: float, source: str) -> Figure:
    return Figure(network, {"voc07_ap50": ap50, "voc07_ap": ap, "voc07_ap75": ap75}, source)


def _coco(network: str, ap: float, mask_ap: float, source: str, *further: float) -> Figure:
    """`further`: AP50 and AP75 of boxes, then of masks."""
    names = ("ap50", "ap75", "mask_ap50", "mask_ap75")
    return Figure(network, {"ap": ap, "mask_ap": mask_ap, **dict(zip(names, further, strict=False))}, source)


_MOCO, _PIXPRO, _SOCO = "MoCo's detection/README.md", "PixPro's README", "SoCo's README"
_PIXPRO_ALL_NORMS = "PixPro's README; the variant with batch norm in every head"
_INSLOC = "InstanceLoc's docs/MODELZOO.md, which does not say the variant"
_TABLE_5 = "He et al. 2020, table 5"

# ResNet-50 in detectron2; pre-trained on ImageNet-1k unless it is random.
FIGURES: dict[str, tuple[Figure, ...]] = {
    "voc-c4-24k": (
        _voc("random", 60.2, 33.8, 33.1, _PIXPRO),
        _voc("supervised", 81.3, 53.5, 58.8, f"{_MOCO}, mean of 5"),
        _voc("MoCo, 200 epochs", 81.5, 55.9, 62.6, f"{_MOCO}, mean of 5"),
        _voc("MoCo v2, 200 epochs", 82.4, 57.0, 63.6, f"{_MOCO}, mean of 5"),
        _voc("MoCo v2, 800 epochs", 82.5, 57.4, 64.0, f"{_MOCO}, mean of 5"),
        _voc("InfoMin, 200 epochs", 82.7, 57.6, 64.6, _PIXPRO),
        _voc("PixPro, 400 epochs", 83.8, 60.2, 67.7, _PIXPRO),
        Figure("DenseCL, 200 epochs", {"voc07_ap": 58.7}, "DenseCL's README"),
    ),
    "coco-fpn-1x": (
        _coco("random", 31.0, 28.5, _SOCO, 49.5, 33.2, 46.8, 30.4),
        _coco("random", 32.8, 29.9, _PIXPRO_ALL_NORMS),
        _coco("supervised", 38.9, 35.4, _SOCO, 59.6, 42.7, 56.5, 38.1),
        _coco("supervised", 39.7, 35.9, _PIXPRO_ALL_NORMS),
        _coco("MoCo, 200 epochs", 39.4, 35.6, _PIXPRO_ALL_NORMS),
        _coco("MoCo v2, 800 epochs", 40.4, 36.4, _PIXPRO_ALL_NORMS),
        _coco("PixPro with an instance branch, 400 epochs", 41.4, 37.4, _PIXPRO_ALL_NORMS),
    ),
    "coco-fpn-2x": (
        _coco("supervised", 40.6, 36.8, _TABLE_5, 61.3, 44.4, 58.1, 39.5),
        _coco("MoCo, 200 epochs", 40.8, 36.9, _TABLE_5, 61.6, 44.7, 58.4, 39.7),
        _coco("MoCo v2, 200 epochs", 41.7, 37.6, _INSLOC),
        _coco("MoCo v2, 800 epochs", 42.5, 38.2, _INSLOC),
        _coco("InstanceLoc, 400 epochs", 43.3, 38.8, _INSLOC),
    ),
}
