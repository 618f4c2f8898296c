"""Detectors see the backbone's own maps, train what they should, and repeat bit by bit."""

import copy
import math
from collections import OrderedDict

import pytest
import torch
from torch import Tensor, nn

from mixfast.data import SceneConfig
from mixfast.detection.average_precision import Detections
from mixfast.detection.body import Body, check_layers, last_stage, pyramid_layers
from mixfast.detection.canvases import scene_canvases
from mixfast.detection.detectors import DETECTORS, Shape, anchors_of, build
from mixfast.detection.images import LabelledImages
from mixfast.detection.scores import any_class
from mixfast.detection.transfer import Recipe, transfer
from mixfast.errors import ConfigError, NonFiniteError
from mixfast.models import Backbone, ModelConfig, build_encoder
from mixfast.models.adapters import make
from mixfast.scoring.maps import Network

pytest.importorskip("torchvision")

TRAIN, TEST = (scene_canvases(count, 16, 0, split, SceneConfig()) for count, split in ((12, "train"), (6, "test")))
FEW = {"steps": 3, "batch_size": 4}


def network(splits: int = 1, seed: int = 0) -> Network:
    encoder = build_encoder(
        ModelConfig(depth=8, width=8, stem="cifar_s2", bn_splits=splits), torch.Generator().manual_seed(seed)
    )
    return Network(encoder.eval(), lambda images: images.float() / 255 - 0.5)


class OwnBackbone(Backbone):
    """Two stages; `forward` and its activation are no children of the network."""

    def __init__(self) -> None:
        super().__init__()
        self.channels, self.strides = [8, 16], [4, 8]
        self.first, self.second = nn.Conv2d(3, 8, 4, 4), nn.Conv2d(8, 16, 2, 2)

    def maps(self, images: Tensor, layers: object) -> list[Tensor]:
        first = self.first(images).relu()
        maps = [first, self.second(first).relu()]
        return [maps[layer - 1] for layer in layers]  # type: ignore[attr-defined]


def resnet(stem: str) -> Backbone:
    return build_encoder(ModelConfig(depth=8, width=8, stem=stem), torch.Generator()).backbone  # type: ignore[arg-type]


@pytest.mark.parametrize("stem", ["cifar", "cifar_s2", "imagenet"])
def test_a_body_returns_the_backbones_own_maps(stem: str) -> None:
    """Torchvision's IntermediateLayerGetter loses a ReLU that is no child module."""
    backbone, images = resnet(stem).eval(), torch.randn(2, 3, 32, 32)
    expected = backbone.maps(images, [1, 3])
    body = Body(backbone, [1, 3], None, 0, frozen=True)
    assert all(map(torch.equal, body(images).values(), expected))
    stored = [torch.randn(2, 4, 3, 3)]
    body.stored = stored
    assert list(body(images).values()) == stored
    assert all(map(torch.equal, body(images).values(), expected))  # stored maps serve one pass


def test_batch_norms_no_longer_split_a_batch() -> None:
    net = network(splits=4)
    outcome = transfer(net, TRAIN, TEST, Recipe(finetune=True, steps=2, batch_size=6), 0)  # 6 is no multiple of 4
    assert len(outcome.losses) == 2
    assert {module.num_splits for module in net.encoder.modules() if hasattr(module, "num_splits")} == {4}


@pytest.mark.parametrize(("kind", "finetune"), [("fcos", False), ("c4", True)])
def test_a_seed_decides_everything_and_the_network_stays(kind: str, finetune: bool) -> None:
    net = network()
    before = copy.deepcopy(net.encoder.state_dict())
    outcomes = [transfer(net, TRAIN, TEST, Recipe(kind, finetune, **FEW), seed) for seed in (0, 0, 1)]  # type: ignore[arg-type]
    assert all(torch.equal(value, before[name]) for name, value in net.encoder.state_dict().items())
    assert all(len(outcome.losses) == 3 and all(map(math.isfinite, outcome.losses)) for outcome in outcomes)
    assert outcomes[0].losses == outcomes[1].losses != outcomes[2].losses
    assert all(map(torch.equal, outcomes[0].detections, outcomes[1].detections))


