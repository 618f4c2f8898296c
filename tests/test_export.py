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
        "backbone.safetensors": 0o640, "export.json": 0o640,
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
        assert "is not finite: method.encoder.backbone.conv1.weight" in capsys.readouterr().err
    assert not run.folder.export.exists()


Damage = Callable[[Path, dict[str, Any]], object]
DAMAGED: dict[str, Damage] = {
    "empty": lambda folder, _: (folder / "export.json").write_text(""),
    "no object": lambda folder, _: (folder / "export.json").write_text("[1]"),
    "bytes": lambda folder, _: (folder / "export.json").write_bytes(b"\xff\xfe\x00"),
    "no sha256": lambda _, facts: facts.pop("sha256"),
    "sha256": lambda _, facts: facts.update(sha256=None),
    "no architecture": lambda _, facts: facts.pop("architecture"),
    "architecture": lambda _, facts: facts.update(architecture="resnet"),
    "no depth": lambda _, facts: facts["architecture"].pop("depth"),
    "another key": lambda _, facts: facts["architecture"].update(colour=1),
    "depth": lambda _, facts: facts["architecture"].update(depth=19),
    "another depth": lambda _, facts: facts["architecture"].update(depth=18),
    "a type": lambda _, facts: facts["architecture"].update(width="8"),
    "an absurd size": lambda _, facts: facts["architecture"].update(width=10**7),
    "stem": lambda _, facts: facts["architecture"].update(stem="zzz"),
    "backbone": lambda _, facts: facts.update(architecture={"backbone": "zzz"}),
    "backbone of another type": lambda _, facts: facts.update(architecture={"backbone": 3}),
    "own backbone": lambda _, facts: facts.update(architecture={"backbone": "os:getcwd"}),
    "no weights": lambda folder, _: (folder / "backbone.safetensors").unlink(),
    "a folder": lambda folder, _: (
        (folder / "backbone.safetensors").unlink(),
        (folder / "backbone.safetensors").mkdir(),
    ),
    "truncated": lambda folder, _: os.truncate(folder / "backbone.safetensors", 300),
}
SEALED: dict[str, Callable[[Path], object]] = {
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
            (folder / "export.json").write_text(json.dumps(facts))
        else:
            before = json.dumps(facts)
            DAMAGED[name](folder, facts)
            if json.dumps(facts) != before:
                (folder / "export.json").write_text(json.dumps(facts))
        with pytest.raises(CheckpointError):
            load_backbone(folder)
            pytest.fail(name)


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
