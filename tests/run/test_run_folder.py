"""Folders: which are refused, how they are numbered, and that their files can be read back."""

import json
from pathlib import Path

import pytest

from mixfast.config.presets import build
from mixfast.errors import CheckpointError
from mixfast.run.folder import RunFolder, write_json


def test_numbers_go_on_from_the_highest(tmp_path: Path) -> None:
    names = [RunFolder.create_numbered(tmp_path / "runs", "demo").path.name for _ in range(2)]
    assert names == ["demo-0001", "demo-0002"]
    for other in ("demo-0041", "demo-old", "demo-mix-0099", "moco-0077"):
        (tmp_path / "runs" / other).mkdir()
    assert RunFolder.create_numbered(tmp_path / "runs", "demo").path.name == "demo-0042"


def test_configuration_comes_back(tmp_path: Path) -> None:
    config, origins = build("approach2_reference", ["paper_literal"], None)
    folder = RunFolder(tmp_path / "run")
    folder.path.mkdir()
    folder.write_config(config, "approach2_reference", origins)
    inside = tmp_path / "run" / "checkpoints" / "last.pt"
    for path in (tmp_path / "run", tmp_path / "run" / "checkpoints", inside):
        assert RunFolder.open(path).read_config() == (config, "approach2_reference", origins)


def test_no_run_or_a_broken_one_is_a_checkpoint_error(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"not the folder of a run"):
        RunFolder.open(tmp_path / "nowhere")
    for broken in (
        "{",
        "{}",
        '{"values": {"method_name": "gone"}}',
        '{"values": {"method_name": "moco", "colour": 1}}',
    ):
        (tmp_path / "config.json").write_text(broken)
        with pytest.raises(CheckpointError, match=r"config.json cannot be read"):
            RunFolder.open(tmp_path).read_config()


def test_status_and_commands(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    assert folder.status() == {} and not folder.has_checkpoint()
    folder.write_status("failed", exit_code=5, reason="nan")
    assert {"state": "failed", "exit_code": 5, "reason": "nan"}.items() <= folder.status().items()
    folder.write_command(["python", "-m", "x", "--out", "a b"])
    folder.write_command(["again"])
    lines = (tmp_path / "command.txt").read_text().splitlines()
    assert [line.split("  ", 1)[1] for line in lines] == ["python -m x --out 'a b'", "again"]


def test_json_is_written_whole_or_not_at_all(tmp_path: Path) -> None:
    write_json(tmp_path / "x.json", {"a": 1})
    with pytest.raises(TypeError):
        write_json(tmp_path / "x.json", {"a": object()})
    assert json.loads((tmp_path / "x.json").read_text()) == {"a": 1}
