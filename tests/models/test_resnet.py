"""models.resnet: shapes, sizes and agreement with torchvision."""

from collections import OrderedDict

import pytest
import torch
import torchvision

from mixfast.models import ModelConfig, build_encoder
from mixfast.models.resnet import ResNet
from tests.tiny_run import assert_same


def test_cifar_resnet18_has_the_published_size_and_map() -> None:
    encoder = build_encoder(ModelConfig(), torch.Generator().manual_seed(0))
    assert sum(p.numel() for p in encoder.parameters()) == 11_234_496
    with torch.no_grad():
        z, h, features = encoder(torch.zeros(8, 3, 32, 32))
    assert z.shape == (8, 128) and h.shape == (8, 512) and features.shape == (8, 512, 4, 4)


@pytest.mark.parametrize("depth", [18, 34, 50])
def test_equals_torchvision_given_its_weights(depth: int, rng: torch.Generator) -> None:
    theirs = getattr(torchvision.models, f"resnet{depth}")(weights=None).eval()
    ours = ResNet(depth, stem="imagenet", num_splits=1).eval()
    result = ours.load_state_dict(theirs.state_dict(), strict=False)
    assert (result.missing_keys, result.unexpected_keys) == ([], ["fc.weight", "fc.bias"])
    x = torch.randn(2, 3, 64, 64, generator=rng)
    with torch.no_grad():
        features = ours(x)
        torch.testing.assert_close(theirs.fc(features.mean(dim=(2, 3))), theirs(x), atol=1e-5, rtol=1e-5)
    assert features.shape == (2, ours.out_channels, 2, 2)


@pytest.mark.parametrize(
    ("depth", "stem", "shape"),
    [
        (8, "cifar", (8, 64, 8, 8)),
        (8, "cifar_s2", (8, 64, 4, 4)),
        (20, "cifar", (8, 64, 8, 8)),
        (18, "cifar_s2", (8, 128, 2, 2)),
        (50, "imagenet", (16, 512, 1, 1)),
    ],
)
def test_shapes_of_depths_and_stems(depth: int, stem: str, shape: tuple[int, ...], rng: torch.Generator) -> None:
    with torch.no_grad():
        assert ResNet(depth, 16, stem)(torch.randn(shape[0], 3, 32, 32, generator=rng)).shape == shape


def test_three_stage_depths_have_the_published_layers() -> None:
    """CIFAR ResNet-20 (He et al. 2016): 19 convolutions and 3x3 ones alone but for the two shortcuts."""
    network = ResNet(20, 16)
    kernels = [m.kernel_size for m in network.modules() if isinstance(m, torch.nn.Conv2d)]
    assert kernels.count((3, 3)) == 19 and kernels.count((1, 1)) == 2
    assert network.channels == [16, 32, 64]
    assert sum(isinstance(m, torch.nn.Conv2d) and m.kernel_size == (3, 3) for m in ResNet(8, 16).modules()) == 7


def test_maps_come_from_the_layers_asked_for(rng: torch.Generator) -> None:
    network = ResNet(18, 4, num_splits=1).eval()
    x = torch.randn(2, 3, 32, 32, generator=rng)
    with torch.no_grad():
        last, third = network.maps(x, [4, 3])
        assert torch.equal(last, network(x))
        assert torch.equal(network.layer4(third), last)
    assert third.shape == (2, 16, 8, 8)


def test_stem_ends_in_a_relu(rng: torch.Generator) -> None:
    """The ReLU after the stem's batch norm is easily lost when a torchvision network is taken apart."""
    network = ResNet(8, 4, num_splits=1).eval()
    seen = []
    network.layer1.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    with torch.no_grad():
        network(torch.randn(2, 3, 8, 8, generator=rng))
    assert seen[0].min() == 0


def test_encoding_commutes_with_reversal(rng: torch.Generator) -> None:
    """In training mode with 8 splits, so that reversed queries need no second pass."""
    encoder = build_encoder(ModelConfig(depth=8, width=8, dim=16), torch.Generator().manual_seed(0))
    x = torch.randn(16, 3, 16, 16, generator=rng)
    with torch.no_grad():
        for forward, backward in zip(encoder(x), encoder(x.flip(0)), strict=True):
            torch.testing.assert_close(backward.flip(0), forward, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("stem", ["cifar", "cifar_s2", "imagenet"])
def test_torchvisions_feature_pyramid_sees_the_same_maps(stem: str, rng: torch.Generator) -> None:
    """It runs the children one after the other, so an activation that is none would be lost."""
    from torchvision.models._utils import IntermediateLayerGetter
    from torchvision.models.detection.backbone_utils import BackboneWithFPN

    network = ResNet(18, 16, stem, num_splits=1).eval()
    layers = {f"layer{number}": str(number) for number in range(1, 5)}
    pyramid = BackboneWithFPN(network, layers, network.channels, 8).eval()
    x = torch.randn(2, 3, 64, 64, generator=rng)
    with torch.no_grad():
        maps = network.maps(x, [1, 2, 3, 4])
        assert_same(list(IntermediateLayerGetter(network, layers)(x).values()), maps)
        levels = pyramid.fpn(OrderedDict(zip(layers.values(), maps, strict=True)))
        assert_same(dict(pyramid(x)), dict(levels))


def test_the_first_activation_has_no_entry_in_the_state_dict() -> None:
    network = ResNet(18, 16, "imagenet")
    assert [name for name, _ in network.named_children()][:4] == ["conv1", "bn1", "relu", "maxpool"]
    assert not [name for name in network.state_dict() if name.startswith(("relu", "maxpool"))]
