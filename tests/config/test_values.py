"""Every option of every preset against values that no run could have, found from the dataclasses."""

import dataclasses
import math
import types
import typing
from pathlib import Path
from typing import Any

import pytest

from mixfast import methods
from mixfast.config.options import RunConfig, replace, validate
from mixfast.config.presets import build, presets
from mixfast.errors import ConfigError
from mixfast.ranges import Count, Positive, Range, Share, check_ranges
from mixfast.run import engine
from mixfast.train.__main__ import main
from tests.tiny_run import process_settings_kept, words

BAD = ("inf", "nan", "-1", "1" + 30 * "0", "", "abc")
Case = tuple[str, str, Any, Any]  # preset, dotted key, plain type, type with its range


def cases() -> list[Case]:
    """A preset for each field of each class of options, with the field's type."""
    found: dict[tuple[type, str], Case] = {}
    for preset in presets():
        config = build(preset, [], None)[0]
        sections: list[tuple[str, Any]] = [("", config)]
        for prefix, section in sections:  # grows
            hints, ranged = (typing.get_type_hints(type(section), include_extras=extras) for extras in (False, True))
            for field in dataclasses.fields(section):
                value, key = getattr(section, field.name), prefix + field.name
                if dataclasses.is_dataclass(value):
                    sections.append((f"{key}.", value))
                elif key != "method_name":
                    case = preset, key, hints[field.name], ranged[field.name]
                    found.setdefault((type(section), field.name), case)
    return list(found.values())


def kinds(hint: Any) -> set[Any]:
    """The types of one word of a value."""
    if typing.get_origin(hint) is typing.Literal:
        return set(typing.get_args(hint))
    parts = [part for part in typing.get_args(hint) if part not in (Ellipsis, type(None))]
    return set().union(*map(kinds, parts)) if parts else {hint}


def parses(word: str, kind: Any) -> bool:
    """Whether Python itself reads a word as that type, and the number is one that a run could use."""
    if kind in (int, float):
        try:
            return math.isfinite(kind(word)) and (kind is float or abs(int(word)) < 2**63)
        except ValueError:
            return False
    return kind is str or kind == word


