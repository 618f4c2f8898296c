"""The report on compiled Triton kernels: a part of it made anew, the rule it applies, what the committed one holds."""

import importlib
import importlib.util
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).parents[1]
SCRIPT = ROOT / "scripts/triton_report.py"

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("triton") is None, reason="the package triton is not installed"
)


@pytest.fixture
def report(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(SCRIPT.parent))
    return importlib.import_module("triton_report")


@pytest.mark.slow
def test_kernels_neither_spill_nor_overflow(tmp_path: Path) -> None:
    """The largest kernels in use, on the architecture with least shared memory and on one with its own instruction."""
    only = (
        "^(partials fp16 D=128 loss and gradient|partials fp32 bf16x3 D=128 loss|pool boxes bf16 channels_last 14x14)$"
    )
    out = tmp_path / "report.md"
    command = [sys.executable, str(SCRIPT), "--only", only, "--arch", "86", "90", "--out", str(out)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "TRITON_CACHE_DIR": str(tmp_path)}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "6 compiled, 0 at fault" in done.stdout
    rows = [line.split("|")[1:-1] for line in out.read_text().splitlines() if line.startswith("| p")]
    assert len(rows) == 3
    assert rows[0][1].split()[-1] == "mma" and rows[0][2].split()[-1] == "wgmma"


def test_what_counts_as_a_fault(report: ModuleType) -> None:
    variant = report.Variant("name", None, {}, {}, {}, matrix=True)
    assert report.faults(variant, 86, report.Result(255, 0, 99 << 10, "mma.sync")) == []
    assert report.faults(variant, 86, report.Result(32, 8, 0, "mma.sync")) == ["spills 8 bytes"]
    assert report.faults(variant, 86, report.Result(32, 0, 1 + (99 << 10), "mma.sync")) == [
        "101377 bytes of shared memory, 101376 at most"
    ]
    assert report.faults(variant, 90, report.Result(32, 0, 0, "")) == ["no tensor cores"]
    ptx = (
        "@%p1 st.global.v4.b32 [%rd1 + 0], { %r1, %r2, %r3, %r4 };\nst.global.L1::evict_first.v2.b64 [%rd2], { %rd3 };"
    )
    assert report.narrow_stores(ptx) == 0
    narrow = report.narrow_stores(f"{ptx}\n@%p st.global.b16 [%rd1], {'{ %rs1 }'};\nst.global.v2.b32 [%rd1], %r1;")
    streams = report.Variant("spread bf16 contiguous 7x7", None, {}, {}, {})
    assert report.faults(streams, 90, report.Result(32, 0, 0, "", narrow)) == ["2 stores of less than 16 bytes"]
    assert report.faults(variant._replace(matrix=False), 90, report.Result(32, 0, 0, "", narrow)) == []


def test_variants_that_are_left_out_keep_their_lines(report: ModuleType) -> None:
    first, second, *_ = (variant.name for variant in report.variants(90))
    old, new = report.Result(40, 0, 2048, "wgmma.mma_async"), report.Result(64, 0, 100, "")
    earlier = report.table({second: {90: old}, first: {90: old}}, [90])
    lines = report.table({first: {90: new}}, [90], earlier).splitlines()
    assert lines[-2:] == [f"| {first} | 64, 1 |", f"| {second} | 40, 2 wgmma |"]
    version = report.triton.__version__
    older = earlier.replace(f"with Triton {version}, ", "with Triton 1.2.3, 4.5.6, ")
    for before, named in ((earlier, version), (older, f"1.2.3, 4.5.6, {version}")):
        assert f"with Triton {named}, without a GPU" in report.table({first: {90: new}}, [90], before)
    assert report.table({first: {80: new}}, [80], earlier).splitlines()[-2:] == ["|---|---|", f"| {first} | 64, 1 |"]


def test_committed_report_is_complete(report: ModuleType) -> None:
    lines = (ROOT / "docs/triton-report.md").read_text().splitlines()
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in lines if line.startswith("| ")]
    assert rows[0][1:] == [f"sm_{each}, {limit} KiB" for each, limit in report.SHARED_LIMIT.items()]
    assert [row[0] for row in rows[1:]] == [variant.name for variant in report.variants(90)]
    assert all(all(row) for row in rows)
