"""Disks and folders that take nothing more: exit code 9, a true status, the way back, and runs that lose nothing."""

import errno
import json
import os
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from mixfast.compare.__main__ import main as compare
from mixfast.evaluate.__main__ import main as evaluate
from mixfast.profile.__main__ import main as profile
from mixfast.run.console import Console
from mixfast.run.failure import explain, run_command
from mixfast.run.folder import RunFolder
from mixfast.train.__main__ import main
from tests.tiny_run import KILLED, records, script_in_child, train_in_child, words

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("command_settings")]


def tiny(out: Path, **changes: Any) -> list[str]:
    return [*words(out, "moco", eval__every=0, **changes), "--eval.no-baselines"]


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    parent = tmp_path_factory.mktemp("undisturbed")
    assert train_in_child(tiny(parent / "run"), parent / "log") == 0, (parent / "log").read_text()
    return parent / "run"


def assert_nothing_lost(out: Path, log: Path, undisturbed: Path) -> None:
    assert not list(out.rglob("*.tmp"))
    assert train_in_child(["--resume", str(out)], log) == 0, log.read_text()
    assert records(out) == records(undisturbed)
    weights = [folder / "export" / "backbone.safetensors" for folder in (out, undisturbed)]
    assert weights[0].read_bytes() == weights[1].read_bytes()


def test_a_checkpoint_beyond_the_limit_of_files(undisturbed: Path, tmp_path: Path) -> None:
    """torch says "unexpected pos" and hides the cause."""
    out, log = tmp_path / "run", tmp_path / "log"
    limit = (undisturbed / "checkpoints" / "last.pt").stat().st_size // 2
    assert train_in_child(tiny(out), log, file_bytes=limit) == 9
    assert f"begin it with: python -m mixfast.train --resume {out}" in log.read_text()
    assert f"error: {out}: File too large. Raise the limit (ulimit -f)" in log.read_text()
    status = json.loads((out / "status.json").read_text())
    assert (status["state"], status["exit_code"]) == ("failed", 9)
    assert_nothing_lost(out, log, undisturbed)


