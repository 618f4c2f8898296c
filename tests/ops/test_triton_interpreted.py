"""Runs the tests in triton_interpreted*.py, in a process of its own: kernels are interpreted from their import on."""

import importlib.metadata
import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def missing() -> str | None:
    """Why this machine has no interpreter that works."""
    if importlib.util.find_spec("triton") is None:
        return "the package triton is not installed"
    triton, numpy = (
        tuple(int(part) for part in importlib.metadata.version(name).split(".")[:2]) for name in ("triton", "numpy")
    )
    if triton < (3, 7) and numpy >= (2, 4):
        return f"Triton {triton} interprets no loop with numpy {numpy}: it needs numpy < 2.4"
    return None


@pytest.mark.slow
@pytest.mark.skipif(missing() is not None, reason=str(missing()))
def test_interpreted_kernels() -> None:
    cases = map(str, sorted(Path(__file__).parent.glob("triton_interpreted*.py")))
    environment = {**os.environ, "TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"}
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-p",
        "no:cacheprovider",
        "-p",
        "tests.ops.lean_interpreter",
        *cases,
    ]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert " skipped" not in done.stdout
