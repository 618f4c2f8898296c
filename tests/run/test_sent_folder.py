"""Opening the folder of a run that somebody sent runs no code that came with it or that it chooses to call."""

import itertools
import json
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from mixfast.compare.__main__ import main as compare
from mixfast.config.presets import build
from mixfast.errors import CheckpointError, ConfigError
from mixfast.evaluate.__main__ import main as evaluate
from mixfast.export import main as export
from mixfast.methods import load
from mixfast.profile.__main__ import main as profile
from mixfast.run import checkpoint
from mixfast.run.folder import RunFolder
from mixfast.train.__main__ import main as train
from tests.tiny_run import process_settings_kept

NUMBERS = itertools.count()
PAYLOAD = """
from pathlib import Path
Path({marker!r}).touch()
from mixfast.methods import load
METHOD = load("moco")
def factory(**options):
    Path({marker!r}).touch()
"""


class Sent:
    """A working directory with the folder of a run below it, and code that leaves a mark if it runs."""

    def __init__(self, place: Path, folder: str):
        self.marker = place / "marker"
        self.folder = RunFolder(place / folder)
        self.folder.path.mkdir(parents=True, exist_ok=True)
        checkpoint.save(self.folder.checkpoints, {"step": 0})
        checkpoint.write(self.folder.path / "nonfinite.pt", {"step": 0, "terms": []})

    def names(self, **values: str) -> None:
        config, origins = build("moco", [], None)
        self.folder.write_config(config, "moco", origins)
        content = json.loads((self.folder.path / "config.json").read_text())
        for key, value in values.items():
            *section, name = key.split("__")
            (content["values"][section[0]] if section else content["values"])[name] = value
        (self.folder.path / "config.json").write_text(json.dumps(content))

    def code(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(PAYLOAD.format(marker=str(self.marker)))


@pytest.fixture
def sent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str], Sent]]:
    before = set(sys.modules)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))  # as `python -m` does
    with process_settings_kept():
        yield lambda folder: Sent(tmp_path, folder)
    for name in set(sys.modules) - before:
        if name.startswith(("sent", "other")):
            del sys.modules[name]


def fresh(prefix: str = "sent") -> str:
    """A name that no earlier case has used: modules stay in memory."""
    return f"{prefix}{next(NUMBERS)}"


COMMANDS: dict[str, Callable[[str], int]] = {
    "resume": lambda run: train(["--resume", run]),
    "config": lambda run: train(["--config", f"{run}/config.json"]),
    "knn": lambda run: evaluate(["knn", run]),
    "replay": lambda run: evaluate(["replay", run]),
    "compare": lambda run: compare([run, "--out", "report"]),
    "export": lambda run: export([run]),
    "profile": lambda run: profile(["--resume", run]),
}


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize("key", ["method_name", "model__backbone", "data__kind"])
def test_no_command_runs_code_from_the_folder(key: str, command: str, sent: Callable[[str], Sent], capsys: Any) -> None:
    name = fresh()
    run = sent(name)
    run.code(run.folder.path / "payload.py")
    run.names(**{key: f"{name}.payload" + (":factory" if key != "method_name" else "")})
    assert COMMANDS[command](name) == 4
    error = capsys.readouterr().err
    assert f"{name}.payload" in error and f"add --trust {name}.payload" in error and "payload.py" in error
    assert not run.marker.exists() and not any(module.startswith(name) for module in sys.modules)


def by_a_parent(name: str) -> tuple[str, str, str]:
    return f"{name}/run", f"{name}/payload.py", f"{name}.payload"


def by_another_run(name: str) -> tuple[str, str, str]:
    (Path(name) / "other" / "checkpoints").mkdir(parents=True)
    (Path(name) / "other" / "config.json").write_text("{}")
    sys.path.insert(0, str(Path(name).resolve()))
    return f"{name}/run", f"{name}/other/{name}/payload.py", f"other.{name}.payload"


def by_a_package(name: str) -> tuple[str, str, str]:
    (Path(name) / "run").mkdir(parents=True)
    (Path(name) / "__init__.py").touch()
    (Path(name) / "run" / "__init__.py").touch()
    return f"{name}/run", f"{name}/run/payload.py", f"{name}.run.payload"


