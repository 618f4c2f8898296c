"""Backbones that are not this package's ResNet: trained, resumed, scored, exported; what is refused, and how."""

import importlib
import json
import signal
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import torchvision
from safetensors.torch import load_file
from torch import Tensor, nn

from mixfast.config.options import replace
from mixfast.config.presets import build
from mixfast.errors import CheckpointError, ConfigError, PlatformError
from mixfast.evaluate.__main__ import main as evaluate
from mixfast.export import load_backbone
from mixfast.models import ModelConfig, build_encoder
from mixfast.profile import __main__ as profile
from mixfast.run.budget import explain_out_of_memory, step_cost
from mixfast.train import cli
from mixfast.train.__main__ import main as train
from tests.tiny_run import assert_same, last_state, open_tiny, process_settings_kept, records, train_in_child, words

pytestmark = pytest.mark.slow

MODULE = """
import torch
from torch import nn
from mixfast.models import Backbone

def stage(inputs, outputs, stride=2):
    return nn.Sequential(nn.Conv2d(inputs, outputs, 3, stride, 1), nn.BatchNorm2d(outputs), nn.ReLU())

class Tiny(Backbone):
    def __init__(self, width, strides, dropout):
        super().__init__()
        self.channels, self.strides = [width, 2 * width], strides
        self.first = stage(3, width)
        self.second = nn.Sequential(stage(width, 2 * width), nn.Dropout2d(dropout))

    def maps(self, images, layers):
        first = self.first(images)
        maps = [first, self.second(first)]
        return [maps[layer - 1] for layer in layers]

def tiny(width=8, strides=[2, 4], dropout=0.1):
    return Tiny(width, strides, dropout)

def chain():
    return nn.Sequential(stage(3, 8), stage(8, 8, 1), stage(8, 16))

def flat():
    return nn.Sequential(stage(3, 8), nn.Flatten())

def linear():
    return nn.Linear(3, 8)
"""
OWN = "nets_of_ones_own:tiny"


