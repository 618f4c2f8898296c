"""docs/api.md lists every public name once, each is documented and typed, and the documents use no other."""

import ast
import importlib
import re
from pathlib import Path

import pytest

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
