"""The evaluation command: the scores of training again, replays, and its errors."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from mixfast.errors import NonFiniteError
from mixfast.evaluate.__main__ import main
from mixfast.run import engine
from mixfast.train.__main__ import main as train
from tests.tiny_run import open_tiny, process_settings_kept, records, words


@pytest.fixture(scope="module", autouse=True)
def settings() -> Iterator[None]:
    with process_settings_kept():
        yield


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
        run.method.encoder.head.weight[0, 0] = float("nan")
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
