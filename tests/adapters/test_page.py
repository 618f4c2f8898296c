"""docs/adapters.md: the code after each change runs, and where that before it can run, both give the same loss."""

import importlib.util
import re
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch

import mixfast.adapters

PAGE = Path(__file__).parents[2] / "docs" / "adapters.md"
CHANGES = re.findall(r"```diff\n(.*?)```", PAGE.read_text(), re.DOTALL)


def side(change: str, sign: str) -> str:
    """The code before (sign "-") or after ("+") a change."""
    return "\n".join(line[1:] for line in change.splitlines() if line[:1] in ("", " ", sign))


def executed(code: str) -> dict[str, Any]:
    names: dict[str, Any] = {}
    torch.manual_seed(0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of other libraries, when they are imported
        exec(compile(code, PAGE.name, "exec"), names)
    return names


@pytest.mark.parametrize("change", CHANGES, ids=lambda change: re.findall(r"from mixfast\S* import (\w+)", change)[0])
def test_both_sides_of_each_change(change: str) -> None:
    after, before = (side(change, sign) for sign in "+-")
    assert "mixfast" in after and "mixfast" not in before
    new = executed(after)
    libraries = {name.split(".")[0] for name in re.findall(r"^(?:from|import) (\S+)", before, re.MULTILINE)}
    if all(importlib.util.find_spec(name) for name in libraries):
        old = executed(before)
        assert ("loss" in old) == ("loss" in new)
        if "loss" in old:
            torch.testing.assert_close(new["loss"], old["loss"])


def test_every_adapter_is_shown() -> None:
    assert len(CHANGES) == 7
    assert not [name for name in mixfast.adapters.__all__ if not re.search(rf"\b{name}\b", PAGE.read_text())]