@pytest.mark.slow
def test_no_option_takes_what_no_run_could_have(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Exit code 2 with the option's name and without a folder, or a run that starts.

    What one option of a range, a choice or a flag refuses is not given to the others of the same type; of plain numbers
    and texts, whose range may have been forgotten, each is tried with everything.
    """
    started: list[str] = []
    monkeypatch.setattr("mixfast.train.__main__.launch", lambda invocation, *_: started.append("yes"))
    wrong, accepted, refused = [], [], set()
    for preset, key, hint, ranged in cases():
        size = 2 if typing.get_origin(hint) is tuple and Ellipsis not in typing.get_args(hint) else 1
        for word in (word for word in BAD if (str(ranged), word) not in refused):
            started.clear()
            code = main([preset, f"--{key}", *[word] * size])
            text = capsys.readouterr().err
            legal = any(parses(word, kind) for kind in kinds(hint))
            if started and legal:
                if kinds(hint) != {str} or word in ("", "abc"):  # the other words are texts like "abc"
                    accepted.append((preset, key, [word] * size))
            elif started or code != 2 or key.rpartition(".")[2] not in text or "\n" in text.strip():
                wrong.append((preset, key, word, code, text))
            elif not started and (ranged != hint or not kinds(hint) & {int, float, str}):
                refused.add((str(ranged), word))
    assert not wrong, wrong
    monkeypatch.undo()
    monkeypatch.setattr(engine, "train_epoch", lambda run: None)
    few: dict[str, Any] = {"data__scenes": 16, "data__test_scenes": 4, "train__epochs": 1, "eval__every": 0}
    with process_settings_kept():
        for number, (preset, key, values) in enumerate(accepted):
            small = words(tmp_path / str(number), presets()[preset].method, **few, **{key: tuple(values)})
            code = main([*small, "--eval.no-baselines"])
            expected = (2, 3, 4, 7)  # 4: a file of weights that is not there
            assert code == 0 or (code in expected and key.rpartition(".")[2] in capsys.readouterr().err), (key, values)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("seed", 2**64, "--seed must be at most 18446744073709551615; got 18446744073709551616"),
        ("seed", -1, "--seed must be at least 0; got -1"),
        ("method.queue_size", 10**12, "--method.queue_size must be at most 2147483647; got 1000000000000"),
        ("method.temperature", math.inf, "--method.temperature must be finite; got inf"),
        ("eval.temperature", math.inf, "--eval.temperature must be finite; got inf"),
        ("optim.step_factor", math.inf, "--optim.step_factor must be finite; got inf"),
        ("optim.lr", math.nan, "--optim.lr must be at least 0; got nan"),
        ("train.threads", 10**12, "--train.threads must be at most 1024; got 1000000000000"),
        ("data.size", 10**12, "--data.size must be at most 16384; got 1000000000000"),
        ("train.graph", "zzz", "--train.graph must be auto, on, off; got 'zzz'"),
        ("train.epochs", "3", "--train.epochs must be a whole number; got '3'"),
        ("train.epochs", True, "--train.epochs must be a whole number; got True"),
        ("data.cache", 1, "--data.cache must be true or false; got 1"),
        ("augment.crop_scale", (0.1, 0.5, 1.0), "--augment.crop_scale must be 2 values; got (0.1, 0.5, 1.0)"),
        ("compare", ("moco", 1), "--compare must be values, each a string; got ('moco', 1)"),
    ],
)
def test_a_value_outside_its_type_or_range_is_named(key: str, value: object, message: str) -> None:
    with pytest.raises((ConfigError, ValueError)) as caught:
        validate(replace(build("moco", [], None)[0], {key: value}))
    assert str(caught.value) == message


@dataclasses.dataclass(frozen=True)
class Mine:
    """Options of a method that declares no range, and of one that does."""

    plain: float = 1.0
    whole: int = 1
    several: tuple[float, ...] = ()
    choice: "str | float" = "a"
    ranged: Share | None = None
    count: Count = 1


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"plain": -5.0, "whole": -(2**63), "several": (1.0, -2.0), "choice": 0.5, "ranged": 0.5}, []),
        ({"plain": math.inf, "whole": 2**63}, ["plain must be finite", "whole must be at most 9223372036854775807"]),
        ({"several": (1.0, math.nan), "choice": math.inf}, ["several must be values, each finite", "choice must be"]),
        ({"ranged": 1.5, "count": 0}, ["ranged must be in [0, 1]; got 1.5", "count must be at least 1; got 0"]),
    ],
    ids=str,
)
def test_a_method_from_elsewhere_is_checked_by_its_types(
    options: dict[str, Any], expected: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    method = type("Method", (methods.Method,), {"Config": Mine, "summary": ""})
    module = types.SimpleNamespace(METHOD=method)
    monkeypatch.setattr("mixfast.methods.import_module", lambda *_: module)
    config: RunConfig[Any] = RunConfig("my_lab.mine", Mine(**options))
    if not expected:
        validate(config)
        return
    with pytest.raises(ConfigError) as caught:
        validate(config)
    lines = str(caught.value).splitlines()
    assert len(lines) == len(expected)
    assert all(line.startswith(f"--method.{text}") for line, text in zip(lines, expected, strict=True))


def test_a_range_holds_the_ends_that_it_says() -> None:
    closed, half, above = Range(0, 1), Range(0, 1, above=True), Range(0, above=True)
    assert [x in closed for x in (0, 0.5, 1, -0.1, 1.1, math.nan)] == [True, True, True, False, False, False]
    assert [x in half for x in (0, 1)] == [False, True] and [x in above for x in (0, 1e300)] == [False, True]
    assert [str(x) for x in (closed, half, above, Range(8))] == ["in [0, 1]", "in (0, 1]", "above 0", "at least 8"]


def test_ranges_of_a_dataclass_without_a_section() -> None:
    kind = dataclasses.make_dataclass("Options", [("scale", Positive, 1.0)])
    check_ranges(kind())
    with pytest.raises(ConfigError, match=r"^--scale must be above 0; got 0.0$"):
        check_ranges(kind(0.0))
