"""Writes docs/api.md: the public names of every public module with the first sentence of their documentation.

    python scripts/api_page.py

A function or class is described by its docstring, a value by the comment above its assignment.
"""

import ast
import importlib
import inspect
import re
from pathlib import Path
from types import ModuleType
from typing import Any

PAGE = Path(__file__).parents[1] / "docs" / "api.md"
PUBLIC = (
    "mixfast",
    "mixfast.ops",
    "mixfast.losses",
    "mixfast.methods",
    "mixfast.methods.bases",
    "mixfast.models",
    "mixfast.adapters",
    "mixfast.augment",
    "mixfast.augment.geometry",
    "mixfast.mix",
    "mixfast.data",
    "mixfast.scoring",
    "mixfast.export",
    "mixfast.errors",
    "mixfast.ranges",
    "mixfast.rng",
)
_HEAD = """# Public names

Written by `python scripts/api_page.py` from the docstrings. Modules and names that are not listed here are private:
they may change in any release. `help(name)` prints the shapes, units, dtypes and errors.
"""


def public_names(module: ModuleType) -> list[str]:
    """The module's `__all__` without dunder names."""
    return [name for name in module.__all__ if not name.startswith("__")]


def first_sentence(text: str) -> str:
    """The first sentence of a docstring, on one line."""
    paragraph = " ".join(text.strip().split("\n\n")[0].split())
    end = re.search(r"(?<!et al)\.(?= [^\d\W]| [`\"(]|$)", paragraph)
    return paragraph[: end.end()] if end else paragraph


def documentation(module: ModuleType, name: str) -> str:
    """The text that documents `module.name`; "" if there is none."""
    value = getattr(module, name)
    if not (inspect.isclass(value) or inspect.isroutine(value)):
        return _comment(module, name)
    text = inspect.getdoc(value) or ""
    generated = inspect.isclass(value) and text.startswith((f"{name}(", "Create and return a new object"))
    return "" if generated or text == inspect.getdoc(object) else text


def _comment(module: ModuleType, name: str) -> str:
    """The comment lines above the assignment to `name`, in the module or in the one that it is imported from."""
    source = inspect.getsource(module)
    for node in ast.parse(source).body:
        if isinstance(node, ast.ImportFrom) and node.module and name in (alias.name for alias in node.names):
            return _comment(importlib.import_module(node.module), name)
        targets: list[Any] = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]
        if name in (getattr(target, "id", None) for target in targets):
            above = source.splitlines()[: node.lineno - 1]
            comment = []
            while above and above[-1].startswith("#"):
                comment.insert(0, above.pop().removeprefix("#").strip())
            return "\n".join(comment)
    return ""


def page() -> str:
    """The whole page, in Markdown."""
    parts: list[str] = [_HEAD]
    listed: dict[int, str] = {}  # by id, the module that an object is listed under
    for path in PUBLIC:
        module = importlib.import_module(path)
        rows, again = [], []
        for name in public_names(module):
            home = listed.setdefault(id(getattr(module, name)), path)
            if home == path:
                sentence = first_sentence(documentation(module, name)).replace("|", "\\|")
                rows.append(f"| `{name}` | {sentence} |")
            else:
                again.append(f"`{name}`")
        summary = " ".join((module.__doc__ or "").split("\n\n")[0].split())
        parts += [f"## {path}\n\n{summary}\n"]
        if again:
            parts += [f"Also here: {', '.join(again)}.\n"]
        parts += ["\n".join(["| name | |", "|---|---|", *rows, ""])]
    return "\n".join(parts)


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
