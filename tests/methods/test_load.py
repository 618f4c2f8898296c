"""methods: names and loading; test_outside.py trains a method from outside the package."""

import dataclasses
from pathlib import Path

import pytest

from mixfast.errors import ConfigError
from mixfast.methods import MODIFIERS, Method, load, names


def test_names_are_the_files() -> None:
    assert {"moco", "approach1", "approach2"} <= set(names())
    assert names() == sorted(names())
    assert not any(name.startswith("_") or name == "base" for name in names())
    for name in names():
        method = load(name)
        assert issubclass(method, Method) and method.summary
        assert "\n" not in method.summary and len(method.summary) < 100
        assert dataclasses.is_dataclass(method.Config) and method.Config.__dataclass_params__.frozen


@pytest.mark.parametrize("name", names())
def test_a_method_is_one_page_with_few_options(name: str) -> None:
    """No method inherits from another: what it does stands in its own file."""
    assert load(name).__bases__ == (Method,)
    assert len(dataclasses.fields(load(name).Config)) <= 12


def test_unknown_name_is_met_with_the_nearest() -> None:
    with pytest.raises(ConfigError, match=r"no 'aproach1'; did you mean approach1 or approach2 or .*\? Known: .*moco"):
        load("aproach1")
    with pytest.raises(ConfigError, match=r"no 'xyzzy'; Known: "):
        load("xyzzy")


@pytest.mark.parametrize(
    ("files", "name", "message"),
    [
        (
            {},
            "absent_lab.my_method",
            r"cannot import 'absent_lab.my_method' \(no module named 'absent_lab'\).*PYTHONPATH",
        ),
        ({"lab_a/__init__.py": ""}, "lab_a.gone", r"no module named 'lab_a.gone'"),
        ({"lab_b/m.py": "X = 1"}, "lab_b.m", r"lab_b.m must define METHOD.*got None"),
        ({"lab_c/m.py": "METHOD = 3"}, "lab_c.m", r"lab_c.m must define METHOD.*got 3"),
    ],
)
def test_what_is_wrong_with_an_outside_method_is_said(
    files: dict[str, str], name: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for path, text in files.items():
        (tmp_path / path).parent.mkdir(exist_ok=True)
        (tmp_path / path).write_text(text)
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ConfigError, match=message):
        load(name)


def test_an_import_that_fails_inside_an_outside_method_is_not_hidden(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "lab_e").mkdir()
    (tmp_path / "lab_e" / "m.py").write_text("import no_such_thing")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ModuleNotFoundError, match="no_such_thing"):
        load("lab_e.m")


def test_the_paper_literal_modifier_has_the_printed_numbers() -> None:
    assert MODIFIERS["paper_literal"] == {"optim.lr": 0.003, "optim.weight_decay": 0.0001}
