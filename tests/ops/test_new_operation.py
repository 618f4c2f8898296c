"""An operation without a fast backend is two files and a line; no package is hidden by a function of its name."""

import importlib
import json
import pkgutil
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import mixfast.ops

ROOT = Path(__file__).parents[2]
INIT = '''"""Rows of length one."""

from torch import Tensor

from mixfast.ops import _dispatch
from mixfast.ops.rows import reference

NAME = "row_norm"


def row_norm(rows: Tensor, *, backend: str = "auto") -> Tensor:
    """Rows [N, D] divided by their lengths."""
    chosen = _dispatch.choose(NAME, backend, rows.device.type, rows.dtype)
    return _dispatch.module(NAME, chosen).normalise(rows)
'''
REFERENCE = '''"""Row norm by its definition."""

import torch
from torch import Tensor


def unavailable() -> str | None:
    return None


def why_not(device_type: str, dtype: torch.dtype) -> str | None:
    return None


def normalise(rows: Tensor) -> Tensor:
    return rows / rows.norm(dim=1, keepdim=True)
'''
USE = """
import json
import torch
import mixfast
from mixfast import doctor
from mixfast.ops import row_norm

print(json.dumps({
    "result": row_norm(torch.tensor([[3.0, 4.0]])).tolist(),
    "backends": mixfast.backends()["row_norm"],
    "operations": len(mixfast.backends()),
    "doctor": dict(doctor.operations())["row_norm reference"],
}))
"""


@pytest.mark.slow
def test_two_files_and_a_line_make_an_operation(tmp_path: Path) -> None:
    ignored = shutil.ignore_patterns("__pycache__")
    package = Path(shutil.copytree(ROOT / "mixfast", tmp_path / "mixfast", ignore=ignored)) / "ops"
    (package / "rows").mkdir()
    (package / "rows/__init__.py").write_text(INIT)
    (package / "rows/reference.py").write_text(REFERENCE)
    with (package / "__init__.py").open("a") as exports:
        exports.write("from mixfast.ops.rows import row_norm as row_norm\n")
    done = subprocess.run([sys.executable, "-c", USE], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["result"] == [[pytest.approx(0.6), pytest.approx(0.8)]]
    assert found["backends"] == {"reference": None}
    assert found["operations"] == 1 + len(mixfast.backends())
    assert found["doctor"] == "available; auto for cpu tensors"


@pytest.mark.parametrize("name", [module.name for module in pkgutil.iter_modules(mixfast.ops.__path__) if module.ispkg])
def test_no_function_hides_a_package(name: str) -> None:
    """`import mixfast.ops.pool as m` binds what the attributes lead to, not what is in sys.modules."""
    bound: dict[str, object] = {}
    exec(f"import mixfast.ops.{name} as package\nimport mixfast.ops.{name}.reference as reference", bound)
    for key, path in (("package", f"mixfast.ops.{name}"), ("reference", f"mixfast.ops.{name}.reference")):
        assert bound[key] is importlib.import_module(path)
