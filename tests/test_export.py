"""Exported weights give the same network, here and in torchvision."""

import json
from pathlib import Path

import pytest
import torch

from mixfast.errors import CheckpointError
from mixfast.export import export, load_backbone, verify
from mixfast.run import engine
from mixfast.run.state import Run
from mixfast.scoring.features import evaluation_mode
from tests.tiny_run import open_tiny


@pytest.fixture
def run(tmp_path: Path) -> Run:
    run = open_tiny(tmp_path, "moco")
    engine.optimiser_step(run, run.batches.images[:16], check=False)
    return run


def test_reloaded_backbone_is_the_trained_one_bit_by_bit(run: Run) -> None:
    path = export(run)
    loaded = load_backbone(path.parent)
    images = run.normalise(run.splits.test.images).contiguous()
    with torch.no_grad(), evaluation_mode(run.method):
        expected = run.method.encoder.backbone.to(memory_format=torch.contiguous_format)(images)
        assert torch.equal(loaded(images), expected)
    facts = json.loads((path.parent / "export.json").read_text())
    assert facts["architecture"] == {"depth": 8, "width": 8, "stem": "cifar_s2"} and facts["features"] == 32
    assert facts["input"]["side"] == 16 and facts["input"]["mean"] == list(run.splits.mean)


def test_same_run_gives_the_same_file(run: Run) -> None:
    first = export(run).read_bytes()
    assert export(run).read_bytes() == first


def test_changed_or_missing_files_are_refused(run: Run) -> None:
    path = export(run)
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=r"has sha256 .*, export.json says"):
        load_backbone(path.parent)
    path.unlink()
    with pytest.raises(CheckpointError, match=r"is no export"):
        load_backbone(path.parent)


def test_verify_notices_another_network(run: Run) -> None:
    path = export(run)
    with torch.no_grad():
        run.method.encoder.backbone.conv1.weight.mul_(2)
    with pytest.raises(CheckpointError, match=r"reloaded network's map differs by"):
        verify(run.method.encoder, path, run.normalise(run.splits.test.images[:4]))


@pytest.mark.parametrize("stem", ["imagenet", "cifar"])
def test_torchvision_loads_it_strictly_and_agrees(stem: str, tmp_path: Path, rng: torch.Generator) -> None:
    models = pytest.importorskip("torchvision.models", reason="torchvision is an extra")
    from safetensors.torch import load_file

    shape = {"model__depth": 18, "model__width": 64, "model__stem": stem, "data__scenes": 16, "data__size": 32}
    run = open_tiny(tmp_path, "moco", **shape)
    weights = load_file(export(run))
    theirs = models.resnet18()
    theirs.fc = torch.nn.Identity()
    if stem == "cifar":
        theirs.conv1 = torch.nn.Conv2d(3, 64, 3, 1, 1, bias=False)
        theirs.maxpool = torch.nn.Identity()
    theirs.load_state_dict(weights)  # strict: every key there, none left over
    images = torch.randn(2, 3, 32, 32, generator=rng)
    with torch.no_grad(), evaluation_mode(run.method):
        h = run.method.encoder(images.contiguous(memory_format=torch.channels_last)).h
        torch.testing.assert_close(theirs.eval()(images), h, rtol=1e-4, atol=1e-5)
