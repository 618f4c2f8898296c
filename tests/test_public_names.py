"""docs/api.md lists every public name once, each is documented and typed, and the documents use no other."""

import ast
import dataclasses
import importlib
import inspect
import re
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from torch import Tensor

from scripts import api_page

ROOT = Path(__file__).parents[1]
DOCUMENTS = (ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md")))


@pytest.mark.parametrize("path", api_page.PUBLIC)
def test_public_modules_list_their_names_and_document_each(path: str) -> None:
    module = importlib.import_module(path)
    names = api_page.public_names(module)
    assert names and len(names) == len(set(names))
    assert not [name for name in names if not api_page.documentation(module, name)], "a docstring, or a comment above"
    assert module.__doc__


def documented_calls(path: str) -> Iterator[tuple[str, Callable[..., object], str]]:
    """(name, function, docstring) of the public functions of a module, and of its classes' constructors and methods."""
    module = importlib.import_module(path)
    for name in api_page.public_names(module):
        value = getattr(module, name)
        text = inspect.getdoc(value) or ""
        if inspect.isroutine(value):
            yield name, value, text
        elif inspect.isclass(value) and not issubclass(value, tuple | Exception):
            own = {key: call for key, call in vars(value).items() if inspect.isfunction(call)}
            if "__init__" in own and not dataclasses.is_dataclass(value):  # fields have comments
                yield name, own["__init__"], f"{text} {inspect.getdoc(own['__init__'])}"
            yield from (
                (f"{name}.{key}", call, inspect.getdoc(call) or "") for key, call in own.items() if key[0] != "_"
            )


@pytest.mark.parametrize("path", api_page.PUBLIC)
def test_docstrings_name_every_parameter_and_give_shapes_of_tensors(path: str) -> None:
    missing = []
    for name, call, text in documented_calls(path):
        if name.startswith("LightningMethod."):  # hooks, whose parameters are Lightning's
            continue
        parameters = [
            parameter for parameter in inspect.signature(call).parameters.values() if parameter.name != "self"
        ]
        named = [p for p in parameters if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)]
        missing += [f"{name}: {p.name}" for p in named if not re.search(rf"\b{p.name}\b", text)]
        if any(p.annotation is Tensor for p in named) and not re.search(r"\[[^]]|scalar", text):
            missing.append(f"{name}: shapes")
    assert not missing


def test_the_page_is_what_the_script_writes() -> None:
    assert api_page.PAGE.read_text() == api_page.page(), "run python scripts/api_page.py"


@pytest.mark.parametrize(
    "text, sentence",
    [
        ("One. Two.", "One."),
        ("Cross entropy (eq. 5) of\n    rows. More.\n\nDetails.", "Cross entropy (eq. 5) of rows."),
        ("After Choe et al. 2020 with 0.5 and so on", "After Choe et al. 2020 with 0.5 and so on"),
    ],
)
def test_first_sentences(text: str, sentence: str) -> None:
    assert api_page.first_sentence(text) == sentence


def test_the_documents_import_public_names_only() -> None:
    private = []
    for document in DOCUMENTS:
        for code in re.findall(r"```python\n(.*?)```", document.read_text(), re.DOTALL):
            for node in ast.walk(ast.parse(code)):
                modules = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
                if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "mixfast":
                    public = api_page.public_names(importlib.import_module(str(node.module)))
                    submodules = {f"{node.module}.{alias.name}" for alias in node.names} & set(api_page.PUBLIC)
                    private += [
                        f"{document.name}: {node.module}.{alias.name}"
                        for alias in node.names
                        if alias.name not in public and f"{node.module}.{alias.name}" not in submodules
                    ]
                    modules = [str(node.module)]
                inside = [name for name in modules if name.split(".")[0] == "mixfast"]
                private += [f"{document.name}: {name}" for name in inside if name not in api_page.PUBLIC]
    assert not private, "list them in the module's __all__, or use public names"
