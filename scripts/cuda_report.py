"""Compiles every CUDA kernel for every architecture, without a GPU, and reports what the assembler says.

    python scripts/cuda_report.py --out docs/cuda-report.md          the whole report, minutes
    python scripts/cuda_report.py --only "^pool<" --arch 90          some of it, on the console

Exits with 1 if a kernel spills registers, asks for more static shared memory than a block can have, or multiplies
matrices without tensor cores. Machine code is read where a disassembler is at hand: in the CUDA toolkit or in the
package triton. Sources and flags are those of csrc/sources.txt.
"""

import argparse
import importlib.util
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[1]
SHARED_LIMIT = {80: 163, 86: 99, 89: 99, 90: 227, 100: 227, 120: 99}  # KiB a block can have
MATRIX = r"^infonce::partials<"  # kernels that multiply matrices
TENSOR_CORES = re.compile(r"\b([HQ]?GMMA|[HI]MMA|UTC\w*MMA)\b")  # as the machine code calls them
FLAGS = ("-O3", "-std=c++17", "-Icsrc", "-Xptxas", "-v", "-cubin")  # the first three as in setup.py


class Result(NamedTuple):
    registers: int
    spilled: int  # bytes stored and loaded
    shared: int  # bytes of a block, without what a launch adds
    instruction: str | None  # None: nothing to read the machine code with


def program(name: str) -> str | None:
    """nvcc or one of its companions: from CUDA_HOME, PATH, the toolkit's usual place, or the package triton."""
    spec = importlib.util.find_spec("triton")
    folders = [Path(os.environ[key], "bin") for key in ("CUDA_HOME", "CUDA_PATH") if os.environ.get(key)]
    folders += [Path(part) for part in os.environ.get("PATH", "").split(os.pathsep)]
    folders += [Path(os.sep, "usr", "local", "cuda", "bin")]
    folders += [Path(spec.origin).parent / "backends/nvidia/bin"] if spec and spec.origin else []
    return next((found for folder in folders if (found := shutil.which(name, path=str(folder)))), None)


def sources() -> Iterator[tuple[str, list[str]]]:
    """(path, flags of its own) of each CUDA source."""
    for line in (ROOT / "csrc/sources.txt").read_text().splitlines():
        words = line.split()
        if words and words[0] == "cuda" and words[1].endswith(".cu"):
            yield words[1], words[2:]


def short(mangled: list[str]) -> list[str]:
    """Demangled names without namespaces, return type and parameters."""
    text = subprocess.run(["c++filt"], input="\n".join(mangled), capture_output=True, text=True, check=True).stdout
    names = []
    for name in text.splitlines():
        name = re.sub(r"mixfast::gpu::|\(anonymous namespace\)::|\((?:mixfast::)?[\w:]+\)(?=\d)", "", name)
        names.append(re.sub(r"^void ", "", name[: name.rindex("(")] if name.endswith(")") else name))
    return names


def ptxas_says(log: str) -> dict[str, tuple[int, int, int]]:
    """Registers, bytes spilled and static shared memory of each kernel, by its mangled name."""
    found = {}
    for part in re.split(r"Compiling entry function", log)[1:]:
        name = re.match(r" '(\w+)'", part)
        registers = re.search(r"Used (\d+) registers", part)
        spills = re.search(r"(\d+) bytes spill stores, (\d+) bytes spill loads", part)
        if not (name and registers and spills):
            raise RuntimeError(f"the assembler's report reads otherwise than expected:\n{part}")
        shared = re.search(r"(\d+) bytes smem", part)
        found[name[1]] = (int(registers[1]), int(spills[1]) + int(spills[2]), int(shared[1]) if shared else 0)
    return found


def instructions(cubin: Path) -> dict[str, str]:
    """The tensor-core instruction, or "", of each kernel, by its mangled name; nothing without a disassembler."""
    tool = program("nvdisasm")
    if tool is None:
        return {}
    text = subprocess.run([tool, "-c", str(cubin)], capture_output=True, text=True, check=True).stdout
    parts = re.split(r"\.section\s+\.text\.(\w+)", text)
    hits = ((name, TENSOR_CORES.search(body)) for name, body in zip(parts[1::2], parts[2::2], strict=True))
    return {name: hit[1] if hit else "" for name, hit in hits}


