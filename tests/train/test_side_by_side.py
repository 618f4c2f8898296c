"""Methods that train side by side on a CPU: the bits that each has by itself, one stop, one error, and a way back."""

import json
import signal
from pathlib import Path
from typing import Any

import pytest

from mixfast.export import export
from mixfast.run.state import Run
from mixfast.train.__main__ import main
from tests.tiny_run import assert_same, last_state, process_settings_kept, records, train_in_child, words

pytestmark = pytest.mark.slow
OTHERS = ("moco", "simclr")


def tiny(out: Path, threads: int) -> list[str]:
    data = {"data__scenes": 32, "train__epochs": 2, "eval__every": 1, "train__threads": threads}
    return [*words(out, "moco_cutmix", OTHERS, **data), "--eval.no-baselines"]


def folders(out: Path) -> list[Path]:
    return [out, *(out / "compare" / name for name in OTHERS)]


def assert_equal_runs(out: Path, expected: Path) -> None:
    for folder, other in zip(folders(out), folders(expected), strict=True):
        assert json.loads((folder / "status.json").read_text())["state"] == "finished"
        states = [last_state(one) for one in (folder, other)]
        for state in states:
            del state["torch_generators"]  # torch's own, from which no method of the package draws
        assert [state.pop("config")["train.threads"] for state in states] == [3, 1]
        assert_same(*states)
        assert records(folder) == records(other)


@pytest.fixture(scope="module")
def in_turn(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("in_turn") / "run"
    with process_settings_kept():
        assert main(tiny(out, threads=1)) == 0
    return out


def test_a_share_of_the_threads_each_and_the_bits_of_one_after_the_other(in_turn: Path, tmp_path: Path) -> None:
    out, log = tmp_path / "run", tmp_path / "log"
    assert train_in_child(tiny(out, threads=3), log) == 0, log.read_text()
    assert_equal_runs(out, in_turn)
    assert (out / "log.txt").read_text().count("knn_z   knn_h") == 1  # one table
    assert (in_turn / "log.txt").read_text().count("knn_z   knn_h") == 3


def test_a_signal_saves_all_of_them(in_turn: Path, tmp_path: Path) -> None:
    out, log = tmp_path / "run", tmp_path / "log"
    assert train_in_child(tiny(out, threads=3), log, [signal.SIGTERM], at_step=2) == 143, log.read_text()
    assert "stopped by SIGTERM; the state is saved" in log.read_text()
    assert all((folder / "checkpoints" / "last.pt").is_file() for folder in folders(out))
    assert train_in_child(["--resume", str(out)], log) == 0, log.read_text()
    assert_equal_runs(out, in_turn)


def test_an_error_in_one_stops_the_others_in_order(
    in_turn: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    def full(run: Run) -> None:
        if run.config.method_name == "moco":
            raise OSError(28, "No space left on device", "backbone.safetensors")
        export(run)

    out = tmp_path / "run"
    with process_settings_kept(), monkeypatch.context() as patch:
        patch.setattr("mixfast.train.trainings.export", full)
        assert main(tiny(out, threads=3)) != 0
    assert "No space left on device" in capsys.readouterr().err
    assert json.loads((out / "status.json").read_text())["state"] == "failed"
    with process_settings_kept():
        assert main(["--resume", str(out)]) == 0
    assert_equal_runs(out, in_turn)