def test_a_folder_that_cannot_even_take_its_configuration_goes_again(tmp_path: Path) -> None:
    assert train_in_child(tiny(tmp_path / "run"), tmp_path / "log", file_bytes=1500) == 9
    assert [item.name for item in tmp_path.iterdir()] == ["log"]


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of its own."""
    place = tmp_path / "disk"
    place.mkdir()
    mount = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", place], capture_output=True, text=True)
    if mount.returncode:
        pytest.skip(f"mounting a small file system takes the right to: {mount.stderr.strip()}")
    yield place
    subprocess.run(["umount", "--lazy", place], check=True)


def resize(disk: Path, options: str) -> None:
    subprocess.run(["mount", "-o", f"remount,{options}", disk], check=True)


@pytest.mark.parametrize("options", ["size=12k", "size=150k", "size=400k", "nr_inodes=8", "nr_inodes=12"])
def test_a_full_disk(options: str, undisturbed: Path, disk: Path, tmp_path: Path) -> None:
    out, log = disk / "run", tmp_path / "log"
    resize(disk, options)
    assert train_in_child(tiny(out), log) == 9
    text = log.read_text()
    assert f"error: {out}" in text and "No space left on device (" in text and "Free some" in text
    assert "Traceback" not in text and "internal error" not in text
    resize(disk, "size=4m,nr_inodes=1000")
    if not out.exists():  # training had not begun
        assert train_in_child(tiny(out), log) == 0
        return
    status = json.loads((out / "status.json").read_text())
    assert (status["state"], status["exit_code"]) == ("failed", 9)
    assert_nothing_lost(out, log, undisturbed)


def test_another_program_takes_the_rest(undisturbed: Path, disk: Path, tmp_path: Path) -> None:
    out, log = disk / "run", tmp_path / "log"
    assert train_in_child(tiny(out), log, at_step=6, where=str(disk / "fill")) == 9
    text = log.read_text()
    assert f"continue with: python -m mixfast.train --resume {out}" in text
    (disk / "fill").unlink()
    status = json.loads((out / "status.json").read_text())
    assert (status["state"], status["exit_code"]) == ("failed", 9)
    assert_nothing_lost(out, log, undisturbed)


def test_a_disk_that_is_read_only(undisturbed: Path, disk: Path, tmp_path: Path) -> None:
    out, log = disk / "run", tmp_path / "log"
    assert train_in_child(tiny(out), log, [signal.SIGKILL], at_step=6) == KILLED
    resize(disk, "ro")
    before = (out / "status.json").read_bytes()
    for arguments in (["--resume", str(out)], tiny(disk / "other"), [*tiny(out), "--overwrite"]):
        log.unlink()
        assert train_in_child(arguments, log) == 9
        assert f"error: {disk}" in log.read_text() and "Read-only file system. Choose a place" in log.read_text()
    resize(disk, "rw")
    assert os.listdir(disk) == ["run"] and (out / "status.json").read_bytes() == before
    assert_nothing_lost(out, log, undisturbed)


@pytest.mark.parametrize(
    ("out", "message"),
    [
        ("file/run", "Not a directory"),
        ("n" * 300, "File name too long"),
        ("/proc/no_such_process/run", "No such file or directory"),
        ("dangling", "File exists"),
    ],
)
def test_places_for_no_folder(out: str, message: str, tmp_path: Path, capsys: Any, monkeypatch: Any) -> None:
    monkeypatch.chdir(tmp_path)
    Path("file").touch()
    Path("dangling").symlink_to("nowhere")
    for command, more in ((main, []), (profile, ["--seconds", "0"])):
        assert command([*tiny(Path(out)), *more]) == 9
        error = capsys.readouterr().err
        assert error.startswith(f"error: {out.removesuffix('/run')}") and message in error
    assert sorted(os.listdir()) == ["dangling", "file"]


def test_a_zero_byte_is_no_name(capsys: Any) -> None:
    for arguments in (["--out", "a\0b"], ["--resume", "a\0b"]):
        assert main(arguments) == 2
        assert "is not a path: it contains a zero byte" in capsys.readouterr().err


def test_a_folder_that_is_deleted_under_a_run(tmp_path: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "run"

    def lose(run: Any) -> None:
        out.rename(tmp_path / "elsewhere")

    monkeypatch.setattr("mixfast.run.engine.train_epoch", lose)
    assert main(tiny(out)) == 9
    error = capsys.readouterr().err
    assert f"{out / 'checkpoints'}: No such file or directory. If it was there: has its folder been" in error
    assert "Traceback" not in error and f"status.json of {out} is out of date" in error
    assert not out.exists()


def test_other_commands(undisturbed: Path, tmp_path: Path, capsys: Any) -> None:
    (tmp_path / "file").touch()
    report = ["--out", str(tmp_path / "file" / "report"), "--localise", "none", "--maps", "0"]
    assert compare([str(undisturbed), *report]) == 9
    assert "Not a directory" in capsys.readouterr().err
    scores = undisturbed / "evaluations.jsonl"
    scores.mkdir()
    try:
        assert evaluate(["knn", str(undisturbed), "--threads", "1"]) == 9
    finally:
        scores.rmdir()
    assert f"error: {scores}: Is a directory" in capsys.readouterr().err


def test_whose_error_it_is(capsys: Any) -> None:
    def full() -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    assert run_command(full) == 8  # a file of the user's, as this one is, raised it
    assert "error in your code: OSError: [Errno 28]" in capsys.readouterr().err
    assert explain(OSError(errno.EROFS, "x", "/r/a")).exit_code == 9
    assert explain(ValueError("I/O error: No space left on device (os error 28)")).exit_code == 9
    assert explain(OSError("of no number")).exit_code == explain(FileNotFoundError()).exit_code == 1


DOCTOR = """
import os, runpy
os.dup2(os.open("/dev/full", os.O_WRONLY), 1)
runpy.run_module("mixfast.doctor", run_name="__main__")
"""


def test_a_full_device_for_stdout(tmp_path: Path) -> None:
    script, log = tmp_path / "script.py", tmp_path / "log"
    script.write_text(DOCTOR)
    assert script_in_child(script, [], log) == 9
    assert log.read_text() == "error: stdout: No space left on device\n"


def test_a_log_that_takes_nothing_is_said_once(tmp_path: Path, capsys: Any) -> None:
    console = Console(Path("/dev/full"))
    console.line("one")
    console.line("two")
    said = capsys.readouterr()
    assert said.out == "one\ntwo\n"
    assert said.err == "/dev/full takes no more lines (No space left on device); going on without it\n"


def test_a_status_is_written_into_its_old_blocks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = RunFolder(tmp_path)
    folder.write_status("running", reason="a long one " * 20)

    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("mixfast.run.folder.write_json", full)
    folder.write_status("failed", exit_code=9)
    assert {"state": "failed", "exit_code": 9}.items() <= folder.status().items() and "reason" not in folder.status()
