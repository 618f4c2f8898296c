"""docs/methods: the committed pages are what the methods' docstrings and options make."""

import importlib
from pathlib import Path
from types import ModuleType

import pytest

from mixfast.methods import names

ROOT = Path(__file__).parents[2]


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(ROOT / "scripts"))
    return importlib.import_module("method_pages")


def test_there_is_a_page_for_every_method_and_no_other() -> None:
    assert sorted(path.stem for path in (ROOT / "docs/methods").glob("*.md")) == names()


@pytest.mark.parametrize("name", names())
def test_the_committed_page_is_made_from_the_method(name: str, script: ModuleType) -> None:
    committed = (ROOT / f"docs/methods/{name}.md").read_text()
    assert committed == script.page(name), "run python scripts/method_pages.py"


def test_pages_show_every_picture_that_is_drawn(script: ModuleType) -> None:
    shown = {f"{name}{ending}.png" for name in names() for ending, _ in script.PICTURES.get(name, script.ONE_PICTURE)}
    assert shown == {path.name for path in (ROOT / "docs/pictures/methods").glob("*.png")}


def test_indented_paragraphs_of_a_docstring_become_one_block(script: ModuleType) -> None:
    text = "\nA sum.\n\n    a = 1\n\n      b = 2\n\nAnd its\nend.\n"
    assert script.fenced(text) == ["A sum.", "```text\na = 1\n\n  b = 2\n```", "And its\nend."]