def compiled(nvcc: str, source: str, flags: list[str], architecture: int) -> dict[str, Result]:
    """Every kernel of a source."""
    with tempfile.TemporaryDirectory() as folder:
        cubin = Path(folder, "kernels.cubin")
        command = [nvcc, *FLAGS, f"-arch=sm_{architecture}", *flags, source, "-o", str(cubin)]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
        if done.returncode:
            raise RuntimeError(f"{' '.join(command)}:\n{done.stderr}")
        said, found = ptxas_says(done.stderr + done.stdout), instructions(cubin)
    return {
        name: Result(*said[mangled], found.get(mangled))
        for mangled, name in sorted(zip(said, short(list(said)), strict=True), key=lambda pair: pair[1])
    }


def faults(name: str, architecture: int, result: Result) -> list[str]:
    found = []
    if result.spilled:
        found.append(f"spills {result.spilled} bytes")
    if result.shared > SHARED_LIMIT[architecture] << 10:
        found.append(f"{result.shared} bytes of shared memory, {SHARED_LIMIT[architecture] << 10} at most")
    if re.search(MATRIX, name) and result.instruction == "":
        found.append("no tensor cores")
    return found


def table(results: dict[str, dict[int, Result]], architectures: list[int], version: str) -> str:
    """Markdown: a line for each kernel, a column for each architecture."""
    lines = [
        "# CUDA kernels as compiled",
        "",
        f"Written by `scripts/cuda_report.py` with nvcc {version}, without a GPU: no time is measured.",
        "Cells: registers of a thread, and the tensor-core instruction where there is one. No kernel spills registers;",
        "the script fails on one that does. All shared memory is given at the launch, in sizes that the plans on the",
        "host (`csrc/*/cuda_plan.h`) bound and `tests/cuda` checks.",
        "",
        "| Kernel | " + " | ".join(f"sm_{each}" for each in architectures) + " |",
        "|---" * (len(architectures) + 1) + "|",
    ]
    for name, row in results.items():
        cells = [f"{row[each].registers} {row[each].instruction or ''}".strip() for each in architectures]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", help="regular expression that the name of a kernel contains")
    parser.add_argument("--source", default="", help="regular expression that the path of a source contains")
    parser.add_argument("--arch", type=int, nargs="+", choices=SHARED_LIMIT, default=list(SHARED_LIMIT))
    parser.add_argument("--out", type=Path, help="file for the table, once all is well")
    options = parser.parse_args()
    nvcc = program("nvcc")
    if nvcc is None:
        print("nvcc not found", file=sys.stderr)
        return 1
    chosen = [each for each in sources() if re.search(options.source, each[0])]
    jobs = [(nvcc, *each, architecture) for each in chosen for architecture in options.arch]
    results: dict[str, dict[int, Result]] = {}
    bad = 0
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for job, kernels in zip(jobs, pool.map(lambda job: compiled(*job), jobs), strict=True):
            for name, result in kernels.items():
                if not re.search(options.only, name):
                    continue
                found = faults(name, job[-1], result)
                bad += bool(found)
                results.setdefault(name, {})[job[-1]] = result
                note = f"  FAULT: {'; '.join(found)}" if found else ""
                print(f"sm_{job[-1]}  {name}: {', '.join(map(str, result))}{note}", flush=True)
    print(f"{sum(map(len, results.values()))} compiled, {bad} at fault")
    if options.out and not bad:
        version = subprocess.run([nvcc, "--version"], capture_output=True, text=True, check=True).stdout
        options.out.write_text(table(results, options.arch, re.findall(r"release ([\d.]+)", version)[0]))
    return 1 if bad or not results else 0


if __name__ == "__main__":
    sys.exit(main())