@pytest.mark.parametrize("kind", DETECTORS)
@pytest.mark.parametrize("finetune", [False, True])
def test_gradients_reach_the_backbone_only_when_it_is_trained(kind: str, finetune: bool) -> None:
    model = build(kind, network().encoder.backbone, Shape([2], 10, ((5.0, 8.0, 12.0),)), frozen=not finetune).train()
    targets = [{"boxes": torch.tensor([[4.0, 4, 20, 20]]), "labels": torch.tensor([3])}] * 2
    sum(model(torch.randn(2, 3, 48, 48), targets).values()).backward()  # type: ignore[attr-defined]
    backbone = model.get_submodule("backbone.backbone")
    reached = {name for name, weight in backbone.named_parameters() if weight.grad is not None}
    training = {module.training for module in backbone.modules() if isinstance(module, nn.BatchNorm2d)}
    if finetune:
        assert {"conv1.weight", "layer2.0.conv1.weight"} <= reached and training == {True}
    else:
        assert not reached and training == {False}


def test_boxes_of_fcos_have_a_gradient_wherever_they_are() -> None:
    """Torchvision's ReLU has none where every distance is negative, and short trainings have ended there."""
    model = build("fcos", network().encoder.backbone, Shape([2], 10, ((5.0, 8.0, 12.0),)), frozen=True).train()
    distances = model.get_submodule("head.regression_head.bbox_reg.0")
    assert isinstance(distances, nn.Conv2d) and distances.bias is not None
    nn.init.constant_(distances.bias, -3.0)
    targets = [{"boxes": torch.tensor([[4.0, 4, 20, 20]]), "labels": torch.tensor([3])}]
    model(torch.randn(1, 3, 48, 48), targets)["bbox_regression"].backward()
    assert distances.bias.grad is not None and bool((distances.bias.grad < 0).all())  # every side moves outwards


@pytest.mark.parametrize("kind", ["fcos", "c4"])
def test_stored_maps_change_nothing(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = Recipe(kind, **FEW)  # type: ignore[arg-type]
    stored = transfer(network(), TRAIN, TEST, recipe, 0)
    monkeypatch.setattr("mixfast.detection.transfer.MAX_STORED", 0)
    computed = transfer(network(), TRAIN, TEST, recipe, 0)
    assert stored.losses == pytest.approx(computed.losses, rel=1e-5)


def test_networks_of_one_seed_start_from_the_same_detector() -> None:
    """The first loss of two networks differs; with the same maps it would not."""
    recipe = Recipe(steps=1, batch_size=4)
    losses = [transfer(network(seed=seed), TRAIN, TEST, recipe, 0).losses for seed in (0, 0, 1)]
    assert losses[0] == losses[1] != losses[2]


def blobs(count: int, draw: torch.Generator) -> LabelledImages:
    """A red or a blue square of 12 pixels on black; the class is the colour."""
    images = torch.zeros(count, 3, 32, 32, dtype=torch.uint8)
    labels = torch.randint(2, (count, 1), generator=draw)
    corner = torch.randint(20, (count, 1, 2), generator=draw)
    for image, label, (x, y) in zip(images, labels[:, 0], corner[:, 0].tolist(), strict=True):
        image[2 * label, y : y + 12, x : x + 12] = 255
    boxes = torch.cat([corner, corner + 12], 2).float()
    flags = torch.zeros(count, 1, dtype=torch.bool)
    return LabelledImages(
        images, boxes, labels, ("red", "blue"), "blobs", flags, flags, torch.full((count, 1), 144.0), torch.ones(count)
    )


@pytest.mark.slow
@pytest.mark.parametrize("kind", DETECTORS)
def test_a_detector_learns_boxes_and_classes(kind: str) -> None:
    draw = torch.Generator().manual_seed(0)
    recipe = Recipe(kind, finetune=kind == "c4", steps=60, batch_size=8 if kind == "fpn" else 4, lr=3e-3)
    assert transfer(network(), blobs(64, draw), blobs(30, draw), recipe, 0).scores["ap50"] > 50


def test_any_class_forgives_the_name_and_names_a_box_once() -> None:
    boxes = torch.tensor([[[0.0, 0, 10, 10], [0, 0, 10, 9], [20, 20, 30, 30], [0, 0, 1, 1]]])
    labels, scores = torch.tensor([[2, 1, 2, -1]]), torch.tensor([[0.8, 0.9, 0.5, 0.0]])
    assert any_class(Detections(boxes, labels, scores, scores)).labels.tolist() == [[-1, 0, 0, -1]]


def test_groups_are_no_targets_and_images_may_be_empty() -> None:
    crowd = TRAIN.crowd.clone()
    crowd[:6] = True
    data = LabelledImages(**{**vars(TRAIN), "crowd": crowd, "ignored": crowd})
    outcome = transfer(network(), data, TEST, Recipe(**FEW), 0)  # type: ignore[arg-type]
    assert all(map(math.isfinite, outcome.losses))


def test_a_loss_that_is_no_number_is_named() -> None:
    net = network()
    with torch.no_grad():
        net.encoder.backbone.conv1.weight.fill_(float("nan"))
    with pytest.raises(NonFiniteError, match=r"loss is nan at step 1 of 3\. Give a smaller --lr than 0\.001"):
        transfer(net, TRAIN, TEST, Recipe(**FEW), 0)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("strides", "side", "layers"),
    [
        ([2, 4, 8], 96, [3]),
        ([4, 8, 16, 32], 96, [2]),
        ([4, 8, 16, 32], 224, [2, 3, 4]),
        ([1, 2, 4, 8], 96, [4]),
        ([2, 4, 8], 48, [2]),
        ([16, 16, 16], 224, [3]),
        ([4, 8, 8, 16], 128, [3, 4]),
    ],
)
def test_stages_whose_maps_are_used(strides: list[int], side: int, layers: list[int]) -> None:
    backbone = Backbone()
    backbone.strides = strides
    assert pyramid_layers(backbone, side) == layers