@pytest.fixture(autouse=True)
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The user's module, in the working directory."""
    (tmp_path / "nets_of_ones_own.py").write_text(MODULE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    with process_settings_kept():
        yield importlib.import_module("nets_of_ones_own")


def trained(method: str, backbone: str, **changes: Any) -> Path:
    """The folder of a finished run of one epoch on eight batches' worth of small scenes."""
    folder = Path("run")
    values = {"train__epochs": 1, "optim__cosine_origin": 0, "eval__every": 0, "optim__lr": 0.01, **changes}
    assert train(words(folder, method, model__backbone=backbone, **values)) == 0
    return folder


@pytest.mark.parametrize(("method", "changes"), [("moco", {}), ("approach1", {"method__region_layer": 1})])
def test_a_module_of_ones_own_trains_and_resumes_to_the_same_bits(
    method: str, changes: dict[str, Any], tmp_path: Path
) -> None:
    """Its dropout draws from the global generator, which the checkpoint holds."""
    whole, broken = (words(tmp_path / name, method, model__backbone=OWN, **changes) for name in "ab")
    log = tmp_path / "log"
    assert train_in_child(whole, log) == 0, log.read_text()
    assert train_in_child(broken, log, send=[signal.SIGTERM], at_step=5) == 128 + signal.SIGTERM
    assert train_in_child(["--resume", str(tmp_path / "b")], log) == 0, log.read_text()
    assert_same(last_state(tmp_path / "b"), last_state(tmp_path / "a"))
    assert records(tmp_path / "b") == records(tmp_path / "a")
    weights = last_state(tmp_path / "a")["method"]
    fresh = open_tiny(tmp_path / "c", method, model__backbone=OWN, **changes).method.state_dict()
    name = "encoder.backbone.second.0.0.weight"
    assert not torch.equal(weights[name], fresh[name])
    if changes:
        assert fresh["region_head.weight"].shape == (8, 8)  # from the first stage's 8 channels


def test_it_is_scored_mapped_reported_and_exported(module: Any, capsys: pytest.CaptureFixture[str]) -> None:
    folder = trained("approach1", OWN)
    for command in (["knn"], ["localise", "--count", "12", "--validation", "10"], ["maps", "--count", "2"]):
        assert evaluate([command[0], str(folder), *command[1:], "--threads", "1"]) == 0
    printed = capsys.readouterr().out
    assert "4 pixels per cell" in printed
    assert evaluate(["localise", str(folder), "--stride", "2"]) == 2
    assert "dilation is for the ResNets of this package; this Tiny has 4 pixels" in capsys.readouterr().err
    assert OWN in (folder / "report.md").read_text() and "model.depth" not in (folder / "report.md").read_text()

    facts = json.loads((folder / "export" / "export.json").read_text())
    assert facts["architecture"] == {"backbone": OWN} and facts["features"] == 16
    call = r"call mixfast.export.load_backbone\('run/export', factory=nets_of_ones_own.tiny\)"
    with pytest.raises(CheckpointError, match=call):
        load_backbone(folder / "export")
    run = open_tiny(folder, "approach1", model__backbone=OWN)
    run.load_method(torch.load(folder / "checkpoints" / "last.pt", weights_only=True), folder)
    images = run.normalise(run.splits.test.images)
    encoder = run.method.encoder.eval()
    with torch.no_grad():
        expected = encoder.backbone.maps(images, [1, 2])
        loaded = load_backbone(folder / "export", factory=module.tiny).to(memory_format=run.memory_format)
        assert_same(loaded.maps(images, [1, 2]), expected)
    with pytest.raises(CheckpointError, match="is of another network than the one built here"):
        load_backbone(folder / "export", factory=module.chain)


def test_a_sequence_is_cut_where_its_map_shrinks(rng: torch.Generator, module: Any) -> None:
    encoder = build_encoder(ModelConfig(backbone="nets_of_ones_own:chain", bn_splits=1), rng).eval()
    assert (encoder.backbone.channels, encoder.backbone.strides) == ([8, 16], [2, 4])
    x = torch.randn(2, 3, 16, 16, generator=rng)
    network: nn.Module = encoder.backbone.network
    with torch.no_grad():
        second, first = encoder.maps(x, [2, 1])
        assert torch.equal(second, network(x)) and torch.equal(first, network[:2](x))  # type: ignore[index]


def test_one_generator_gives_one_network_and_the_global_one_draws_none_of_it(rng: torch.Generator) -> None:
    def weights(seed: int, elsewhere: int) -> list[Tensor]:
        torch.manual_seed(elsewhere)
        generator = torch.Generator().manual_seed(seed)
        return list(build_encoder(ModelConfig(backbone=OWN, bn_splits=1), generator).parameters())

    assert all(map(torch.equal, weights(0, 1), weights(0, 2)))
    assert not torch.equal(weights(0, 1)[0], weights(1, 1)[0])


def test_batch_norms_are_split_with_their_weights(rng: torch.Generator) -> None:
    """Group s holds samples n mod S: split training statistics are those of ordinary passes over the groups."""
    plain, split = (
        build_encoder(
            ModelConfig(backbone="torchvision:resnet18", bn_splits=n), torch.Generator().manual_seed(0)
        ).double()
        for n in (1, 2)
    )
    assert plain.state_dict().keys() == split.state_dict().keys()
    x = torch.randn(8, 3, 32, 32, generator=rng).double()
    with torch.no_grad():
        whole = split(x).map
        for s in range(2):
            torch.testing.assert_close(whole[s::2], plain(x[s::2]).map)


def test_torchvisions_network_is_itself_and_takes_the_export(rng: torch.Generator) -> None:
    folder = trained("moco", "torchvision:resnet18", data__size=32, model__bn_splits=1)
    weights = load_file(folder / "export" / "backbone.safetensors")
    theirs = torchvision.models.resnet18()
    theirs.fc = nn.Identity()
    theirs.load_state_dict(weights)
    ours, x = load_backbone(folder / "export"), torch.randn(2, 3, 32, 32, generator=rng)
    seen: list[Tensor] = []
    for layer in (theirs.layer1, theirs.layer2, theirs.layer3, theirs.layer4):
        layer.register_forward_hook(lambda _, inputs, out: seen.append(out))
    with torch.no_grad():
        theirs.eval()(x)
        assert_same(ours.maps(x, [1, 2, 3, 4]), seen)
    assert ours.strides == [x.shape[-1] // features.shape[-1] for features in seen]


@pytest.mark.parametrize(
    "name", ["convnext_atto,depths=(1,1,2,1)", "vit_tiny_patch16_224,img_size=32,patch_size=8,depth=3"]
)
def test_timms_networks_train_and_are_themselves(name: str, rng: torch.Generator) -> None:
    timm = pytest.importorskip("timm", reason="timm is an extra")
    folder = trained("approach1", f"timm:{name}", data__size=32, model__bn_splits=1)
    assert evaluate(["knn", str(folder), "--threads", "1"]) == 0
    ours, x = load_backbone(folder / "export"), torch.randn(2, 3, 32, 32, generator=rng)
    tokens = name.startswith("vit")
    options: dict[str, Any] = {"img_size": 32, "patch_size": 8, "depth": 3} if tokens else {"depths": (1, 1, 2, 1)}
    theirs = timm.create_model(name.partition(",")[0], num_classes=0, **options).eval()
    theirs.load_state_dict(load_file(folder / "export" / "backbone.safetensors"))
    with torch.no_grad():
        (last,) = ours.maps(x, [len(ours.channels)])
        features = theirs.forward_features(x)
        if tokens:  # [B, 1 + hw, C]: the class token comes first
            features = features[:, 1:].transpose(1, 2).reshape(last.shape)
        assert torch.equal(last, features)
        assert ours(torch.randn(1, 3, 64, 64, generator=rng)).shape[2:] == (64 // ours.strides[-1],) * 2


@pytest.mark.parametrize(
    ("backbone", "splits", "message"),
    [
        (
            "timm:vit_tiny_patch16_224",
            8,
            r"statistics of BatchNorm2d layers, and timm:vit_tiny_.* has none. Give --model.b",
        ),
        ("timm:efficientnet_b0", 8, r"cannot split network.bn1 of timm:efficientnet_b0, a BatchNormAct2d"),
        ("timm:vit_tinny_patch16_224", 1, r"timm has no vit_tinny_patch16_224; did you mean vit_tiny_patch16_224"),
        ("timm:convnext_atto,depth=3", 1, r"with depth=3: .*unexpected keyword argument 'depth'"),
        ("timm:resnet18,pretrained=True", 1, r"does not take pretrained: weights are always drawn anew"),
        ("timm:hf-hub:somebody/model", 1, r"model.backbone must be resnet, torchvision:NAME"),
        ("torchvision:resnet19", 1, r"torchvision has no resnet19; did you mean"),
        ("torchvision:densenet121", 1, r"torchvision's DenseNet has no known stages; its ResNet, .* have"),
        ("resnet50", 1, r"model.backbone must be resnet, torchvision:NAME, timm:NAME, or package.module:factory"),
        ("no_such_module:tiny", 1, r"cannot import 'no_such_module' .*put that folder on PYTHONPATH"),
        ("nets_of_ones_own:tinny", 1, r"nets_of_ones_own has no factory tinny; did you mean tiny or Tiny"),
        (
            "nets_of_ones_own:tiny,depth=2",
            1,
            r"tiny does not take these options: .*unexpected keyword argument 'depth'",
        ),
        ("nets_of_ones_own:linear", 1, r"gave a Linear; it must give a mixfast.models.Backbone, an nn.Sequential from"),
        ("nets_of_ones_own:flat", 1, r"child 1 must return a map \[B, C, h, w\]; got \[1, 8192\]"),
        (
            "nets_of_ones_own:tiny,strides=[2]",
            1,
            r"lists with a positive number for each stage; got \[8, 16\] and \[2\]",
        ),
    ],
)
def test_what_cannot_be_a_backbone_is_refused_by_name(
    backbone: str, splits: int, message: str, rng: torch.Generator
) -> None:
    if backbone.startswith("timm"):
        pytest.importorskip("timm", reason="timm is an extra")
    with pytest.raises(ConfigError, match=message):
        build_encoder(ModelConfig(backbone=backbone, bn_splits=splits), rng)


def test_a_missing_library_is_named_with_its_cure(monkeypatch: pytest.MonkeyPatch, rng: torch.Generator) -> None:
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(PlatformError, match=r"needs timm, which cannot be imported .*pip install timm$"):
        build_encoder(ModelConfig(backbone="timm:convnext_atto", bn_splits=1), rng)


def test_maps_of_other_shapes_than_promised_end_the_run(capsys: pytest.CaptureFixture[str]) -> None:
    folder = words(Path("run"), "moco", model__backbone=f"{OWN},strides=[2,8]")
    assert train(folder) == 2
    message = "must return the list that its channels and strides promise, [64, 16, h, w] at stride 8"
    assert message in capsys.readouterr().err


def test_options_of_the_resnet_are_refused_but_those_of_a_preset_are_dropped() -> None:
    parsed = cli.parse(["demo", "--model.backbone", OWN])
    assert parsed.config.model == ModelConfig(backbone=OWN, bn_splits=1) and "model.depth" not in parsed.origins
    assert cli.parse(["demo", "--model.backbone", "resnet"]).config.model.depth == 8
    with pytest.raises(ConfigError, match=f"model.depth, model.width: options of the backbone resnet, not of {OWN}"):
        cli.parse(["demo", "--model.backbone", OWN, "--model.depth", "50", "--model.width", "32"])


def test_costs_are_counted_and_an_explanation_names_the_backbone() -> None:
    config = replace(build("moco", [], None)[0], {"model.backbone": OWN, "model.bn_splits": 2})
    assert step_cost(config, side=16).encoder == 4  # a trained pass is 3, a follower's 1
    images = torch.zeros(10, 3, 16, 16, dtype=torch.uint8)
    assert "a smaller --model.backbone." in explain_out_of_memory(config, nn.Linear(2, 2), images, 2**28, "forward")


def test_profile_measures_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--model.backbone", OWN, "--data.size", "16", "--train.batch_size", "8", "--model.bn_splits", "2"]
    assert profile.main(["moco", *options, "--seconds", "0", "--out", str(tmp_path / "profile")]) == 0
    assert f"moco: {OWN}, 16 px, batch 8" in capsys.readouterr().out
