"""A method of the user's own: its `check` decides before training, and its errors are named as the user's."""

import importlib
import itertools
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from mixfast.compare.__main__ import main as compare
from mixfast.evaluate.__main__ import main as evaluate
from mixfast.profile.__main__ import main as profile
from mixfast.run.failure import run_command
from mixfast.train.__main__ import main as train
from tests.tiny_run import words

pytestmark = pytest.mark.usefixtures("command_settings")

NUMBERS = itertools.count()
CHECKED = """
from mixfast.errors import ConfigError
from mixfast.methods import load

MoCo = load("moco")

class Mine(MoCo):
    @classmethod
    def check(cls, config, batch):
        super().check(config, batch)
        if batch < 32:
            raise ConfigError(f"method: needs at least 32 images per step; got {batch}.")

METHOD = Mine
"""
Lab = Callable[[str], str]


@pytest.fixture
def lab(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Lab]:
    """Writes a module into a package outside mixfast; returns its dotted name."""
    package = f"my_lab_{next(NUMBERS)}"
    (tmp_path / package).mkdir()
    monkeypatch.syspath_prepend(tmp_path)

    def write(text: str, name: str = "mine") -> str:
        (tmp_path / package / f"{name}.py").write_text(text.lstrip())
        importlib.invalidate_caches()
        sys.modules.pop(f"{package}.{name}", None)
        shutil.rmtree(tmp_path / package / "__pycache__", ignore_errors=True)
        return f"{package}.{name}"

    yield write
    for name in [name for name in sys.modules if name.startswith(package)]:
        del sys.modules[name]


def tiny(out: Path, method: str, **changes: Any) -> list[str]:
    return [*words(out, method, train__epochs=1, eval__every=0, **changes), "--eval.no-baselines"]


def test_check_refuses_before_a_folder_is_made(lab: Lab, tmp_path: Path, capsys: Any) -> None:
    method = lab(CHECKED)
    assert train(tiny(tmp_path / "run", method)) == 2
    assert capsys.readouterr().err == "error: method: needs at least 32 images per step; got 16.\n"
    assert not (tmp_path / "run").exists()
    assert train(tiny(tmp_path / "run", "moco", compare=[method])) == 2
    assert not (tmp_path / "run").exists()
    assert profile([*tiny(tmp_path / "run", method), "--seconds", "0"]) == 2
    assert not (tmp_path / "run").exists()
    assert train(tiny(tmp_path / "run", method, train__batch_size=32)) == 0


def test_check_of_a_saved_run_that_has_become_stricter(lab: Lab, tmp_path: Path, capsys: Any) -> None:
    method = lab(CHECKED.replace("batch < 32", "False"))
    assert train(tiny(tmp_path / "run", method)) == 0
    lab(CHECKED)
    files = sorted(tmp_path.glob("run/**/*"))
    for command in (["--resume"], ["knn"]):
        main = train if command == ["--resume"] else evaluate
        assert main([*command, str(tmp_path / "run")]) == 2
        assert "needs at least 32 images" in capsys.readouterr().err
    assert sorted(tmp_path.glob("run/**/*")) == files


BROKEN = """
import torch
from mixfast.losses import Term, infonce_sum
from mixfast.methods import load

MoCo = load("moco")


class Mine(MoCo):
    @classmethod
    def check(cls, config, batch):
        super().check(config, batch)  # CHECK

    def __init__(self, config, make_encoder, generators):
        super().__init__(config, make_encoder, generators)  # INIT

    def views(self, images, augment, generators):
        return super().views(images, augment, generators)  # VIEWS

    def step(self, views, generators):
        return super().step(views, generators)  # STEP


METHOD = Mine
"""
WRONG_SHAPES = 'infonce_sum([Term("a", torch.ones(4, 8), torch.ones(4, 7), "q")], {"q": torch.ones(9, 8)}, 0.1)'
TROUBLE = [
    ("MoCo = ", "MoKo", "NameError: name 'MoKo' is not defined", "<module>"),
    ("super().check", "config.no_such_option", "AttributeError: 'MoCoConfig' object has no attribute", "check"),
    ("super().__init__", "self.encoder", "AttributeError: 'Mine' object has no attribute 'encoder'", "__init__"),
    ("return super().views", "torch.stack([])", "RuntimeError: ", "views"),
    ("return super().step", "print(q)", "NameError: name 'q' is not defined", "step"),
    ("return super().step", WRONG_SHAPES, "ValueError: ", "step"),
    ("METHOD", "METHOD = = Mine", "SyntaxError: ", "its source"),
]


