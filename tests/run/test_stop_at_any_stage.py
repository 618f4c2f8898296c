"""Signals outside of the steps: a true status, a message, and a way back to the bits of a run that was left alone."""

import json
import signal
import threading
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from mixfast.train.__main__ import main
from tests.tiny_run import KILLED, assert_same, last_state, process_settings_kept, records, train_in_child, words

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Forty images in two classes."""
    root, generator = tmp_path_factory.mktemp("images"), torch.Generator().manual_seed(0)
    for index in range(40):
        path = root / f"class{index % 2}" / f"{index}.png"
        path.parent.mkdir(exist_ok=True)
        Image.fromarray(torch.randint(256, (16, 16, 3), dtype=torch.uint8, generator=generator).numpy()).save(path)
    return root


def tiny(out: Path, images: Path) -> list[str]:
    data = {"data__kind": "folder", "data__path": images, "data__workers": 0}
    return [*words(out, "moco", train__epochs=2, eval__every=1, **data), "--data.no-cache"]


@pytest.fixture(scope="module")
def undisturbed(images: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    parent = tmp_path_factory.mktemp("undisturbed")
    assert train_in_child(tiny(parent / "run", images), parent / "log") == 0, (parent / "log").read_text()
    return parent / "run"


@pytest.mark.parametrize(
    ("where", "number", "code", "message"),
    [
        ("mixfast.train.launch:load", signal.SIGTERM, 143, "stopped before training began (SIGTERM)\nbegin it with"),
        ("mixfast.data.decode:decode_file", signal.SIGINT, 130, "stopped before training began (SIGINT)"),
        ("mixfast.data.decode:decode_file", signal.SIGKILL, KILLED, ""),
        ("mixfast.train.trainings:build", signal.SIGHUP, 129, "stopped before training began (SIGHUP)"),
        ("mixfast.run.monitor:score_pixels", signal.SIGHUP, 129, "stopped by SIGHUP; the state is saved\ncheckpoint"),
        ("mixfast.run.monitor:score", signal.SIGTERM, 143, "stopped by SIGTERM; the state is saved\ncheckpoint"),
        ("mixfast.train.trainings:export", signal.SIGTERM, 143, "stopped by SIGTERM; the state is saved\ncheckpoint"),
        ("mixfast.train.report:write", signal.SIGHUP, 129, "stopped by SIGHUP; the state is saved\ncheckpoint"),
    ],
)
def test_any_stage(
    where: str, number: int, code: int, message: str, images: Path, undisturbed: Path, tmp_path: Path
) -> None:
    out, log = tmp_path / "run", tmp_path / "log"
    assert train_in_child(tiny(out, images), log, [number], where=where) == code, log.read_text()
    text, status = log.read_text(), json.loads((out / "status.json").read_text())
    assert message in text and "broken" not in text and "could not be read" not in text
    if number != signal.SIGKILL:
        assert (status["state"], status["exit_code"]) == ("stopped", code)
        assert f"python -m mixfast.train --resume {out}" in text
        assert message.splitlines()[0] in (out / "log.txt").read_text()
    assert train_in_child(["--resume", str(out)], log) == 0, log.read_text()
    assert_same(last_state(out), last_state(undisturbed))
    assert records(out) == records(undisturbed)


def test_what_is_trained_beside_it(images: Path, tmp_path: Path) -> None:
    out, log = tmp_path / "run", tmp_path / "log"
    arguments = [*tiny(out, images)[:-2], "--data.no-cache", "--compare", "moco_cutmix"]
    assert train_in_child(arguments, log, [signal.SIGTERM], where="mixfast.train.trainings:open_companion") == 143
    assert json.loads((out / "status.json").read_text())["state"] == "stopped"
    assert train_in_child(["--resume", str(out)], log) == 0, log.read_text()
    assert json.loads((out / "compare" / "moco_cutmix" / "status.json").read_text())["state"] == "finished"


def test_while_a_resumed_run_is_loaded(undisturbed: Path, images: Path, tmp_path: Path) -> None:
    out, log = tmp_path / "run", tmp_path / "log"
    assert train_in_child(tiny(out, images), log, [signal.SIGKILL], at_step=3) == KILLED
    before = (out / "log.txt").read_bytes(), (out / "command.txt").read_bytes(), records(out)
    code = train_in_child(["--resume", str(out)], log, [signal.SIGINT], where="mixfast.train.launch:load")
    assert code == 130
    text, status = log.read_text(), json.loads((out / "status.json").read_text())
    assert text.rpartition("stopped before training began (SIGINT)\n")[2].splitlines() == [
        f"checkpoint: {out / 'checkpoints' / 'last.pt'}",
        f"continue with: python -m mixfast.train --resume {out}",
    ]
    assert (status["state"], status["exit_code"]) == ("stopped", 130)
    assert before == ((out / "log.txt").read_bytes(), (out / "command.txt").read_bytes(), records(out))
    assert train_in_child(["--resume", str(out)], log) == 0, log.read_text()
    assert_same(last_state(out), last_state(undisturbed))


def test_overwriting_spares_the_earlier_run_until_training_begins(images: Path, tmp_path: Path) -> None:
    out, log = tmp_path / "run", tmp_path / "log"
    arguments = [*tiny(out, images)[:-1], "--data.no-cache", "--eval.no-baselines"]
    assert train_in_child(arguments, log) == 0, log.read_text()
    before = {path: path.read_bytes() for path in out.rglob("*") if path.is_file() and path.name != "lock"}
    code = train_in_child([*arguments, "--overwrite"], log, [signal.SIGTERM], where="mixfast.data.decode:decode_file")
    assert code == 143
    assert before == {path: path.read_bytes() for path in out.rglob("*") if path.is_file() and path.name != "lock"}


def test_main_in_a_thread(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    """Python lets only the main thread handle signals."""
    monkeypatch.setattr("mixfast.run.engine.train_epoch", lambda run: None)
    codes: list[int] = []
    arguments = [*words(tmp_path / "run", "moco", train__epochs=1), "--eval.no-baselines"]
    with process_settings_kept():
        thread = threading.Thread(target=lambda: codes.append(main(arguments)))
        thread.start()
        thread.join()
    assert codes == [0], capsys.readouterr().err
