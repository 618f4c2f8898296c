"""models.config and models.initialise: what is built, and that its weights depend on the generator alone."""

import math
from typing import Any

import pytest
import torch
from torch import nn

from mixfast.errors import ConfigError
from mixfast.models import ModelConfig, build_encoder
from mixfast.models.split_bn import BatchNorm1d

SMALL = ModelConfig(depth=8, width=16, dim=32)


def build(seed: int = 0, config: ModelConfig = SMALL):  # type: ignore[no-untyped-def]
    return build_encoder(config, torch.Generator().manual_seed(seed))


def test_same_generator_same_weights_whatever_the_global_seed() -> None:
    torch.manual_seed(1)
    first = build().state_dict()
    torch.manual_seed(2)
    second, other = build().state_dict(), build(seed=3).state_dict()
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert all(not torch.equal(first[name], other[name]) for name in first if name.endswith("conv1.weight"))


def test_initial_weights_have_torchvisions_spread() -> None:
    """He normal with fan out, but PyTorch's uniform default for the replaced stem and for linear layers."""
    encoder = build(config=ModelConfig(head="mlp"))
    backbone, hidden = encoder.backbone, encoder.head[0]
    conv = backbone.layer4[1].conv2.weight
    assert conv.std().item() == pytest.approx(math.sqrt(2 / (512 * 9)), rel=0.01)
    assert conv.abs().max() > 3 * conv.std()  # normal, not uniform
    for layer, fan_in in [(backbone.conv1, 27), (hidden, 512)]:
        assert layer.weight.abs().max().item() == pytest.approx(1 / math.sqrt(fan_in), rel=0.01)
        assert layer.weight.std().item() == pytest.approx(1 / math.sqrt(3 * fan_in), rel=0.05)
    assert hidden.bias.abs().max().item() == pytest.approx(1 / math.sqrt(512), rel=0.02)
    kept = build(config=ModelConfig(stem="imagenet")).backbone.conv1.weight
    assert kept.std().item() == pytest.approx(math.sqrt(2 / (64 * 49)), rel=0.02)


def test_no_weight_is_left_to_the_global_generator() -> None:
    """Every tensor is either redrawn from the generator or a batch norm's constant."""
    torch.manual_seed(1)
    first = build()
    torch.manual_seed(2)
    for a, b in zip(first.parameters(), build().parameters(), strict=True):
        assert torch.equal(a, b)


def test_heads() -> None:
    assert isinstance(build().head, nn.Linear) and build().dim == 32
    mlp = build(config=ModelConfig(depth=8, width=16, dim=32, head="mlp"))
    assert [type(m) for m in mlp.head] == [nn.Linear, nn.ReLU, nn.Linear]
    assert mlp.head[0].weight.shape == (64, 64) and mlp.dim == 32


@pytest.mark.parametrize(
    ("kind", "layers", "biased"),
    [
        ("mlp", [nn.Linear, nn.ReLU, nn.Linear], [True, True]),
        ("mlp_bn", [nn.Linear, BatchNorm1d, nn.ReLU, nn.Linear], [False, True]),
        ("mlp_bn2", [nn.Linear, BatchNorm1d, nn.ReLU, nn.Linear, BatchNorm1d], [False, False]),
    ],
)
def test_hidden_layers_batch_norms_and_biases(kind: Any, layers: list[type], biased: list[bool]) -> None:
    encoder = build(config=ModelConfig(depth=8, width=16, dim=32, head=kind, hidden=24))
    assert [type(m) for m in encoder.head] == layers and encoder.dim == 32
    linear = [m for m in encoder.head if isinstance(m, nn.Linear)]
    assert [tuple(m.weight.shape) for m in linear] == [(24, 64), (32, 24)]
    assert [m.bias is not None for m in linear] == biased


def test_parameters_of_the_published_simclr_head() -> None:
    """512 -> 512 BN ReLU -> 128 BN, without biases beside the norms' own."""
    head = build(config=ModelConfig(head="mlp_bn2")).head
    assert sum(p.numel() for p in head.parameters()) == 512 * 512 + 2 * 512 + 512 * 128 + 2 * 128


def test_encoder_gives_the_map_of_a_layer(rng: torch.Generator) -> None:
    encoder = build().eval()
    x = torch.randn(2, 3, 16, 16, generator=rng)
    with torch.no_grad():
        default, second = encoder(x), encoder(x, 2)
    assert encoder.layers == 3
    assert default.map.shape == (2, 64, 4, 4) and second.map.shape == (2, 32, 8, 8)
    assert torch.equal(default.z, second.z) and torch.equal(default.h, second.h)
    torch.testing.assert_close(default.h, default.map.mean(dim=(2, 3)))
    with torch.no_grad():
        assert torch.equal(encoder.pool(x), default.h)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"depth": 19}, r"model.depth must be one of 8, 18, 20, 34, 50; got 19"),
        ({"width": 0}, "model.width"),
        ({"dim": -1}, "model.dim"),
        ({"hidden": 0}, "model.hidden must be at least 1; got 0"),
        ({"bn_splits": 0}, "model.bn_splits must be at least 1; got 0"),
    ],
)
def test_bad_values_are_named(options: dict[str, int], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        ModelConfig(**options)  # type: ignore[arg-type]
