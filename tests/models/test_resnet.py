"""models.resnet: shapes, sizes and agreement with torchvision."""

import copy
from collections import OrderedDict
from collections.abc import Callable

import pytest
import torch
import torchvision
from torch import Tensor
from torchvision.models._utils import IntermediateLayerGetter

from mixfast.models import ModelConfig, build_encoder
from mixfast.models.resnet import ResNet
from mixfast.models.split_bn import SplitBatchNorm2d
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


def saving(run: Callable[[], object]) -> tuple[object, int]:
    """The result of `run`, and the bytes of all storages that autograd saves in it."""
    saved: dict[int, int] = {}

    def note(tensor: Tensor) -> Tensor:
        saved[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        return run(), sum(saved.values())


@pytest.mark.parametrize(
    ("depth", "stem", "short"), [(8, "cifar", False), (8, "cifar", True), (50, "imagenet", False)], ids=str
)
def test_fused_layers_train_in_the_bits_of_their_parts(
    depth: int, stem: str, short: bool, rng: torch.Generator
) -> None:
    """A hook of a norm sees what the norm gives, before sum and ReLU, which then run by themselves."""
    fused = ResNet(depth, 8, stem, num_splits=4).to(memory_format=torch.channels_last)
    apart, children = copy.deepcopy(fused), copy.deepcopy(fused)
    x = torch.randn(16, 3, 32, 32, generator=rng).contiguous(memory_format=torch.channels_last)
    least = []
    for module in apart.modules():
        if isinstance(module, SplitBatchNorm2d):
            module.register_forward_hook(lambda layer, inputs, result: least.append(result.min().item()))
    layers = range(1, len(fused.channels) + 1)
    made, bytes_saved = [], []
    with torch.autocast("cpu", torch.bfloat16, enabled=short):
        for network in (fused, apart):
            maps, size = saving(lambda network=network: network.maps(x, layers))
            sum((each.float() * each.float().detach().roll(1, 3)).sum() for each in maps).backward()
            made.append([*maps, *(weight.grad for weight in network.parameters()), *network.buffers()])
            bytes_saved.append(size)
        found = IntermediateLayerGetter(children, {f"layer{layer}": str(layer) for layer in layers})(x)
    assert all(torch.equal(*pair) for pair in zip(*made, strict=True))
    assert_same(list(found.values()), made[0][: len(layers)])
    assert len(least) == sum(isinstance(module, SplitBatchNorm2d) for module in apart.modules()) and max(least) < 0
    assert bytes_saved[0] <= bytes_saved[1]


@pytest.mark.parametrize("training", [False, True])
def test_another_first_activation_is_run(training: bool, rng: torch.Generator) -> None:
    """Neither one that was put in its place, nor one that is watched, is passed over."""
    network, seen, x = ResNet(8, 8).train(training), [], torch.randn(16, 3, 8, 8, generator=rng)
    network.relu.register_forward_hook(lambda layer, inputs, result: seen.append(inputs[0].min().item()))
    with torch.no_grad():
        network(x)
        network.relu = torch.nn.Hardtanh(-9, -8)
        network.layer1.register_forward_pre_hook(lambda layer, inputs: seen.append(inputs[0].max().item()))
        network(x)
    assert len(seen) == 2 and seen[0] < 0 and seen[1] == -8


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
