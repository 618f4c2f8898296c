"""The evaluation command: the scores of training again, replays, and its errors."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from mixfast.errors import NonFiniteError
from mixfast.evaluate.__main__ import main
from mixfast.run import checkpoint, engine
from mixfast.train.__main__ import main as train
from tests.tiny_run import open_tiny, records, words

pytestmark = pytest.mark.usefixtures("command_settings")


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("runs") / "run"
    assert train(words(out, "moco")) == 0
    return out


def test_knn_gives_the_scores_that_training_wrote(finished: Path, tmp_path: Path, capsys: Any) -> None:
    out = tmp_path / "run"
    shutil.copytree(finished, out)
    before = records(out)
    assert main(["knn", str(out), "--baselines", "--threads", "1"]) == 0
    printed = capsys.readouterr().out
    assert "epoch 3, step 12; k = 5, temperature 0.1" in printed
    scores = json.loads((out / "evaluations.jsonl").read_text())["scores"]
    keys = ("knn_z", "knn_h")
    scored = [line for line in before if line["kind"] in ("baseline", "eval")]
    expected = {line["name"]: {k: line[k] for k in keys if k in line} for line in scored}
    assert scores == expected  # the dictionary keeps the last evaluation of each name
    assert records(out) == before  # nothing of the run is touched


def test_knn_takes_k_temperature_and_an_older_checkpoint(finished: Path, tmp_path: Path, capsys: Any) -> None:
    out = tmp_path / "run"
    shutil.copytree(finished, out)
    previous = out / "checkpoints" / "previous.pt"
    assert main(["knn", str(previous), "--k", "1000", "--temperature", "0.5"]) == 0
    assert "epoch 2, step 8; k = 64, temperature 0.5" in capsys.readouterr().out
    assert json.loads((out / "evaluations.jsonl").read_text())["checkpoint"] == "previous.pt"


def test_scoring_builds_nothing_of_a_training(finished: Path, tmp_path: Path, capsys: Any, monkeypatch: Any) -> None:
    """A run that was trained as a CUDA graph is scored on a machine without a GPU."""
    out = tmp_path / "run"
    shutil.copytree(finished, out)
    content = json.loads((out / "config.json").read_text())
    content["values"]["train"]["graph"] = "on"
    (out / "config.json").write_text(json.dumps(content))
    for name in ("state.build_optimizer", "state.Batches", "state.StepGraph", "state.Clock", "console.Console.task"):
        monkeypatch.setattr(f"mixfast.run.{name}", None)
    assert main(["knn", str(out), "--device", "cpu"]) == 0
    assert "moco" in capsys.readouterr().out


def test_replay_names_the_place_where_a_nan_begins(tmp_path: Path, capsys: Any) -> None:
    out = tmp_path / "run"
    assert train([*words(out, "moco", train__epochs=1, eval__every=0), "--eval.no-baselines"]) == 0
    run = open_tiny(out, "moco", train__epochs=1)
    with torch.no_grad():
        run.method.encoder.head.weight[0] = 3e38  # finite, but not what it multiplies
    with pytest.raises(NonFiniteError):
        engine.train_epoch(run)
    capsys.readouterr()
    with pytest.warns(UserWarning, match="Error detected in"):  # autograd shows the forward call it belongs to
        assert main(["replay", str(out)]) == 0
    printed = capsys.readouterr().out
    assert "step 0, epoch 0: saved because loss = nan" in printed and "original         nan" in printed
    assert "first in the backward pass" in printed and "returned nan values" in printed


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["know", "x"], 2, "unknown command 'know'; did you mean knn? Known: knn, linear"),
        (["knn", "nowhere"], 4, "no checkpoint in nowhere"),
        (["replay", "nowhere"], 4, "nowhere is not the folder of a run"),
        (["knn"], 2, "run"),
        (["knn", "x", "--kk", "3"], 2, "--kk"),
    ],
)
def test_errors_have_codes(arguments: list[str], code: int, message: str, capsys: Any) -> None:
    assert main(arguments) == code
    assert message.lower() in capsys.readouterr().err.lower()


def test_errors_about_a_run(finished: Path, capsys: Any) -> None:
    assert main(["replay", str(finished)]) == 4
    assert "met no NaN or infinity" in capsys.readouterr().err
    for option, message in (("--temperature 0", "--temperature must be above 0"), ("--k 0", "--k must be at")):
        assert main(["knn", str(finished), *option.split()]) == 2
        assert message in capsys.readouterr().err
    assert main(["knn", str(finished), "--device", "cuda:77"]) == 7
    assert "Use --device cpu" in capsys.readouterr().err
    assert main(["knn", str(finished), "--device", "cuda:\N{SUPERSCRIPT TWO}"]) == 2
    assert "--device cuda:\N{SUPERSCRIPT TWO}: must be auto, cpu, cuda or cuda:N" in capsys.readouterr().err


@pytest.mark.parametrize("arguments", [[], ["--help"], ["knn", "--help"], ["replay", "--help"]], ids=str)
def test_help(arguments: list[str], capsys: Any) -> None:
    assert main(arguments) == 0
    assert "usage: python -m mixfast.evaluate" in capsys.readouterr().out


DIVERGING = {"optim__lr": 1e12, "train__log_every": 100, "train__checkpoint_seconds": 1e-9, "eval__every": 0}


def test_a_diverged_run_keeps_finite_checkpoints_and_can_be_replayed(tmp_path: Path, capsys: Any) -> None:
    """The first bad step is none that is logged: training notices later, by the next checkpoint or record."""
    out = tmp_path / "run"
    assert train([*words(out, "approach1", **DIVERGING), "--eval.no-baselines"]) == 5
    error = capsys.readouterr().err
    assert "running_var = inf" in error or "= nan" in error
    assert "It began in a step that was not checked, after the checkpoint of step" in error
    assert "weights have not moved" not in error
    state = checkpoint.load(checkpoint.find(out))  # what it holds is finite, or training would refuse it
    assert state["step"] >= 1 and all(value.isfinite().all() for value in state["method"].values())
    files = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    assert main(["replay", str(out), "--threads", "1"]) == 0
    printed = capsys.readouterr().out
    assert f"checking every step from {state['step']} on, the newest checkpoint's" in printed
    assert f"step {state['step']}, epoch 0" in printed and "largest weight before it" in printed
    assert {path: path.read_bytes() for path in out.rglob("*") if path.is_file()} == files
    assert train(["--resume", str(out)]) == 5  # it begins, and meets the same step
    assert f"continuing approach1 after step {state['step']} of 12" in capsys.readouterr().out
    assert main(["knn", str(out), "--threads", "1"]) == 5  # weights of 1e12: finite, but their features are not
    assert "holds a NaN or an infinity: the network has diverged" in capsys.readouterr().err


def test_replay_finds_the_step_between_two_looks(tmp_path: Path, capsys: Any) -> None:
    """A method whose loss is infinite at step 2, at which nobody looked; the run noticed at step 3."""
    out = tmp_path / "run"
    changes = {"train__log_every": 4, "train__epochs": 1, "eval__every": 0}
    method = "tests.evaluate.poisoned"
    assert train([*words(out, method, **changes), "--eval.no-baselines"]) == 5
    error = capsys.readouterr().err
    assert "step 3 (epoch 0), precision fp32: loss = nan" in error and "after the checkpoint of step 0" in error
    assert checkpoint.load(checkpoint.find(out))["step"] == 0
    assert main(["replay", str(out), "--threads", "1"]) == 0
    printed = capsys.readouterr().out
    assert "the run noticed at step 3" in printed and "step 2, epoch 0: saved because loss = inf" in printed


@pytest.mark.parametrize("damage", [b"", b"half", b"PK\x03\x04" + bytes(99)], ids=str)
def test_damaged_notes_of_a_nan_are_named(damage: bytes, finished: Path, tmp_path: Path, capsys: Any) -> None:
    out = shutil.copytree(finished, tmp_path / "run")
    (out / "nonfinite.pt").write_bytes(damage)
    assert main(["replay", str(out)]) == 4
    assert "nonfinite.pt cannot be read" in capsys.readouterr().err


def test_a_configuration_that_is_not_the_checkpoints_is_refused(finished: Path, tmp_path: Path, capsys: Any) -> None:
    """Else other images would be scored than those that it was trained on."""
    out = shutil.copytree(finished, tmp_path / "run")
    content = json.loads((out / "config.json").read_text())
    content["values"]["seed"] = 5
    (out / "config.json").write_text(json.dumps(content))
    assert main(["knn", str(out), "--threads", "1"]) == 4
    assert "belongs to another configuration:\n  seed: saved 0, wanted 5" in capsys.readouterr().err
