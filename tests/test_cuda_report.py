"""The report on compiled CUDA kernels: a part of it made anew, the rule it applies, what the committed one holds."""

import importlib.util
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

from mixfast.ops import norm

ROOT = Path(__file__).parents[1]
SCRIPT = ROOT / "scripts/cuda_report.py"


@pytest.fixture(scope="module")
def report() -> ModuleType:
    spec = importlib.util.spec_from_file_location("cuda_report", SCRIPT)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def built_for(architecture: int) -> Path | None:
    """The folder of the newest build of the CUDA module, which `make test` leaves where it has an nvcc; None if it is
    for other architectures, or if a source has changed since."""
    folders = sorted((ROOT / "build").glob("cmake-*-_mixfast_cuda-*"), key=lambda folder: folder.stat().st_mtime)
    for folder in folders[-1:]:
        objects = [path.stat().st_mtime for path in folder.rglob("*.cu.o")]
        sources = [path.stat().st_mtime for path in (ROOT / "csrc").rglob("*")]
        archs = re.findall(r"^MIXFAST_CUDA_ARCHS:\w+=(.*)$", (folder / "CMakeCache.txt").read_text(), re.MULTILINE)
        if f"{architecture}-real" in archs[0].split(";") and objects and min(objects) > max(sources):
            return folder
    return None


@pytest.mark.slow
def test_kernels_neither_spill_nor_overflow(report: ModuleType) -> None:
    """All of them, for the architecture with least shared memory: as they are built, if they are, else compiled."""
    folder = built_for(86) if report.program("cuobjdump") else None
    if folder is None and report.program("nvcc") is None:
        pytest.skip("nvcc not found")
    command = [sys.executable, str(SCRIPT), "--arch", "86", *(("--built", str(folder)) if folder else ())]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    count = re.search(r"^(\d+) compiled, 0 at fault$", done.stdout, re.MULTILINE)
    rows = re.findall(r"^sm_86 +(\S.*?): \d+, 0, ", done.stdout, re.MULTILINE)
    assert count and len(rows) == len(set(rows)) == int(count[1]) >= 60


def test_what_counts_as_a_fault(report: ModuleType) -> None:
    name = "infonce::partials<0, 128, true>"
    assert report.faults(name, 86, report.Result(255, 0, 99 << 10, "HMMA")) == []
    assert report.faults(name, 86, report.Result(255, 0, 0, None)) == []  # nothing to read the machine code with
    assert report.faults(name, 86, report.Result(255, 8, 0, "HMMA")) == ["spills 8 bytes"]
    assert report.faults(name, 86, report.Result(32, 0, 1 + (99 << 10), "HMMA")) == [
        "101377 bytes of shared memory, 101376 at most"
    ]
    assert report.faults(name, 90, report.Result(32, 0, 0, "")) == ["no MMA"]
    hopper = "infonce::hopper_partials<0, 128, true>"
    assert report.faults(hopper, 90, report.Result(168, 0, 0, "HGMMA UTMALDG", hidden=0.5)) == []
    assert report.faults(hopper, 90, report.Result(168, 0, 0, "HGMMA", True, 0.25)) == [
        "waits for each wgmma",
        "no HGMMA UTMALDG",
        "only 25% of the exponentials beside products, 50% without those of the first step",
    ]
    assert report.faults(hopper.replace("true", "false"), 90, report.Result(168, 0, 0, "HGMMA UTMALDG")) == []
    for name in ("spread<float, 4>", "spread_last<__nv_bfloat16, 8>"):
        assert report.faults(name, 90, report.Result(54, 0, 0, "STG.E.128")) == []
        assert report.faults(name, 90, report.Result(54, 0, 0, "")) == ["no STG.E.128"]
    assert report.faults("spread<float, 1>", 90, report.Result(30, 0, 0, "")) == []
    assert report.faults("pool<float, 1, 8>", 90, report.Result(32, 0, 0, "")) == []
    gradient = "norm::gradient<__nv_bfloat16, 8, false>"
    assert report.faults(gradient, 90, report.Result(99, 0, 0, "10 LDG.E.128 5 STG.E.128")) == []
    for counted in ("10 LDG.E.128 3 STG.E.128", "15 LDG.E.128 5 STG.E.128", ""):
        message = f"{counted or 'none'}, stated are 10 LDG.E.128 5 STG.E.128"
        assert report.faults(gradient, 90, report.Result(99, 0, 0, counted)) == [message]
    assert report.faults("norm::gradient<float, 1, false>", 90, report.Result(40, 0, 0, "")) == []


