"""What every command line has in common: help, version, tracebacks, and one line for an option that is wrong."""

import importlib
from pathlib import Path
from typing import Any

import pytest

import mixfast
from mixfast.__main__ import COMMANDS
from mixfast.__main__ import main as overview
from mixfast.evaluate.__main__ import COMMANDS as SCORES

WITH_MAIN = ("train", "evaluate", "compare", "profile", "doctor")


def run(name: str, *words: str) -> int:
    return importlib.import_module("mixfast.doctor" if name == "doctor" else f"mixfast.{name}.__main__").main([*words])


@pytest.mark.parametrize("flag", ["--help", "-h"])
@pytest.mark.parametrize("words", [*WITH_MAIN, *(f"evaluate {name}" for name in SCORES)])
def test_help_fits_a_terminal(words: str, flag: str, capsys: Any, monkeypatch: Any) -> None:
    monkeypatch.setenv("COLUMNS", "100")
    assert run(*words.split(), flag) == 0
    text, error = capsys.readouterr()
    assert f"python -m mixfast.{words}" in text and error == ""
    assert max(len(line) for line in text.splitlines() if not line.startswith("usage: ")) <= 100  # the parser's line
    limit = 44 if words in WITH_MAIN else 61 if words == "evaluate detect" else 50  # which has recipes of its own
    assert len(text.splitlines()) <= limit


@pytest.mark.parametrize("name", WITH_MAIN)
def test_version(name: str, capsys: Any) -> None:
    assert run(name, "--version") == 0 and overview(["--version"]) == 0
    assert capsys.readouterr().out == f"mixfast {mixfast.__version__}\n" * 2


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("train --no-such 3", "unknown option --no-such"),
        ("train --wandb", "unknown option --wandb; did you mean --train.log wandb?"),
        ("train --model.arch x", "unknown option --model.arch; did you mean --model.backbone?"),
        ("train --method.momentum 1", "unknown option --method.momentum; did you mean --method.ema or"),
        ("train moco --model.depth 101", "model.depth must be one of 8, 18, 20, 34, 50; got 101. For another network"),
        ("train --train.epochs inf", "--train.epochs inf: expected a whole number"),
        ("evaluate knn x --kk 3", "unknown option --kk; did you mean --k?"),
        ("evaluate knn x --k inf", "--k inf: expected a whole number or None"),
        ("evaluate knn x --temperature nan", "--temperature must be above 0; got nan"),
        ("evaluate linear x --lr inf", "--lr must be values, each finite; got (inf,)"),
        ("evaluate localise x --size 100000", "--size must be at most 16384; got 100000"),
        ("evaluate localise x --seed 1000000000000000000000", "--seed must be at most 18446744073709551615"),
        ("evaluate maps x --threads 1000000", "--threads must be at most 1024; got 1000000"),
        ("evaluate components x --areas 2", "--areas must be values, each in (0, 1); got (2.0,)"),
        ("evaluate loclise x", "unknown command 'loclise'; did you mean localise or linear?"),
        ("evaluate replay", "expected one RUN; got none"),
        ("evaluate replay a b", "expected one RUN; got a b"),
        ("compare x --maps -1", "--maps must be at least 0; got -1"),
        ("compare x --count many", "--count many: expected a whole number; the default is 1000."),
        ("profile --seconds nan", "--seconds must be at least 0; got nan"),
        ("profile --seconds soon", "--seconds must be a number; got 'soon'."),
        ("profile --train.epochs 0", "--train.epochs must be at least 1; got 0"),
        ("doctor --fast", "unknown option --fast"),
    ],
)
def test_a_wrong_option_is_one_line(words: str, message: str, capfd: Any, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.chdir(tmp_path)
    name, *rest = words.split()
    assert run(name, *rest) == 2
    text, error = capfd.readouterr()
    assert text == "" and error.startswith(f"error: {message}") and error.count("\n") == 1
    assert run(name, *rest, "--traceback") == 2
    assert "Traceback (most recent call last)" in capfd.readouterr().err
    assert not list(tmp_path.iterdir())


def test_the_package_lists_its_commands(capsys: Any) -> None:
    for words in ([], ["--help"], ["-h"]):
        assert overview(words) == 0
        text = capsys.readouterr().out
        assert all(f"  {name} " in text for name in COMMANDS)
    assert overview(["evalaute"]) == 2
    assert "'evalaute'; commands are written with a dot: python -m mixfast.evaluate." in capsys.readouterr().err
    assert all(importlib.util.find_spec(f"mixfast.{name}") for name in COMMANDS)
