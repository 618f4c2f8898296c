"""The script that tries what must never go wrong silently, itself tried on a few flipped bits."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


@pytest.mark.slow
def test_trials_of_flipped_bits_pass() -> None:
    command = [sys.executable, str(ROOT / "scripts/trials.py"), "flips", "--count", "14"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    ended = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert ended.stdout.splitlines()[1].split() == ["flips", "18", "18", "0"]
