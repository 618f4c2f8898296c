"""Checkpoints are whole or absent, two are kept, and unreadable ones are explained."""

import os
from pathlib import Path
from typing import Any

import pytest
import torch

from mixfast.errors import CheckpointError
from mixfast.run import checkpoint


def test_keeps_two_and_reads_the_newest(tmp_path: Path) -> None:
    for step in range(3):
        path = checkpoint.save(tmp_path, {"step": step, "weight": torch.full((2,), float(step))})
    assert sorted(item.name for item in tmp_path.iterdir()) == ["last.pt", "previous.pt"]
    assert path == checkpoint.find(tmp_path) == tmp_path / "last.pt"
    state = checkpoint.load(path)
    assert state["step"] == 2 and torch.equal(state["weight"], torch.tensor([2.0, 2.0]))
    assert checkpoint.load(tmp_path / "previous.pt")["step"] == 1


@pytest.mark.parametrize("failing", ["torch.save", "os.fsync", "first rename", "second rename"])
def test_a_failure_at_any_point_leaves_a_readable_one(
    failing: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoint.save(tmp_path, {"step": 0})
    checkpoint.save(tmp_path, {"step": 1})
    renames = 0
    replace = os.replace

    def fail(*_: Any) -> None:
        raise KeyboardInterrupt

    def fail_at_rename(source: Any, target: Any) -> None:
        nonlocal renames
        renames += 1
        if failing == ("first rename", "second rename")[renames - 1]:
            raise KeyboardInterrupt
        replace(source, target)

    if failing == "torch.save":
        monkeypatch.setattr(torch, "save", lambda state, file: (file.write(b"half"), fail()))
    elif failing == "os.fsync":
        monkeypatch.setattr(os, "fsync", fail)
    monkeypatch.setattr(os, "replace", fail_at_rename)
    with pytest.raises(KeyboardInterrupt):
        checkpoint.save(tmp_path, {"step": 2})
    assert checkpoint.load(checkpoint.find(tmp_path))["step"] == 1


def test_found_in_a_run_folder_in_its_checkpoints_and_by_name(tmp_path: Path) -> None:
    path = checkpoint.save(tmp_path / "checkpoints", {"step": 0})
    assert checkpoint.find(tmp_path) == checkpoint.find(tmp_path / "checkpoints") == checkpoint.find(path) == path


def test_missing_one_names_the_places_tried(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"no checkpoint in .*last\.pt.*previous\.pt"):
        checkpoint.find(tmp_path)


def test_truncated_one_points_at_the_previous(tmp_path: Path) -> None:
    for step in range(2):
        checkpoint.save(tmp_path, {"step": step, "weight": torch.zeros(1000)})
    last = tmp_path / "last.pt"
    last.write_bytes(last.read_bytes()[:2000])
    with pytest.raises(CheckpointError, match=r"cannot be read .*--resume .*previous\.pt"):
        checkpoint.load(last)
    (tmp_path / "previous.pt").unlink()
    with pytest.raises(CheckpointError, match="no older checkpoint"):
        checkpoint.load(last)


def test_nothing_is_executed_while_reading(tmp_path: Path) -> None:
    class Trap:
        def __reduce__(self) -> tuple[Any, ...]:
            return os.mkdir, (str(tmp_path / "executed"),)

    torch.save({"format": checkpoint.FORMAT, "trap": Trap()}, tmp_path / "last.pt")
    with pytest.raises(CheckpointError, match="cannot be read"):
        checkpoint.load(tmp_path / "last.pt")
    assert not (tmp_path / "executed").exists()


@pytest.mark.parametrize("content", [{"format": 99}, {"weights": 1}, [1, 2]], ids=str)
def test_another_format_is_refused(content: Any, tmp_path: Path) -> None:
    torch.save(content, tmp_path / "last.pt")
    with pytest.raises(CheckpointError, match=f"reads {checkpoint.FORMAT}"):
        checkpoint.load(tmp_path / "last.pt")


def test_keys_of_another_architecture_are_counted_and_named() -> None:
    checkpoint.check_keys([], [], Path("x"))
    missing = [f"layer{n}" for n in range(7)]
    with pytest.raises(
        CheckpointError, match=r"7 keys missing \(layer0, layer1, layer2, layer3, layer4\), 1 unexpected"
    ):
        checkpoint.check_keys(missing, ["fc"], Path("x"))
