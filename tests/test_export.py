"""Exported weights give the same network, here and in torchvision."""

import hashlib
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from mixfast.errors import CheckpointError, ConfigError, NonFiniteError
from mixfast.evaluate.__main__ import main as evaluate
from mixfast.export import check_exportable, export, load_backbone, main, verify
from mixfast.methods import Method
from mixfast.models import Backbone, Encoder
from mixfast.run import checkpoint, engine
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
    assert facts["stem"] == {"conv1": {"kernel": [3, 3], "stride": [2, 2], "padding": [1, 1]}, "maxpool": False}
    assert (facts["channels"], facts["strides"]) == ([8, 16, 32], [2, 4, 8])


def test_a_loaded_backbone_is_plain_and_ready_for_training(run: Run) -> None:
    loaded = load_backbone(export(run).parent)
    assert [name for name, _ in loaded.named_children()] == ["conv1", "bn1", "relu", "layer1", "layer2", "layer3"]
    norms = [module for module in loaded.modules() if "Norm" in type(module).__name__]
    assert {type(norm) for norm in norms} == {nn.BatchNorm2d} and len(norms) == 9  # 1 + 3 x 2 + 2 shortcuts
    assert not loaded.training and all(parameter.requires_grad for parameter in loaded.parameters())
    assert any(
        type(module) is not nn.BatchNorm2d for module in run.method.modules() if isinstance(module, nn.BatchNorm2d)
    )


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
    with pytest.raises(CheckpointError, match=r"is not an export"):
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


def test_train_mode_is_torchvisions_at_a_batch_of_12(tmp_path: Path, rng: torch.Generator) -> None:
    """A loaded backbone has ordinary batch norms, whatever splits the run had: 12 is no multiple of 8."""
    models = pytest.importorskip("torchvision.models", reason="torchvision is an extra")
    shape = {"model__depth": 18, "model__width": 64, "model__stem": "imagenet", "data__scenes": 16, "data__size": 32}
    path = export(open_tiny(tmp_path, "moco", model__bn_splits=8, **shape))
    ours, theirs = load_backbone(path.parent).train(), models.resnet18()
    theirs.fc = nn.Identity()
    theirs.load_state_dict(load_file(path))
    images = torch.randn(12, 3, 32, 32, generator=rng)
    torch.testing.assert_close(ours(images).mean(dim=(2, 3)), theirs.train()(images), rtol=1e-5, atol=1e-5)
    for name, statistic in theirs.state_dict().items():
        torch.testing.assert_close(ours.state_dict()[name], statistic, rtol=1e-5, atol=1e-5)


def test_files_have_the_mode_that_the_umask_leaves(run: Run) -> None:
    before = os.umask(0o027)
    try:
        path = export(run)
    finally:
        os.umask(before)
    assert {file.name: file.stat().st_mode & 0o777 for file in path.parent.iterdir()} == {
        "backbone.safetensors": 0o640, "export.json": 0o640, "README.md": 0o640,
    }  # fmt: skip


def test_weights_that_are_not_finite_are_not_exported(run: Run) -> None:
    with torch.no_grad():
        run.method.encoder.backbone.layer1[0].bn1.running_var[2] = float("inf")
    with pytest.raises(NonFiniteError, match=r"layer1.0.bn1.running_var"):
        export(run)
    assert not run.folder.export.exists()


def saved(run: Run, tmp_path: Path) -> list[str]:
    """The run's folder as one that training was stopped in; as words."""
    run.folder.write_config(run.config, "demo", {})
    run.save()
    engine.train_step(run, next(run.batches.epoch()), check=False)
    run.save()
    return [str(run.folder.path), "--threads", str(torch.get_num_threads())]


