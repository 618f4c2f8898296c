"""--init: a run begins with the weights of a file, says which, and needs the file no more."""

import json
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from mixfast import initial_weights
from mixfast.errors import CheckpointError
from mixfast.evaluate.__main__ import main as evaluate
from mixfast.evaluate.runs import ScoringOptions, load_runs
from mixfast.models import ModelConfig, build_encoder
from mixfast.train.__main__ import main
from tests.tiny_run import assert_same, last_state, process_settings_kept, records, train_in_child, words

SMALL = ModelConfig(depth=8, width=8, stem="cifar_s2", dim=8)


def begin(out: Path, init: Path, method: str = "moco", compare: tuple[str, ...] = (), **changes: Any) -> list[str]:
    """Words of a run of two epochs that begins with `init`."""
    few = {"train__epochs": 2, "eval__every": 0, **changes}
    return [*words(out, method, compare, **few), "--init", str(init)]


@pytest.fixture(scope="module")
def first(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The folder of a finished run, the origin of all others."""
    folder = tmp_path_factory.mktemp("first") / "run"
    with process_settings_kept():
        assert main([*words(folder, "moco", seed=1, train__epochs=1), "--eval.no-baselines"]) == 0
        yield folder


@pytest.fixture(scope="module")
def second(first: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that began with the first one's export, and one of another method beside it."""
    folder = tmp_path_factory.mktemp("second") / "run"
    assert main(begin(folder, first / "export", compare=("simclr",))) == 0
    return folder


def backbone_of(state: dict[str, Any], prefix: str) -> dict[str, Tensor]:
    return {key.removeprefix(prefix): value for key, value in state["method"].items() if key.startswith(prefix)}


@pytest.mark.slow
def test_query_and_key_encoder_begin_with_another_runs_checkpoint(first: Path, tmp_path: Path) -> None:
    """With a rate of 0 no weight moves: what the run ends with is what it began with."""
    assert main([*begin(tmp_path / "run", first, optim__lr=0, train__epochs=1), "--eval.no-baselines"]) == 0
    theirs, ours = backbone_of(last_state(first), "encoder.backbone."), last_state(tmp_path / "run")
    for prefix in ("encoder.backbone.", "key_encoder.backbone."):
        weights = {key: value for key, value in backbone_of(ours, prefix).items() if key.endswith(("weight", "bias"))}
        assert len(weights) > 20
        for key, value in weights.items():
            assert torch.equal(value, theirs[key]), f"{prefix}{key}"
    head = "encoder.head.weight"  # drawn from this run's seed
    assert not torch.equal(ours["method"][head], last_state(first)["method"][head])


@pytest.mark.slow
def test_same_seed_and_weights_give_the_same_bits_also_without_the_file(
    first: Path, second: Path, tmp_path: Path, capsys: Any
) -> None:
    """Stopped before its first checkpoint, and again after one, with the weights moved away in between."""
    origin = tmp_path / "origin.safetensors"
    origin.write_bytes((first / "export" / "backbone.safetensors").read_bytes())
    out, log = tmp_path / "run", tmp_path / "log"
    stopped = {"send": (signal.SIGKILL,), "where": "step"}
    assert train_in_child(begin(out, origin), log, at_step=1, **stopped) < 0
    origin.unlink()
    assert train_in_child(["--resume", str(out)], log, send=(signal.SIGTERM,), at_step=5, where="step") == 143
    assert main(["--resume", str(out), "--init", str(first)]) == 2
    assert "omit the preset, --method, --out, --overwrite, --init and --config" in capsys.readouterr().err
    assert main(["--resume", str(out)]) == 0
    assert "54 of the 54 keys" in capsys.readouterr().out
    mine, theirs = last_state(out), last_state(second)
    for state in (mine, theirs):
        del state["config"]["init"], state["config"]["compare"]  # the names of the files differ
        del state["evaluated"]
    assert_same(mine, theirs)


@pytest.mark.slow
def test_untrained_is_the_network_with_the_initial_weights(first: Path, second: Path, capsys: Any) -> None:
    """In the training's own baseline and in evaluations, also of the run beside it."""
    weights = load_file(first / "export" / "backbone.safetensors")
    for folder in (second, second / "compare" / "simclr"):
        (run,) = load_runs(ScoringOptions((folder,)))
        for name, value in run.fresh.backbone.state_dict().items():
            assert torch.equal(value, weights[name]), name
        untrained = run.untrained().encoder.backbone.state_dict()
        assert torch.equal(untrained["conv1.weight"], weights["conv1.weight"])
        assert not torch.equal(untrained["bn1.running_mean"], weights["bn1.running_mean"])  # those of the data
    (baseline,) = [line for line in records(second) if line.get("name") == "untrained"]
    capsys.readouterr()
    assert evaluate(["knn", str(second), "--baselines"]) == 0
    (row,) = [line.split() for line in capsys.readouterr().out.splitlines() if line.startswith("untrained")]
    assert [float(cell) for cell in row[1:3]] == [round(baseline[key], 2) for key in ("knn_z", "knn_h")]


@pytest.mark.slow
def test_config_record_and_report_say_where_it_came_from(first: Path, second: Path) -> None:
    content = (first / "export" / "backbone.safetensors").read_bytes()
    digest = json.loads((first / "export" / "export.json").read_text())["sha256"]
    facts = json.loads((second / "initial.json").read_text())["origin"]
    assert facts["sha256"] == digest and facts["path"] == str(first / "export")
    assert sorted(facts["used"]) == sorted(load_file(first / "export" / "backbone.safetensors")) and not facts["unused"]
    config = json.loads((second / "config.json").read_text())
    assert config["values"]["init"] == f"export@{digest[:12]}" and config["origins"]["init"] == "command line"
    sentence = f"54 of the 54 keys of {first / 'export'} (sha256 {digest}) used; not used: none"
    assert sentence in (second / "report.md").read_text() and sentence in (second / "log.txt").read_text()
    assert len(content) == (second / "initial.safetensors").stat().st_size


@pytest.mark.slow
def test_a_lost_copy_is_named(second: Path, tmp_path: Path, capsys: Any) -> None:
    (run,) = load_runs(ScoringOptions((second,)))
    kept = second / "initial.safetensors"
    content = kept.read_bytes()
    try:
        kept.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
        assert evaluate(["knn", str(second), "--baselines"]) == 4
        assert "bits of initial.safetensors have changed" in capsys.readouterr().err
        assert evaluate(["knn", str(second)]) == 0  # the trained network needs it not
    finally:
        kept.write_bytes(content)
    assert run.fresh.backbone.state_dict()


def drawn(model: ModelConfig, seed: int = 3) -> dict[str, Tensor]:
    return build_encoder(model, torch.Generator().manual_seed(seed)).backbone.state_dict()


def read(path: Path, model: ModelConfig) -> initial_weights.InitialWeights:
    return initial_weights.read(path, model, print)


@pytest.mark.parametrize(
    ("prefix", "beside"),
    [
        ("", {"fc.weight": torch.zeros(10, 64), "fc.bias": torch.zeros(10)}),
        ("module.", {"module.fc.weight": torch.zeros(10, 64)}),
        ("backbone.", {"projector.0.weight": torch.zeros(3, 3), "momentum_backbone.conv1.weight": torch.zeros(3)}),
        ("encoder_q.", {"encoder_k.conv1.weight": torch.zeros(3), "queue": torch.zeros(2, 2)}),
    ],
)
def test_names_of_other_programs(prefix: str, beside: dict[str, Tensor], tmp_path: Path) -> None:
    weights = drawn(SMALL)
    torch.save({f"{prefix}{name}": value for name, value in weights.items()} | beside, tmp_path / "net.pth")
    found = read(tmp_path / "net.pth", SMALL)
    assert_same(found.weights, dict(weights))
    assert sorted(found.origin.used) == sorted(f"{prefix}{name}" for name in weights)
    assert found.origin.unused == sorted(beside)
    assert found.origin.notes == ["the stride of its 3x3 stem is not in it: taken as 2, by model.stem"]


def test_torchvisions_resnet_in_mocos_checkpoint_gives_torchvisions_map(tmp_path: Path, rng: torch.Generator) -> None:
    models = pytest.importorskip("torchvision.models", reason="torchvision is an extra")
    theirs = models.resnet18()
    for norm in (module for module in theirs.modules() if isinstance(module, nn.BatchNorm2d)):
        norm.running_mean.uniform_(-1, 1, generator=rng)
        norm.running_var.uniform_(0.5, 2, generator=rng)
    state = {f"module.encoder_q.{name}": value for name, value in theirs.state_dict().items()}
    state |= {f"module.encoder_k.{name}": torch.zeros(()) for name in theirs.state_dict()}
    moco = {"epoch": 200, "arch": "resnet18", "state_dict": {**state, "module.queue": torch.zeros(128, 8)}}
    torch.save(moco, tmp_path / "moco.pth.tar")
    for model in (ModelConfig(stem="imagenet"), ModelConfig(backbone="torchvision:resnet18")):
        found = read(tmp_path / "moco.pth.tar", model)
        ours = build_encoder(model, torch.Generator()).backbone.eval()
        found.load_into(ours)
        images = torch.randn(2, 3, 32, 32, generator=rng)
        trunk = nn.Sequential(*list(theirs.eval().children())[:-2])
        with torch.no_grad():
            assert torch.equal(ours(images), trunk(images))
        assert len(found.origin.used) == 120 and len(found.origin.unused) == 2 + 122 + 1 and not found.origin.notes
        assert "not used: module.encoder_k 122, module.encoder_q 2, module.queue" in str(found.origin)


def test_half_precision_and_missing_counters_are_taken(tmp_path: Path) -> None:
    weights = drawn(SMALL)
    halves = {name: value.half() for name, value in weights.items() if value.is_floating_point()}
    save_file(halves, tmp_path / "net.safetensors")
    found = read(tmp_path / "net.safetensors", SMALL)
    assert found.weights["conv1.weight"].equal(halves["conv1.weight"].float())
    assert found.weights["bn1.num_batches_tracked"] == 0
    assert "9 num_batches_tracked are not in it and begin at 0" in found.origin.notes


def without(name: str) -> Callable[[dict[str, Tensor]], dict[str, Tensor]]:
    return lambda weights: {key: value for key, value in weights.items() if key != name}


def poisoned(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    weights["layer2.0.conv1.weight"][0, 0, 0, 0] = float("nan")
    return weights


class Code:
    """What a pickle could run."""

    def __reduce__(self) -> Any:
        return print, ("run",)


@pytest.mark.parametrize(
    ("made", "message"),
    [
        (
            drawn(ModelConfig(depth=8, width=16, stem="cifar_s2")),
            r"--model.depth 8 --model.width 16 --model.stem cifar",
        ),
        (drawn(ModelConfig(depth=18, width=8)), r"ResNet-8 of width 8 with the 3x3 stem cifar_s2.*--model.depth 18"),
        (drawn(ModelConfig(depth=20, width=8)), r"--model.depth 20 .*more than that network has: 72 \(layer1.1.conv1"),
        (
            drawn(ModelConfig(depth=8, width=8, stem="imagenet")),
            r"--model.stem imagenet.*conv1.weight \[8, 3, 7, 7\], n",
        ),
        (without("layer3.0.bn2.weight")(drawn(SMALL)), r"missing: 1 \(layer3.0.bn2.weight\)"),
        (poisoned(drawn(SMALL)), r"a NaN or an infinity in 1 \(layer2.0.conv1.weight\)"),
        (
            {"conv1.weight": torch.zeros(8, 3, 3, 3, dtype=torch.int64)},
            r"conv1.weight whole numbers \[8, 3, 3, 3\], not",
        ),
        ({"a.weight": torch.zeros(3)}, r"none of the names of ResNet-8 .*module.encoder_q.*got 1 \(a.weight\)"),
        ({"epoch": 3, "name": "x"}, r"must hold a state dict, tensors by name; got an object with epoch, name"),
        (Code(), r"cannot be read as weights .*never code"),
    ],
)
def test_what_is_not_this_networks_is_refused(made: Any, message: str, tmp_path: Path, capsys: Any) -> None:
    torch.save(made, tmp_path / "net.pth")
    with pytest.raises(CheckpointError, match=rf"--init .*net.pth: .*{message}"):
        read(tmp_path / "net.pth", SMALL)
    assert "run" not in capsys.readouterr().out.split()


@pytest.mark.slow
def test_a_stride_that_no_shape_shows_is_refused(first: Path, tmp_path: Path, capsys: Any) -> None:
    """By an export, by the file in it, and by a checkpoint; and nothing is left behind."""
    for path in ("export", "export/backbone.safetensors", ".", "checkpoints/last.pt"):
        assert main(begin(tmp_path / "run", first / path, model__stem="cifar")) == 4
        error = capsys.readouterr().err
        assert "its network has depth 8, width 8, stem cifar_s2, and this run's has" in error
        assert "Give --model.stem cifar_s2" in error
    (tmp_path / "empty").mkdir()
    for path, message in ((first / "nothing", "no such file or folder"), (tmp_path / "empty", "no checkpoint in")):
        assert main(begin(tmp_path / "run", path)) == 4
        assert message in capsys.readouterr().err
    damaged = tmp_path / "net.safetensors"
    damaged.write_bytes((first / "export" / "backbone.safetensors").read_bytes()[:999])
    assert main(begin(tmp_path / "run", damaged)) == 4
    assert "cannot be read as weights" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


MODULE = """
from torch import nn

def chain(width=8):
    layers = nn.Conv2d(3, width, 3, 2, 1), nn.BatchNorm2d(width), nn.ReLU(), nn.Conv2d(width, 2 * width, 3, 2, 1)
    return nn.Sequential(*layers)
"""


@pytest.mark.slow
def test_a_backbone_of_ones_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    """From a run of the same factory, its export, and a file with the factory's own names."""
    (tmp_path / "nets_to_begin_with.py").write_text(MODULE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    own = {"model__backbone": "nets_to_begin_with:chain", "train__epochs": 1}
    assert main([*words(Path("a"), "moco", seed=1, **own), "--eval.no-baselines"]) == 0
    weights = load_file("a/export/backbone.safetensors")
    torch.save({f"backbone.{name}": value for name, value in weights.items()}, "net.pth")
    assert main([*begin(Path("b"), Path("a"), optim__lr=0, **own), "--eval.no-baselines"]) == 0
    assert torch.equal(load_file("b/export/backbone.safetensors")["0.weight"], weights["0.weight"])
    for path in ("a/export", "net.pth"):
        model = ModelConfig(backbone="nets_to_begin_with:chain")
        assert_same(read(Path(path), model).weights, weights)
    wider = {**own, "model__backbone": "nets_to_begin_with:chain,width=16"}
    for path in ("a", "a/export"):
        assert main(begin(Path("c"), Path(path), **wider)) == 4
        assert "its network has backbone nets_to_begin_with:chain, and this run's" in capsys.readouterr().err