def test_stages_that_do_not_fit_are_refused() -> None:
    backbone = resnet("cifar_s2")
    with pytest.raises(ConfigError, match=r"images of 12 pixels are too small .* larger --size"):
        pyramid_layers(backbone, 12)
    for layers in ([0], [4], [3, 2], [2, 2]):
        with pytest.raises(ConfigError, match=r"--layers must be stages from 1 to 3, each coarser"):
            check_layers(backbone, layers)


def test_anchors_follow_the_boxes() -> None:
    boxes = torch.tensor([[0.0, 0, s, s] for s in range(1, 102)])
    assert [[round(side) for side in level] for level in anchors_of(boxes, 2)] == [[9, 26, 43], [59, 76, 93]]


@pytest.mark.parametrize("name", ["resnet", "torchvision:resnet18", "torchvision:mobilenet_v2"])
def test_the_last_stage_makes_the_last_map(name: str) -> None:
    backbone = (resnet("cifar_s2") if name == "resnet" else make(name)).eval()
    layers = len(backbone.channels)
    images = torch.randn(2, 3, 64, 64)
    before, last = backbone.maps(images, [layers - 1, layers])
    assert torch.equal(last_stage(backbone)(before), last)


def test_a_backbone_without_a_module_for_its_last_stage_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"--detector c4 .* OwnBackbone .* Use fcos, retinanet or fpn"):
        last_stage(OwnBackbone())


def test_any_backbone_of_the_protocol_detects() -> None:
    net = network()
    net.encoder.backbone = OwnBackbone()
    outcome = transfer(net, TRAIN, TEST, Recipe("retinanet", layers=(1, 2), **FEW), 0)  # type: ignore[arg-type]
    assert outcome.detections.boxes.shape == (6, 100, 4) and "ap" in outcome.scores


def test_a_neck_sees_every_map() -> None:
    neck = nn.Identity()
    body = Body(resnet("cifar").eval(), [1, 2], neck, 8, frozen=True)
    assert isinstance(body(torch.randn(1, 3, 16, 16)), OrderedDict)
