"""What is refused before training leaves nothing behind; and what a run goes on without."""

import io
import json
import os
import re
import shutil
import socket
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from mixfast import errors
from mixfast.compare.__main__ import main as compare
from mixfast.evaluate.__main__ import main as evaluate
from mixfast.profile.__main__ import main as profile
from mixfast.run.claim import Claim
from mixfast.run.failure import USER_CODE
from mixfast.run.signals import STOP_SIGNALS
from mixfast.train.__main__ import main
from tests.tiny_run import words

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("command_settings")]
ROOT = Path(__file__).parents[2]


def write_images(root: Path, seed: int, count: int = 40) -> Path:
    generator = torch.Generator().manual_seed(seed)
    for index in range(count):
        path = root / f"class{index % 2}" / f"{index}.png"
        path.parent.mkdir(exist_ok=True, parents=True)
        Image.fromarray(torch.randint(256, (16, 16, 3), dtype=torch.uint8, generator=generator).numpy()).save(path)
    return root


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a finished run on the images beside it."""
    parent = tmp_path_factory.mktemp("finished")
    data = {"data__kind": "folder", "data__path": write_images(parent / "images", 0), "data__workers": 0}
    arguments = words(parent / "run", "moco", train__epochs=1, **data)
    assert main([*arguments, "--data.no-cache", "--eval.no-baselines"]) == 0
    write_images(parent / "others", 1)
    return parent / "run"


def traces(folder: Path) -> dict[Path, tuple[int, bytes]]:
    """Time and content of every file, but for the name of the last process that had the folder."""
    files = [path for path in folder.rglob("*") if path.is_file() and path.name != "lock"]
    return {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in files}


@pytest.mark.parametrize(
    ("options", "code"),
    [
        ("--train.epochs 0", 2),
        ("--train.device cpu:1", 2),
        ("--train.device cuda:77", 7),
        ("--train.graph on", 2),
        ("--train.batch_size 128 --method.queue_size 128", 2),
        ("--model.backbone no_such_module:factory", 2),
        ("--method no.such.method", 2),
        ("--compare no_such_method", 2),
        ("--data.kind folder --data.path /no/such/folder", 3),
        ("--data.kind folder", 2),
        ("--data.kind no_such_module:factory", 2),
        ("--data.kind cifar10 --data.path /no/such/folder", 3),
        ("--data.limit 8", 2),
    ],
)
def test_a_start_that_is_refused_leaves_nothing(
    options: str, code: int, tmp_path: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    keys = options.split()[::2]
    groups = [
        ["--data.kind", "scenes"],
        ["--data.scenes", "64"],
        ["--data.size", "16"],
        ["--model.depth", "8"],
        ["--model.width", "8"],
    ]
    groups += [["--method.queue_size", "64"], ["--train.batch_size", "16"], ["--train.epochs", "1"]]
    small = [word for group in groups if group[0] not in keys for word in group]
    if "--model.backbone" in keys:
        small = [word for word in small if word not in ("--model.depth", "--model.width", "8")]
    method = [] if "--method" in keys else ["--method", "moco"]
    for out in ([], ["--out", "a/b/run"]):
        assert main([*out, *method, *small, *options.split()]) == code
        assert capsys.readouterr().err.startswith("error: ")
        assert os.listdir() == []


@pytest.mark.parametrize(
    ("options", "code"),
    [
        (["--train.graph", "on"], 2),
        (["--train.device", "cuda:77"], 7),
        (["--optim.lr", "0.5"], 4),
        (["--data.path", "/no/such/folder"], 3),
        (["--data.path", "others"], 4),
        (["damaged"], 4),
    ],
)
def test_a_resume_that_is_refused_changes_nothing(
    options: list[str], code: int, finished: Path, tmp_path: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(finished.parent)
    out = tmp_path / "run"
    shutil.copytree(finished, out)
    if options == ["damaged"]:
        options = []
        for path in (out / "checkpoints").iterdir():
            path.write_bytes(path.read_bytes()[:3000])
    before = traces(out)
    assert main(["--resume", str(out), *options]) == code
    assert capsys.readouterr().err.startswith("error: ")
    assert traces(out) == before


def test_the_checkpoint_is_looked_for_before_the_data(
    finished: Path, tmp_path: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "run"
    shutil.copytree(finished, out)
    shutil.rmtree(out / "checkpoints")
    before = traces(out)
    monkeypatch.setattr("mixfast.train.launch.load", lambda *_: pytest.fail("images were read"))
    assert main(["--resume", str(out)]) == 4
    assert "no checkpoint in" in capsys.readouterr().err and traces(out) == before


def test_a_run_in_progress_is_left_alone(finished: Path, tmp_path: Path, capsys: Any) -> None:
    out = tmp_path / "run"
    shutil.copytree(finished, out)
    claim = Claim.existing(out, print)
    before = traces(out)
    for arguments in (["--resume", str(out)], [*words(out, "moco"), "--overwrite"]):
        assert main(arguments) == 2
        error = capsys.readouterr().err
        assert f"{out} belongs to a run in progress: process {os.getpid()} on {socket.gethostname()}" in error
    assert traces(out) == before
    claim.release()
    assert main(["--resume", str(out)]) == 0


@pytest.mark.parametrize(
    ("environment", "refused"),
    [
        ({"WORLD_SIZE": "2", "RANK": "0"}, True),
        ({"WORLD_SIZE": "1", "RANK": "0"}, False),
        ({"SLURM_NTASKS": "4", "SLURM_PROCID": "3"}, True),
        ({"SLURM_NTASKS": "4"}, False),  # inside salloc, without srun
        ({"SLURM_NTASKS": "4", "SLURM_STEP_NUM_TASKS": "1", "SLURM_PROCID": "0"}, False),
        ({"OMPI_COMM_WORLD_SIZE": "2"}, True),
    ],
)
def test_several_processes_are_refused(
    environment: dict[str, str], refused: bool, tmp_path: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.chdir(tmp_path)
    for command, arguments in ((main, ["--train.epochs", "0"]), (profile, ["--shape", "none"])):
        assert command(arguments) == 2
        error = capsys.readouterr().err
        assert error.count("\n") == 1 and ("takes one process" in error) == refused
    assert os.listdir() == []


class Failing(io.StringIO):
    """Takes nothing."""

    def write(self, text: str) -> int:
        raise OSError(5, "Input/output error")


def streams_that_fail(kind: str) -> Any:
    if kind == "full":
        return open("/dev/full", "w")
    if kind == "pipe":
        reader, writer = os.pipe()
        os.close(reader)
        return os.fdopen(writer, "w")
    return {"closed at the start": None, "terminal gone": Failing()}[kind]


@pytest.mark.parametrize("kind", ["full", "pipe", "closed at the start", "terminal gone"])
def test_training_goes_on_without_its_streams(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mixfast.run.engine.train_epoch", lambda run: None)
    out = tmp_path / "run"
    streams = [streams_that_fail(kind), streams_that_fail(kind)]
    monkeypatch.setattr(sys, "stdout", streams[0])
    monkeypatch.setattr(sys, "stderr", streams[1])
    code = main([*words(out, "moco", eval__every=0, train__epochs=1), "--eval.no-baselines"])
    monkeypatch.undo()
    assert code == 0
    lines = (out / "log.txt").read_text().splitlines()
    assert lines[0].startswith("mixfast ") and lines[-2] == f"report    {out / 'report.md'}"
    assert json.loads((out / "status.json").read_text())["state"] == "finished"
    for stream in streams:
        if stream is not None:
            stream.close()  # what Python does at its end, and says if it fails


def test_the_loss_of_stdout_is_said(tmp_path: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    stream = streams_that_fail("pipe")
    monkeypatch.setattr(sys, "stdout", stream)
    assert main([*words(tmp_path / "run", "moco"), "--data.kind", "folder", "--data.path", "/no/such/folder"]) == 3
    stream.close()
    said = capsys.readouterr().err.splitlines()
    assert said[0] == "stdout takes no more lines (Broken pipe); going on without it: log.txt has every line"
    assert said[1].startswith("error: data.path /no/such/folder") and len(said) == 2


def test_names_that_no_encoding_shows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A broken file whose name is Latin-1, and a run folder with an accent, said on a stream of ASCII."""
    images = write_images(tmp_path / "é", 0)
    with open(os.fsencode(images) + b"/class0/caf\xe9.png", "wb") as file:
        file.write(b"no image")
    monkeypatch.setattr("mixfast.run.engine.train_epoch", lambda run: None)
    shown = io.BytesIO()
    stream = io.TextIOWrapper(shown, "ascii", "strict", write_through=True)
    monkeypatch.setattr(sys, "stdout", stream)
    out = tmp_path / "été"
    data = {"data__kind": "folder", "data__path": images, "data__workers": 0}
    arguments = [*words(out, "moco", train__epochs=1, eval__every=0, **data), "--data.no-cache", "--eval.no-baselines"]
    code = main(arguments)
    monkeypatch.undo()
    assert code == 0
    assert rb"caf\xe9.png" in shown.getvalue() and rb"\xe9t\xe9/report.md" in shown.getvalue()
    log = (out / "log.txt").read_text(encoding="utf-8")
    assert r"caf\xe9.png" in log and f"report    {out / 'report.md'}" in log


