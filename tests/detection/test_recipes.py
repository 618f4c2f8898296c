"""Recipes of the literature: rates, detectron2's losses and pooling, and photographs in their own size and order."""

import itertools
from collections import Counter
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from mixfast.detection.originals import Original, OriginalFiles, Pick, originals, picks
from mixfast.detection.recipes import FIGURES, RECIPES, dry, parameter_groups
from mixfast.errors import ConfigError, DataError
from mixfast.models import Backbone, ModelConfig, build_encoder
from mixfast.models.adapters import make
from mixfast.rng import Generators
from mixfast.scoring.annotations import Marked, Photograph, coco_photographs
from tests.detection.annotated import coco

pytest.importorskip("torchvision")

from mixfast.detection.rcnn import (
    AlignedPool,
    Predictor,
    ProposalHead,
    ProposalNetwork,
    build_rcnn,
    pyramid_stages,
    region_losses,
)

VOC, COCO = RECIPES["voc-c4-24k"], RECIPES["coco-fpn-1x"]


def resnet(depth: int, stem: str) -> Backbone:
    config = ModelConfig(depth=depth, width=8, stem=stem, bn_splits=1)  # type: ignore[arg-type]
    return build_encoder(config, torch.Generator().manual_seed(0)).backbone


@pytest.mark.parametrize(
    ("name", "step", "rate"),
    [
        ("voc-c4-24k", 0, 0.00002),
        ("voc-c4-24k", 50, 0.01001),
        ("voc-c4-24k", 100, 0.02),
        ("voc-c4-24k", 17_999, 0.02),
        ("voc-c4-24k", 18_000, 0.002),
        ("voc-c4-24k", 23_999, 0.0002),
        ("coco-fpn-1x", 500, 0.01001),
        ("coco-fpn-1x", 60_000, 0.002),
        ("coco-fpn-1x", 89_999, 0.0002),
        ("coco-fpn-2x", 119_999, 0.02),
        ("coco-fpn-2x", 179_999, 0.0002),
    ],
)
def test_the_rate_of_a_step(name: str, step: int, rate: float) -> None:
    assert RECIPES[name].rate(step) == pytest.approx(rate)


def test_a_dry_run_keeps_what_makes_the_recipe() -> None:
    assert FIGURES.keys() == RECIPES.keys()
    for recipe in RECIPES.values():
        small = dry(recipe)
        kept = ("name", "data", "detector", "lr", "momentum", "weight_decay", "norm_decay", "flip")
        assert all(getattr(small, name) == getattr(recipe, name) for name in kept) and small.steps < 10


@pytest.mark.parametrize(("recipe", "depth"), [(VOC, 8), (VOC, 18), (COCO, 18)])
def test_every_weight_is_trained_and_norms_do_not_decay(recipe: object, depth: int) -> None:
    model = build_rcnn(dry(recipe), resnet(depth, "imagenet"), 2, (0.5,) * 3, (0.2,) * 3)  # type: ignore[arg-type]
    others, norms = parameter_groups(model, VOC)
    assert (others["weight_decay"], norms["weight_decay"]) == (1e-4, 0.0)
    of_norms = {id(weight) for weight in norms["params"]}  # type: ignore[attr-defined]
    named = {name: id(weight) in of_norms for name, weight in model.named_parameters()}
    assert len(named) == len(of_norms) + len(others["params"])  # type: ignore[arg-type]
    assert all(weight.requires_grad for weight in model.parameters())
    for name, is_norm in named.items():
        owner = model.get_submodule(name.rpartition(".")[0])
        assert is_norm == isinstance(owner, nn.BatchNorm2d), name