def test_command_exports_any_checkpoint_of_an_unfinished_run(run: Run, tmp_path: Path, capsys: Any) -> None:
    words = saved(run, tmp_path)
    assert main(words) == 0
    assert f"backbone  {run.folder.export / 'backbone.safetensors'} (reload checked)" in capsys.readouterr().out
    found, state = load_backbone(run.folder.export).state_dict(), run.method.encoder.backbone.state_dict()
    assert found.keys() == state.keys() and all(torch.equal(found[name], state[name]) for name in state)
    previous, out = run.folder.checkpoints / "previous.pt", tmp_path / "elsewhere"
    assert main([str(previous), *words[1:]]) == 2 and "give --out DIR" in capsys.readouterr().err
    assert main([str(previous), "--out", str(out), *words[1:]]) == 0
    assert "previous.pt: moco, epoch 0, step 0" in capsys.readouterr().out
    assert not torch.equal(load_backbone(out).state_dict()["conv1.weight"], state["conv1.weight"])
    assert main([str(tmp_path / "nowhere")]) == 4 and main([str(tmp_path), "--out", str(previous)]) == 2
    assert main(["--help"]) == 0


def test_a_checkpoint_that_is_not_finite_is_neither_exported_nor_scored(run: Run, tmp_path: Path, capsys: Any) -> None:
    words = saved(run, tmp_path)
    state = checkpoint.load(checkpoint.find(run.folder.path))
    state["method"]["encoder.backbone.conv1.weight"][0] = float("nan")
    checkpoint.save(run.folder.checkpoints, state)
    for command in (lambda: main(words), lambda: evaluate(["knn", *words])):
        assert command() == 4
        assert "holds a NaN or an infinity in method.encoder.backbone.conv1.weight" in capsys.readouterr().err
    assert not run.folder.export.exists()


def sealed(facts: dict[str, Any]) -> str:
    """The text of an export.json whose checksum is right: as somebody would write it who knows how."""
    entries = {key: value for key, value in facts.items() if key != "checksum"}
    digest = hashlib.sha256(json.dumps(entries, sort_keys=True).encode()).hexdigest()
    return json.dumps({**entries, "checksum": digest})


Change = Callable[[dict[str, Any]], object]
CHANGED: dict[str, tuple[Change, str]] = {  # entries of a sealed export.json, and what is said of it
    "no sha256": (lambda facts: facts.pop("sha256"), "must hold sha256 and checksum"),
    "sha256": (lambda facts: facts.update(sha256=None), "export.json says None"),
    "no architecture": (lambda facts: facts.pop("architecture"), "must hold architecture"),
    "architecture": (lambda facts: facts.update(architecture="resnet"), "must hold architecture"),
    "no depth": (lambda facts: facts["architecture"].pop("depth"), "architecture must have the keys depth, width"),
    "another key": (lambda facts: facts["architecture"].update(colour=1), "architecture must have the keys"),
    "depth": (lambda facts: facts["architecture"].update(depth=19), "model.depth must be one of"),
    "another depth": (lambda facts: facts["architecture"].update(depth=18), "is of another network than the one built"),
    "a type": (lambda facts: facts["architecture"].update(width="8"), "a value of another type"),
    "an absurd size": (lambda facts: facts["architecture"].update(width=10**7), "model.width"),
    "stem": (lambda facts: facts["architecture"].update(stem="zzz"), "architecture.stem must be one of"),
    "another stride": (lambda facts: facts["architecture"].update(stem="cifar"), "says stem .*'stride': .2, 2"),
    "conv1": (lambda facts: facts["stem"]["conv1"].update(stride=[1, 1]), "says stem .*has .*'stride': .2, 2"),
    "maxpool": (lambda facts: facts["stem"].update(maxpool=True), "says stem .*'maxpool': True"),
    "no stem": (lambda facts: facts.pop("stem"), "says stem None"),
    "strides": (lambda facts: facts["strides"].reverse(), r"says strides \[8, 4, 2\]"),
    "backbone": (lambda facts: facts.update(architecture={"backbone": "zzz"}), "model.backbone must be"),
    "backbone of another type": (lambda facts: facts.update(architecture={"backbone": 3}), "a value of another type"),
    "own backbone": (lambda facts: facts.update(architecture={"backbone": "os:getcwd"}), "the function getcwd of"),
}
DAMAGED: dict[str, Callable[[Path], object]] = {  # files
    "empty": lambda folder: (folder / "export.json").write_text(""),
    "no object": lambda folder: (folder / "export.json").write_text("[1]"),
    "bytes": lambda folder: (folder / "export.json").write_bytes(b"\xff\xfe\x00"),
    "no weights": lambda folder: (folder / "backbone.safetensors").unlink(),
    "a folder": lambda folder: (
        (folder / "backbone.safetensors").unlink(),
        (folder / "backbone.safetensors").mkdir(),
    ),
    "truncated": lambda folder: os.truncate(folder / "backbone.safetensors", 300),
}
SEALED: dict[str, Callable[[Path], object]] = {  # weights whose hash export.json has
    "no safetensors": lambda path: path.write_bytes(b"x" * 50),
    "nothing": lambda path: path.write_bytes(b""),
    "header": lambda path: path.write_bytes((2**40).to_bytes(8, "little") + path.read_bytes()[8:]),
    "a weight less": lambda path: save_file(dict(list(load_file(path).items())[1:]), path),
    "another shape": lambda path: save_file({**load_file(path), "conv1.weight": torch.zeros(3)}, path),
    "another dtype": lambda path: save_file({**load_file(path), "bn1.weight": torch.zeros(8).double()}, path),
}


