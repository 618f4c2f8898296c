"""The page of profiles says what the committed results say, and the curves beside it can be measured again."""

import json
from pathlib import Path

import pytest

from benchmarks import profile_page
from tests.tiny_run import script_in_child

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]


def test_page_holds_what_the_results_say() -> None:
    """`python -m benchmarks.profile_page` writes it."""
    text = profile_page.DOCUMENT.read_text()
    assert profile_page.filled(text) == text


def test_curves_are_measured_and_drawn(tmp_path: Path) -> None:
    file = tmp_path / "scaling.json"
    arguments, log = ["--smoke", "--out", str(file)], tmp_path / "log"
    assert script_in_child(ROOT / "benchmarks/scaling.py", arguments, log, MIXFAST_BENCH_BUSY="1") == 0, log.read_text()
    found = json.loads(file.read_text())
    assert found["environment"]["clock"] == "processor" and found["environment"]["threads"] == 1
    assert [point["sweep"] for point in found["points"]] == list(profile_page.PANELS)
    for point in found["points"]:
        floor = profile_page.PANELS[point["sweep"]][1]
        assert set(point["seconds"]) == {"mixfast", "plain PyTorch", floor} and min(point["seconds"].values()) > 0
    profile_page.draw_scaling(tmp_path / "scaling.png", found["points"])
    assert (tmp_path / "scaling.png").stat().st_size > 5000
