"""docs/first-steps.ipynb runs from its first cell to its last, made small."""

import json
import re
from pathlib import Path

import pytest

from tests.tiny_run import process_settings_kept

NOTEBOOK = Path(__file__).parents[1] / "docs" / "first-steps.ipynb"
SIZES = {
    "SCENES": 128, "EPOCHS": 1, "SCORED": 12, "CANVASES": 8, "STEPS": 2, "TESTED": 4, "LABELLED": 64, "PASSES": 1,
}  # fmt: skip


def cells(kind: str) -> list[str]:
    """The text of each cell of a kind."""
    found = json.loads(NOTEBOOK.read_text())["cells"]
    return ["".join(cell["source"]) for cell in found if cell["cell_type"] == kind]


def test_it_is_kept_without_outputs() -> None:
    book = json.loads(NOTEBOOK.read_text())
    assert book["nbformat"] == 4 and all(cell.get("outputs", []) == [] for cell in book["cells"])
    links = [link for text in cells("markdown") for link in re.findall(r"\]\(([^)#]+)", text)]
    assert links and all((NOTEBOOK.parent / link).exists() for link in links)


@pytest.mark.slow
def test_its_cells_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("torchvision")
    monkeypatch.chdir(tmp_path)
    sizes, *others = cells("code")
    names = [name.strip() for line in sizes.splitlines() for name in line.partition(" = ")[0].split(",")]
    assert names == list(SIZES)
    scenes = "data__scenes=SCENES"
    assert sum(text.count(scenes) for text in others) == 1
    others = [text.replace(scenes, f"{scenes}, data__test_scenes=40") for text in others]  # of 2,000
    space: dict[str, object] = dict(SIZES)
    with process_settings_kept():
        for number, text in enumerate(others):
            exec(compile(text, f"cell {number}", "exec"), space)
    printed = capsys.readouterr().out
    assert len(re.findall(r"CorLoc \d", printed)) == 4 and len(re.findall(r"AP \[\d+\.\d, \d+\.\d\]", printed)) == 4
    accuracies = re.search(r"64 labelled images: (\S+) % with the trained backbone, (\S+) % from random", printed)
    assert accuracies and all(0 <= float(accuracy) <= 100 for accuracy in accuracies.groups())
