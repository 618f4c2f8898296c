"""docs/licences.md lists every dependency, with the licence that the installed package states."""

import importlib.metadata
import re
import sys
from pathlib import Path

import pytest

if sys.version_info < (3, 11):
    pytest.skip("tomllib came with Python 3.11", allow_module_level=True)
import tomllib

ROOT = Path(__file__).parents[1]
ROWS = dict(re.findall(r"^\| ([\w-]+) \| ([^|]+) \|", (ROOT / "docs/licences.md").read_text(), re.MULTILINE))
del ROWS["package"]


def requirements() -> set[str]:
    """The packages that pyproject.toml names, for the build, to run and in extras, without this one."""
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())
    project = settings["project"]
    lists = [settings["build-system"]["requires"], project["dependencies"], *project["optional-dependencies"].values()]
    names = {re.split(r"[^\w-]", requirement)[0] for each in lists for requirement in each}
    return names - {"mixfast"}


def test_every_dependency_has_a_row() -> None:
    assert ROWS.keys() == requirements()


@pytest.mark.parametrize("package", ROWS)
def test_the_licence_is_what_the_package_states(package: str) -> None:
    """By its family: packages write BSD, BSD-3-Clause or BSD License for the same."""
    try:
        metadata = importlib.metadata.metadata(package)
    except importlib.metadata.PackageNotFoundError:
        pytest.skip(f"{package} is not installed")
    classifiers = [line for line in metadata.get_all("Classifier") or [] if line.startswith("License")]
    texts = [metadata.get("License-Expression"), metadata.get("License"), *classifiers]
    stated = " ".join(text for text in texts if text)
    names = {"PSF": "Python Software Foundation"}
    (family,) = re.findall(r"^(?:Apache|BSD|GPL|MIT|MPL|PSF)", ROWS[package])
    assert names.get(family, family) in stated