def broken(before: str, statement: str) -> tuple[str, int]:
    """BROKEN with a statement above the line that begins with `before`; and the number of its line."""
    lines = BROKEN.lstrip().splitlines()
    number = next(number for number, line in enumerate(lines) if line.lstrip().startswith(before))
    indent = lines[number][: len(lines[number]) - len(lines[number].lstrip())]
    return "\n".join([*lines[:number], indent + statement, *lines[number:]]) + "\n", number + 1


@pytest.mark.parametrize(("before", "statement", "message", "function"), TROUBLE, ids=[row[1][:20] for row in TROUBLE])
def test_training_names_the_line_of_the_user(
    before: str, statement: str, message: str, function: str, lab: Lab, tmp_path: Path, capsys: Any, monkeypatch: Any
) -> None:
    text, line = broken(before, statement)
    method = lab(BROKEN)
    arguments = tiny(tmp_path / "run", method)
    lab(text)
    monkeypatch.chdir(tmp_path)
    assert train(arguments) == 8
    error = capsys.readouterr().err
    file = f"{method.replace('.', '/')}.py"
    assert f"error in your code: {message}" in error
    assert f"in {'' if function == 'its source' else f'{method}, '}{file} line {line}, in {function}" in error
    assert "internal error" not in error
    if function == "its source":
        return
    shown = [row for row in error.splitlines() if row.startswith("  File ")]
    assert shown[0].startswith(f'  File "{tmp_path / file}", line {line}')  # no line of ours above
    assert ("Please report" not in error) and ("Raised by mixfast.ops" in error) == (statement == WRONG_SHAPES)
    log = tmp_path / "run" / "log.txt"
    assert log.exists() == (function not in ("<module>", "check"))
    if log.exists():
        assert "mixfast/train/__main__.py" in log.read_text()  # the whole traceback


def test_what_a_method_returns_is_its_author_s(lab: Lab, tmp_path: Path, capsys: Any) -> None:
    text, _ = broken("return super().step", "return None")
    method = lab(text)
    assert train(tiny(tmp_path / "run", method)) == 8
    error = capsys.readouterr().err
    assert f"error with your method {method}: AttributeError: 'NoneType' object has no attribute 'loss'" in error
    assert "Traceback" in error and "mixfast.methods.Method" in error


def test_the_other_commands_name_it_too(lab: Lab, tmp_path: Path, capsys: Any) -> None:
    method, run = lab(BROKEN), str(tmp_path / "run")
    assert train(tiny(tmp_path / "run", method)) == 0
    text, line = broken("super().__init__", "self.encoder")
    lab(text)
    capsys.readouterr()
    place = f"mine.py line {line}, in __init__"
    assert evaluate(["knn", run, "--threads", "1"]) == 8 and place in capsys.readouterr().err
    assert compare([run, "--out", str(tmp_path / "report"), "--threads", "1"]) == 8
    assert place in capsys.readouterr().err and not (tmp_path / "report").exists()
    assert profile([*tiny(tmp_path / "profile", method), "--seconds", "0"]) == 8
    assert place in capsys.readouterr().err


def test_an_error_of_ours_is_to_be_reported(tmp_path: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mixfast.run.engine.learning_rate", None)
    assert train(tiny(tmp_path / "run", "moco")) == 1
    error = capsys.readouterr().err
    assert "internal error: TypeError: 'NoneType' object is not callable" in error
    assert f"report it with the output of `python -m mixfast.doctor` and {tmp_path / 'run' / 'log.txt'}." in error
    assert "Traceback" not in error and "Traceback" in (tmp_path / "run" / "log.txt").read_text()


class Items(torch.utils.data.Dataset[int]):
    def __getitem__(self, index: int) -> int:
        return [0, 1][index]

    def __len__(self) -> int:
        return 3


def test_a_worker_process_of_a_data_loader(tmp_path: Path, capsys: Any) -> None:
    """Its traceback comes as text."""
    assert run_command(lambda: list(torch.utils.data.DataLoader(Items(), num_workers=1))) == 8
    error = capsys.readouterr().err
    assert "error in your code: IndexError: " in error and f"{Path(__file__).name} line" in error.splitlines()[-1]