def test_every_damage_to_an_export_is_a_checkpoint_error(run: Run, tmp_path: Path) -> None:
    whole = export(run).parent
    for number, name in enumerate([*DAMAGED, *SEALED]):
        folder = shutil.copytree(whole, tmp_path / f"copy{number}")
        facts = json.loads((folder / "export.json").read_text())
        if name in SEALED:
            SEALED[name](folder / "backbone.safetensors")
            facts["sha256"] = hashlib.sha256((folder / "backbone.safetensors").read_bytes()).hexdigest()
            (folder / "export.json").write_text(sealed(facts))
        else:
            DAMAGED[name](folder)
        with pytest.raises(
            CheckpointError, match=r"cannot be read|is not an export|must hold|another network|has sha256"
        ):
            load_backbone(folder)
            pytest.fail(name)


def test_an_edited_description_is_noticed(run: Run) -> None:
    """By its checksum; and where that was made anew, by what the network itself is."""
    folder = export(run).parent
    written = json.loads((folder / "export.json").read_text())
    for name, (change, message) in CHANGED.items():
        facts = json.loads(json.dumps(written))
        change(facts)
        (folder / "export.json").write_text(json.dumps(facts))
        with pytest.raises(CheckpointError, match=r"has been edited|must hold sha256 and checksum"):
            load_backbone(folder)
            pytest.fail(name)
        (folder / "export.json").write_text(sealed(facts))
        with pytest.raises(CheckpointError, match=message):
            load_backbone(folder)
            pytest.fail(name)
    (folder / "export.json").write_text(sealed(written))
    load_backbone(folder)


class Trunk(Backbone):
    channels, strides = [8], [2]

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3, stride=2, padding=1)

    def maps(self, images: Tensor, layers: Any) -> list[Tensor]:
        return [self.conv(images)] * len(layers)


class Foreign(Method):
    """Builds a network of its own and ignores the one that the options name."""

    summary = "for these tests"

    def __init__(self, config: Any, make_encoder: Any, generators: Any):
        super().__init__(config, make_encoder, generators)
        self.encoder = Encoder(Trunk(), nn.Linear(8, 4))


def test_a_network_that_cannot_be_exported_is_refused_before_training(run: Run) -> None:
    state = torch.get_rng_state()
    check_exportable(run)
    assert torch.equal(torch.get_rng_state(), state)
    run.method = Foreign(None, None, None)
    with pytest.raises(ConfigError, match=r"a Trunk, which could not be exported.*make_encoder.*--model.backbone"):
        check_exportable(run)