def test_the_structure_is_detectron2s() -> None:
    """Sides of anchors, cells of a region, and the extra norm, as its configuration for a ResNet-50 has them."""
    c4 = build_rcnn(VOC, resnet(18, "imagenet"), 20, (0.5,) * 3, (0.2,) * 3)
    assert c4.rpn.anchor_generator.sizes == ((32, 64, 128, 256, 512),)
    assert (c4.roi_heads.box_roi_pool.strides, c4.roi_heads.box_roi_pool.side) == ([16], 14)
    assert isinstance(c4.roi_heads.box_head.norm, nn.BatchNorm2d) and c4.backbone.out_channels == 32
    assert c4.roi_heads.box_predictor.bbox_pred.out_features == 4 * 21
    fpn = build_rcnn(dry(COCO), resnet(18, "imagenet"), 80, (0.5,) * 3, (0.2,) * 3)
    assert fpn.rpn.anchor_generator.sizes == ((32,), (64,), (128,), (256,), (512,))
    assert (fpn.roi_heads.box_roi_pool.strides, fpn.roi_heads.box_roi_pool.side) == ([4, 8, 16, 32], 7)
    neck = fpn.backbone.neck
    assert sum(isinstance(module, nn.BatchNorm2d) for module in neck.modules()) == 8


def test_a_pyramid_takes_the_stages_that_there_are() -> None:
    assert pyramid_stages(resnet(18, "imagenet")) == [1, 2, 3, 4]
    assert pyramid_stages(resnet(8, "cifar_s2")) == [2, 3]
    fine = resnet(8, "cifar")
    fine.strides = [1, 2, 2]
    with pytest.raises(
        ConfigError, match="a pyramid begins at 4 pixels per cell, and the network's stages have 1, 2, 2"
    ):
        pyramid_stages(fine)


def test_what_has_no_last_stage_is_refused_by_name() -> None:
    class OneStage(Backbone):
        channels, strides = [8], [4]

    class Whole(Backbone):
        channels, strides = [8, 16], [4, 8]

    for backbone, message in ((OneStage(), "there is only one"), (Whole(), "Whole does not give it as a module")):
        with pytest.raises(ConfigError, match=f"--recipe voc-c4-24k runs the last stage .*{message}"):
            build_rcnn(VOC, backbone, 2, (0.5,) * 3, (0.2,) * 3)


@pytest.mark.parametrize("name", ["resnet", "torchvision:resnet18"])
def test_a_map_leaves_later_stages_alone(name: str) -> None:
    """The last stage of a C4 detector sees regions: statistics of whole images would spoil its norms."""
    backbone = (resnet(18, "imagenet") if name == "resnet" else make(name)).train()
    (features,) = backbone.maps(torch.randn(2, 3, 64, 64), [3])
    passed = {key for key, value in backbone.state_dict().items() if key.endswith("num_batches_tracked") and value > 0}
    assert features.shape[2:] == (4, 4) and any("layer3" in key for key in passed)
    assert not [key for key in passed if "layer4" in key]


def test_regions_are_pooled_where_they_are() -> None:
    """On a map of its own coordinates each cell of a region gives the coordinate of its centre."""
    stride, side = 8, 7
    ramp = (torch.arange(32.0) + 0.5) * stride
    maps = {"0": torch.stack([ramp.expand(32, 32), ramp[:, None].expand(32, 32)])[None].repeat(2, 1, 1, 1)}
    boxes = [torch.tensor([[40.0, 60.0, 96.5, 200.0]]), torch.tensor([[33.0, 41.0, 35.0, 150.0]])]
    pooled = AlignedPool([stride], side)(maps, boxes, None)
    for image, box in enumerate(torch.cat(boxes).tolist()):
        shares = (torch.arange(float(side)) + 0.5) / side
        x, y = box[0] + shares * (box[2] - box[0]), box[1] + shares * (box[3] - box[1])
        torch.testing.assert_close(pooled[image, 0], x.expand(side, side), atol=1e-3, rtol=0)
        torch.testing.assert_close(pooled[image, 1], y[:, None].expand(side, side), atol=1e-3, rtol=0)