def test_a_tilde_is_the_home_in_every_command(
    finished: Path, tmp_path: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    shutil.copytree(finished, tmp_path / "run")
    monkeypatch.setattr("mixfast.run.engine.train_epoch", lambda run: None)
    assert main([*words(Path("~/new"), "moco", train__epochs=1, eval__every=0), "--eval.no-baselines"]) == 0
    assert main(["--resume=~/run"]) == 0
    assert evaluate(["knn", "~/run", "--threads", "1"]) == 0
    assert evaluate(["embed", "~/run", "--threads", "1", "--out", "~/embedded"]) == 0
    report = ["--out", "~/report", "--localise", "none", "--maps", "0"]
    assert compare(["~/run", *report]) == 0
    monkeypatch.undo()
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path / "here")
    assert profile([*words(Path("~/profile"), "moco"), "--seconds", "0"]) == 0
    assert main(["--out", "~nobody_of_that_name/x"]) == 2
    assert "Write the path out." in capsys.readouterr().err
    assert {"new", "run", "embedded", "report", "profile"} <= set(os.listdir(tmp_path)) and os.listdir() == []


def test_every_exit_code_is_documented() -> None:
    text = (ROOT / "docs" / "reproduce.md").read_text(encoding="utf-8").rpartition("## Exit codes")[2]
    rows = re.findall(r"^\| ([\d, ]+) \| (.+) \|$", text, flags=re.M)
    documented = [int(code) for codes, _ in rows for code in codes.split(",")]
    kinds = [kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, errors.UserError)]
    used = {0, USER_CODE, *(kind.exit_code for kind in kinds), *(128 + number for number in STOP_SIGNALS)}
    assert sorted(documented) == sorted(used)
    assert len({kind.exit_code for kind in kinds}) == len(kinds)
