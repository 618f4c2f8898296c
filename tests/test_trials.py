"""The script that tries what must never go wrong silently, itself tried on a few flipped bits."""

from pathlib import Path

import pytest

from tests.tiny_run import script_in_child

SCRIPT = Path(__file__).resolve().parents[1] / "scripts" / "trials.py"


@pytest.mark.slow
def test_trials_of_flipped_bits_pass(tmp_path: Path) -> None:
    log = tmp_path / "log"
    assert script_in_child(SCRIPT, ["flips", "--count", "14"], log) == 0, log.read_text()
    assert log.read_text().splitlines()[1].split() == ["flips", "18", "18", "0"]