def by_a_link_to_the_folder(name: str) -> tuple[str, str, str]:
    Path("elsewhere").mkdir()
    os.symlink("elsewhere", name)
    return "elsewhere", f"{name}/payload.py", f"{name}.payload"


def by_a_link_to_the_code(name: str) -> tuple[str, str, str]:
    Path("run/code").mkdir(parents=True)
    os.symlink("run/code", name)
    return "run", f"{name}/payload.py", f"{name}.payload"


def from_inside(name: str) -> tuple[str, str, str]:
    (Path("run") / name).mkdir(parents=True)
    sys.path.insert(0, str(Path("run").resolve()))
    return "run", f"run/{name}/payload.py", f"{name}.payload"


def by_dots(name: str) -> tuple[str, str, str]:
    Path("x").mkdir()
    return f"x/../{name}", f"{name}/payload.py", f"{name}.payload"


@pytest.mark.parametrize(
    "way",
    [
        by_a_parent,
        by_another_run,
        by_a_package,
        by_a_link_to_the_folder,
        by_a_link_to_the_code,
        from_inside,
        by_dots,
    ],
)
def test_no_way_leads_into_the_folder(
    way: Callable[[str], tuple[str, str, str]], sent: Callable[[str], Sent], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "path", list(sys.path))
    folder, code, module = way(fresh())
    run = sent(folder)
    run.code(Path(code))
    run.names(method_name=module)
    with pytest.raises(CheckpointError, match=f"method_name is {module}.* add --trust {module}"):
        run.folder.read_config()
    assert not run.marker.exists()
    assert run.folder.read_config({module})[0].method_name == module and run.marker.exists()


def test_code_of_ones_own_outside_the_folder_is_taken(sent: Callable[[str], Sent]) -> None:
    name = fresh("sentlab")
    run = sent("runs/a")
    run.code(Path(name) / "payload.py")
    run.names(
        method_name=f"{name}.payload", model__backbone=f"{name}.payload:factory", data__kind=f"{name}.payload:factory"
    )
    assert run.folder.read_config()[0].method_name == f"{name}.payload" and run.marker.exists()


@pytest.mark.parametrize(
    "values",
    [
        {"model__backbone": "os:system,command='touch marker'"},
        {"model__backbone": "subprocess:run,args=['touch','marker']"},
        {"data__kind": "pytest:main"},
        {"data__kind": "os:abort"},
        {"method_name": "test.__main__"},
    ],
    ids=str,
)
def test_libraries_are_not_called(values: dict[str, str], sent: Callable[[str], Sent]) -> None:
    run = sent("run")
    run.names(**values)
    with pytest.raises(CheckpointError, match=r"librar.* add --trust "):
        run.folder.read_config()
    assert not run.marker.exists()


def test_arguments_of_the_command_line_are_trusted(sent: Callable[[str], Sent], capsys: Any) -> None:
    name = fresh()
    run = sent(name)
    run.code(run.folder.path / "payload.py")
    run.names(method_name=f"{name}.payload")
    assert train(["--resume", name, "--trust", f"{name}.payload"]) == 3  # imported; then CIFAR-10 is missing
    assert "--trust" not in capsys.readouterr().err and run.marker.exists()
    run.marker.unlink()
    assert train(["moco", "--trust", f"{name}.payload"]) == 2 and "belongs to --resume" in capsys.readouterr().err


@pytest.mark.parametrize(
    "name", ["../x", "..evil", "lab/vicreg.py", "/lab/vicreg.py", "lab.", "lab.x y", "lab.if", "a-b.c"]
)
def test_paths_are_no_names_of_methods(name: str, capsys: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match=r"not the dotted name of a module. Omit \.py, use dots"):
        load(name)
    for words in (["--method", name], ["--compare", name]):
        assert train(words) == 2
        assert "use dots" in capsys.readouterr().err
    assert not any(tmp_path.iterdir())


def test_a_path_is_met_with_its_dotted_name() -> None:
    with pytest.raises(ConfigError, match=r"use dots, as in my_lab\.vicreg, and run from"):
        load("my_lab/vicreg.py")