@pytest.mark.parametrize(
    ("width", "height", "stride"),
    [
        (20, 20, 4),
        (111, 111, 4),
        (113, 113, 8),
        (56, 224, 8),
        (225, 225, 16),
        (225, 100, 8),
        (449, 449, 32),
        (2000, 900, 32),
    ],
)
def test_the_map_that_fits_a_region(width: int, height: int, stride: int) -> None:
    """Lin et al. 2017: stride 16 from 224 pixels on, half the stride for half the side."""
    strides = [4, 8, 16, 32]
    maps = {str(s): torch.full((1, 1, 2048 // s, 2048 // s), float(s)) for s in strides} | {
        "pool": torch.zeros(1, 1, 2, 2)
    }
    pooled = AlignedPool(strides, 1)(maps, [torch.tensor([[10.0, 10.0, 10 + width, 10 + height]])], None)
    assert pooled.item() == stride


def test_losses_of_proposals_are_detectron2s() -> None:
    network = ProposalNetwork(None, None, 0.7, 0.3, 8, 0.5, {}, {}, 0.7)
    network.fg_bg_sampler.seeds = [1, 2]
    labels = [torch.tensor([1.0, -1, 0, -1]), torch.tensor([-1.0, 0, 1, -1])]
    rng = torch.Generator().manual_seed(0)
    logits, deltas = torch.randn(8, 1, generator=rng), torch.randn(8, 4, generator=rng)
    targets = [torch.randn(4, 4, generator=rng) for _ in range(2)]
    named, placed = network.compute_loss(logits, deltas, labels, targets)
    cross, distance = 0.0, 0.0
    for index, label in enumerate(torch.cat(labels).tolist()):
        if label >= 0:
            share = 1 / (1 + torch.exp(-logits[index, 0].double()).item())
            cross -= torch.tensor(share if label else 1 - share, dtype=torch.float64).log().item()
        if label == 1:
            distance += (deltas[index] - torch.cat(targets)[index]).double().abs().sum().item()
    assert named.item() == pytest.approx(cross / 16) and placed.item() == pytest.approx(distance / 16)


def test_losses_of_regions_are_detectron2s() -> None:
    rng = torch.Generator().manual_seed(0)
    logits, deltas, boxes = (torch.randn(5, n, generator=rng).double() for n in (4, 16, 4))
    labels = torch.tensor([0, 2, 0, 3, 1])
    named, placed = region_losses(logits, deltas, labels, boxes)
    cross = distance = 0.0
    for row, label in enumerate(labels.tolist()):
        cross -= (logits[row, label].exp() / logits[row].exp().sum()).log().item() / 5
        for k in range(4 * (label > 0)):
            distance += abs(deltas[row, 4 * label + k] - boxes[row, k]).item() / 5
    assert named.item() == pytest.approx(cross) and placed.item() == pytest.approx(distance)


def test_boxes_are_float32_also_in_half_precision() -> None:
    """In bfloat16 the places from 512 to 1024 pixels are four pixels apart."""
    with torch.autocast("cpu", torch.bfloat16):
        found = [*ProposalHead(8, 3)([torch.randn(1, 8, 4, 4)]), Predictor(8, 3)(torch.randn(2, 8))]
    tensors = [part for parts in found for part in parts]
    assert {part.dtype for part in tensors} == {torch.float32} and len(tensors) == 4


def photographs(root: Path, count: int, masks: bool = False) -> list[Original]:
    images, file = coco(root, count)
    return originals(coco_photographs(file, images, masks=masks), Counter())


def centre(image: Tensor, box: list[float]) -> list[int]:
    x, y = int((box[0] + box[2]) / 2), int((box[1] + box[3]) / 2)
    return image[:, y, x].tolist()


@pytest.mark.parametrize("mirrored", [False, True])
def test_boxes_follow_a_mirror_image(mirrored: bool, tmp_path: Path) -> None:
    files = OriginalFiles(photographs(tmp_path, 4), ["red", "blue"])
    colours = {1: [220, 20, 20], 2: [20, 20, 220]}
    for number, labels in ((0, [1, 2]), (1, [1, 2]), (3, [1])):  # of the last picture, the other one is a crowd
        shot = files[Pick(number, mirrored)]
        assert shot.image.shape == (3, 40, 60) and shot.target["labels"].tolist() == labels
        for box, label in zip(shot.target["boxes"].tolist(), labels, strict=True):
            assert centre(shot.image, box) == colours[label] and box[2] - box[0] == box[3] - box[1] == 12


def test_unusable_boxes_are_counted_and_missing_files_named(tmp_path: Path) -> None:
    whole = photographs(tmp_path, 1)[0]
    bad = [Marked(box, "red") for box in ((50.0, 30.0, 70.0, 50.0), (5.0, 5.0, 5.0, 9.0), (61.0, 5.0, 70.0, 9.0))]
    left_out: Counter[str] = Counter()
    (photograph,) = originals([Photograph(whole.path, bad)], left_out)
    assert (photograph.width, photograph.height) == (60, 40)
    assert [(marked.box, marked.area) for marked in photograph.objects] == [((50.0, 30.0, 60.0, 40.0), 100.0)]
    assert sorted(left_out.values()) == [1, 1, 1]
    with pytest.raises(DataError, match=r"nowhere.png cannot be read as an image"):
        originals([Photograph(tmp_path / "nowhere.png", [])], left_out)
    whole.path.write_bytes(whole.path.read_bytes()[:60])
    assert "cannot be read as an image" in OriginalFiles([whole], ["red", "blue"])[Pick(0)].error


def shapes(wide: int, high: int) -> list[Original]:
    sizes = [(60, 40)] * wide + [(40, 60)] * high
    return [Original(Path(f"{n}"), *size, []) for n, size in enumerate(sizes)]


def test_batches_hold_one_orientation_and_follow_from_the_seed() -> None:
    def stream(seed: int) -> list[list[Pick]]:
        return list(itertools.islice(picks(shapes(9, 3), 4, 0.5, (64, 80), Generators(seed), "test"), 30))

    batches = stream(0)
    assert all(len({pick.number < 9 for pick in batch}) == 1 for batch in batches)
    every = [pick for batch in batches for pick in batch]
    seen = Counter(pick.number for pick in every)
    assert len(seen) == 12 and max(seen.values()) - min(seen.values()) <= 2  # 10 each, but for what still waits
    assert 30 < sum(pick.mirrored for pick in every) < 90 and 30 < sum(pick.side == 64 for pick in every) < 90
    assert {pick.side for pick in every} == {64, 80} and len({pick.seed for pick in every}) == 120
    assert stream(0) == batches != stream(1)


def test_a_single_photograph_fills_a_batch() -> None:
    batch = next(picks(shapes(1, 0), 4, 0.0, (64,), Generators(0), "test"))
    assert [pick[:3] for pick in batch] == [(0, False, 64)] * 4


def test_samples_follow_from_the_seed_of_the_image() -> None:
    sampler = ProposalNetwork(None, None, 0.7, 0.3, 8, 0.25, {}, {}, 0.7).fg_bg_sampler
    rich = torch.tensor([1.0, 0, -1, 2] * 10)
    poor = torch.tensor([0.0, 0, 1, -1])
    sampler.seeds = [5, 6, 7]
    right, wrong = sampler([rich, rich, poor])
    for labels, right_ones, wrong_ones, counts in zip(
        (rich, rich, poor), right, wrong, ((2, 6), (2, 6), (1, 2)), strict=True
    ):
        assert (int(right_ones.sum()), int(wrong_ones.sum())) == counts
        assert (labels[right_ones] >= 1).all() and (labels[wrong_ones] == 0).all()
    assert not torch.equal(wrong[0], wrong[1])
    sampler.seeds = [6]
    (alone,), (others,) = sampler([rich])
    assert torch.equal(alone, right[1]) and torch.equal(others, wrong[1])