def test_sweeps_of_batch_norm_are_those_stated(report: ModuleType) -> None:
    kernels = {  # of a call with a ReLU, by whether there is a residual
        "norm, ReLU": (("moments", "normalise false"), ("products true false", "gradient true")),
        "norm, sum, ReLU": (("moments", "normalise true"), ("products true true", "gradient false")),
    }
    for parts, directions in kernels.items():
        line = next(line for line in str(norm.__doc__).splitlines() if line.strip().startswith(f"{parts}  "))
        stated = re.findall(r"(?:forward|backward) (\d) \+ (\d)", line)
        for counted, used in zip(stated, directions, strict=True):
            names = [f"norm::{', '.join((f'{name}<float', '4', *flags))}>" for name, *flags in map(str.split, used)]
            sweeps = [sweep for name in names for rule, sweep in report.SWEEPS.items() if re.search(rule, name)]
            assert tuple(map(int, counted)) == tuple(map(sum, zip(*sweeps, strict=True))), (parts, used)


def test_order_of_exponentials_and_waits_is_read(report: ModuleType) -> None:
    power = "  MUFU.EX2 R4, R4 ;\n"
    last, all_of_them = "  WARPGROUP.DEPBAR.LE gsb0, 0x1 ;\n", "  WARPGROUP.DEPBAR.LE gsb0, 0x0 ;\n"
    first_step = all_of_them + 2 * power
    assert report.hidden(first_step + last + 2 * power + all_of_them) == 0.5
    assert report.hidden(first_step + last + power + all_of_them + power) == 0.25
    assert report.hidden(first_step + last + all_of_them + 2 * power) == report.hidden("") == 0


def test_what_the_assembler_says_is_read(report: ModuleType) -> None:
    log = """ptxas info    : Compiling entry function '_Z4poolv' for 'sm_86'
ptxas info    : Function properties for _Z4poolv
    8 bytes stack frame, 4 bytes spill stores, 12 bytes spill loads
ptxas info    : Used 56 registers, used 1 barriers, 512 bytes smem, 400 bytes cmem[0]
"""
    assert report.resource_usage(log) == {"_Z4poolv": (56, 16, 512)} and report.serialized(log) == set()
    loss = "(C7510) Potential Performance Loss: wgmma.mma_async instructions are serialized due to"
    assert report.serialized(f"{log}{loss} a lack of registers in the function '_Z4poolv'\n") == {"_Z4poolv"}
    with pytest.raises(RuntimeError, match="otherwise than expected"):
        report.resource_usage(log.replace("Used", "Uses"))


def test_committed_report_names_every_kernel(report: ModuleType) -> None:
    lines = (ROOT / "docs/cuda-report.md").read_text().splitlines()
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in lines if line.startswith("| ")]
    assert rows[0][1:] == [f"sm_{each}" for each in report.SHARED_LIMIT] and all(all(row) for row in rows)
    reported = {row[0].split("<")[0].split("::")[-1] for row in rows[1:]}
    declared = set()
    for path in (path for path in (ROOT / "csrc").rglob("*.cu*") if path.suffix in (".cu", ".cuh")):
        declared |= set(re.findall(r"__global__[^;{]*?(\w+)\((?:const|Source|T|M)\b", path.read_text()))
    assert reported == declared
