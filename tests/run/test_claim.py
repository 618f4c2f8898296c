"""Who may write to a folder: which are refused, one process at a time, and what a start leaves that came to nothing."""

import errno
import fcntl
import json
import os
import socket
from pathlib import Path
from typing import Any

import pytest

from mixfast.errors import CheckpointError, ConfigError
from mixfast.run.claim import Claim
from tests.tiny_run import script_in_child


def new(path: Path, overwrite: bool = False) -> Claim:
    return Claim.new(path, overwrite, print)


def content(folder: Path) -> list[str]:
    return sorted(item.name for item in folder.iterdir())


def test_existing_folder_is_refused_and_named(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    assert new(tmp_path / "empty").folder.path.is_dir()
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "photo.jpg").touch()
    with pytest.raises(ConfigError, match=r"exists and is not empty.*--resume .*full.*--overwrite"):
        new(tmp_path / "full")
    with pytest.raises(ConfigError, match=r"exists and is not empty"):
        new(tmp_path / "full" / "photo.jpg")
    assert content(tmp_path / "full") == ["photo.jpg"]


def test_overwrite_deletes_runs_and_nothing_else_and_only_once_it_begins(tmp_path: Path) -> None:
    folder, link = tmp_path / "x", tmp_path / "link"
    (folder / "checkpoints").mkdir(parents=True)
    (folder / "photo.jpg").touch()
    with pytest.raises(ConfigError, match=r"not the folder of a run and is not deleted"):
        new(folder, overwrite=True)
    (folder / "config.json").touch()
    link.symlink_to(folder)
    new(link, overwrite=True).abandon()
    assert content(folder) == ["checkpoints", "config.json", "photo.jpg"]
    claim = new(link, overwrite=True)
    assert (folder / "photo.jpg").exists()
    claim.begin()
    assert content(folder) == ["lock"] and link.is_symlink()


def test_a_start_that_came_to_nothing_leaves_nothing(tmp_path: Path) -> None:
    claim = new(tmp_path / "a" / "b" / "run")
    (claim.folder.path / "config.json").touch()
    claim.abandon()
    claim = Claim.numbered(tmp_path / "runs", "moco", print)
    assert claim.folder.path.name == "moco-0001"
    claim.abandon()
    assert content(tmp_path) == []
    (tmp_path / "run").mkdir()
    new(tmp_path / "run").abandon()
    assert content(tmp_path) == ["run"] and content(tmp_path / "run") == []  # it was there before


def test_the_second_is_refused_until_the_first_lets_go(tmp_path: Path) -> None:
    claim = new(tmp_path / "run")
    name = rf"run in progress: process {os.getpid()} on {socket.gethostname()}, since 2"
    with pytest.raises(ConfigError, match=name):
        new(tmp_path / "run")
    (tmp_path / "run" / "config.json").write_text("{}")
    with pytest.raises(ConfigError, match=name):
        new(tmp_path / "run", overwrite=True)
    with pytest.raises(ConfigError, match=name):
        Claim.existing(tmp_path / "run" / "checkpoints", print)
    assert content(tmp_path / "run") == ["config.json", "lock"]
    claim.release()
    Claim.existing(tmp_path / "run", print).release()
    with pytest.raises(CheckpointError, match="not the folder of a run"):
        Claim.existing(tmp_path, print)


FORKED = """
import os, sys
from pathlib import Path
from mixfast.run.claim import Claim
Claim.new(Path(sys.argv[1]), False, print)
print(os.getpid(), flush=True)
if os.fork() == 0:
    open(sys.argv[2]).read()
os._exit(0)
"""


def test_a_child_that_outlives_its_parent_does_not_keep_the_lock(tmp_path: Path) -> None:
    script, pipe, log = (tmp_path / name for name in ("script.py", "pipe", "log"))
    script.write_text(FORKED)
    os.mkfifo(pipe)
    assert script_in_child(script, [str(tmp_path / "run"), str(pipe)], log) == 0, log.read_text()
    assert json.loads((tmp_path / "run" / "lock").read_text())["pid"] == int(log.read_text())
    with open(pipe, "w"):  # which the child reads until the end of this block
        new(tmp_path / "run")


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.ENOTSUP])
def test_a_file_system_without_locks_is_said_and_no_reason_to_stop(
    number: int, tmp_path: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Any) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "flock", refuse)
    claim = new(tmp_path / "run")
    said = capsys.readouterr().out
    assert said.count("\n") == 1 and f"no locks on this file system ({os.strerror(number)})" in said
    claim.abandon()
    assert content(tmp_path) == []
