"""Compiles every CUDA kernel for every architecture, without a GPU, and reports what the assembler says.

    python scripts/cuda_report.py --out docs/cuda-report.md          the whole report, minutes
    python scripts/cuda_report.py --only "^pool<" --arch 90          some of it, on the console

Exits with 1 if a kernel spills registers, asks for more static shared memory than a block can have, multiplies
matrices without tensor cores, waits for each wgmma before the next one, computes exponentials while no product is under
way, or writes maps less than 16 bytes at a time. Machine code is read where a disassembler is at hand: in the CUDA
toolkit or in the package triton. Sources and flags are those of csrc/sources.txt.
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
OWN = {"cuda_sm_90a": 90}  # targets of csrc/sources.txt that are built for one architecture's own instructions
# What the machine code of a kernel must have, by its name.
NEEDED = {
    r"^infonce::partials<": "MMA",
    r"^infonce::hopper_partials<": "HGMMA UTMALDG",
    r"^spread(_last)?<\w+, [248]>": "STG.E.128",
}
# Products on tensor cores, and copies of a tensor's boxes, as the machine code calls them.
INSTRUCTIONS = (re.compile(r"\b([HQ]?GMMA|[HI]MMA|UTC\w*MMA)\b"), re.compile(r"\b(UTMALDG)\b"))
STORE = re.compile(r"\b(STG\.E\.128)\b")  # of 16 bytes; looked for in kernels that write maps
# Kernels whose exponentials, all but those of the first step, belong between the wait for all wgmma but the last group
# and the wait for that one. In the machine code's loop they are as many as before it.
OVERLAPPED = r"^infonce::hopper_partials<.*true>"
WAITS = re.compile(r"WARPGROUP\.DEPBAR\.LE gsb0, 0x(\d)|MUFU\.(EX2)")
FLAGS = ("-O3", "-std=c++17", "-Icsrc", "-Xptxas", "-v", "-cubin")  # the first three as in CMakeLists.txt


class Result(NamedTuple):
    registers: int
    spilled: int  # bytes stored and loaded
    shared: int  # bytes of a block, without what a launch adds
    instruction: str | None  # None: nothing to read the machine code with
    serialized: bool = False  # asynchronous products of matrices, one after another
    hidden: float = 0.0  # share of the exponentials that are computed while products are under way


def program(name: str) -> str | None:
    """nvcc or one of its companions: from CUDA_HOME, PATH, the toolkit's usual place, or the package triton."""
    spec = importlib.util.find_spec("triton")
    folders = [Path(os.environ[key], "bin") for key in ("CUDA_HOME", "CUDA_PATH") if os.environ.get(key)]
    folders += [Path(part) for part in os.environ.get("PATH", "").split(os.pathsep)]
    folders += [Path(os.sep, "usr", "local", "cuda", "bin")]
    folders += [Path(spec.origin).parent / "backends/nvidia/bin"] if spec and spec.origin else []
    return next((found for folder in folders if (found := shutil.which(name, path=str(folder)))), None)


def sources() -> Iterator[tuple[str, list[str], int | None]]:
    """(path, flags of its own, the only architecture) of each CUDA source."""
    for line in (ROOT / "csrc/sources.txt").read_text().splitlines():
        words = line.split()
        if words and words[0] in ("cuda", *OWN) and words[1].endswith(".cu"):
            yield words[1], words[2:], OWN.get(words[0])


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


def serialized(log: str) -> set[str]:
    """Mangled names of the kernels whose wgmma the assembler could not leave asynchronous."""
    return set(re.findall(r"wgmma\.mma_async instructions are serialized.*?'(\w+)'", log))


def hidden(code: str) -> float:
    """Share of a kernel's exponentials that stand between a wait for all wgmma but the last group and the next wait."""
    under_way, between, total = False, 0, 0
    for groups, exponential in WAITS.findall(code):
        total += bool(exponential)
        between += bool(exponential) and under_way
        under_way = under_way if exponential else groups == "1"
    return between / total if total else 0.0


def instructions(cubin: Path) -> dict[str, tuple[str, float]]:
    """Instructions, and hidden(), of each kernel by its mangled name; {} without a disassembler."""
    tool = program("nvdisasm")
    if tool is None:
        return {}
    text = subprocess.run([tool, "-c", str(cubin)], capture_output=True, text=True, check=True).stdout
    parts = re.split(r"\.section\s+\.text\.(\w+)", text)
    found = {}
    for name, body in zip(parts[1::2], parts[2::2], strict=True):
        looked_for = (STORE,) if "spread" in name else INSTRUCTIONS
        found[name] = " ".join(hit[1] for each in looked_for if (hit := each.search(body))), hidden(body)
    return found


def compiled(nvcc: str, source: str, flags: list[str], own: int | None, architecture: int) -> dict[str, Result]:
    """Every kernel of a source."""
    with tempfile.TemporaryDirectory() as folder:
        cubin = Path(folder, "kernels.cubin")
        target = f"{architecture}a" if own else str(architecture)
        code = f"-gencode=arch=compute_{target},code=sm_{target}"
        command = [nvcc, *FLAGS, code, *flags, source, "-o", str(cubin)]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
        if done.returncode:
            raise RuntimeError(f"{' '.join(command)}:\n{done.stderr}")
        log = done.stderr + done.stdout
        said, found, slow = ptxas_says(log), instructions(cubin), serialized(log)
    results = {}
    for mangled, name in sorted(zip(said, short(list(said)), strict=True), key=lambda pair: pair[1]):
        instruction, share = found.get(mangled, (None, 0.0))
        results[name] = Result(*said[mangled], instruction, mangled in slow, share)
    return results


def faults(name: str, architecture: int, result: Result) -> list[str]:
    found = []
    if result.spilled:
        found.append(f"spills {result.spilled} bytes")
    if result.shared > SHARED_LIMIT[architecture] << 10:
        found.append(f"{result.shared} bytes of shared memory, {SHARED_LIMIT[architecture] << 10} at most")
    if result.serialized:
        found.append("waits for each wgmma")
    needed = next((needed for pattern, needed in NEEDED.items() if re.search(pattern, name)), "")
    if result.instruction is not None and needed not in result.instruction:
        found.append(f"no {needed}")
    if result.instruction is not None and re.search(OVERLAPPED, name) and result.hidden < 0.5:
        found.append(
            f"only {result.hidden:.0%} of the exponentials beside products, 50% without those of the first step"
        )
    return found


def table(results: dict[str, dict[int, Result]], architectures: list[int], version: str) -> str:
    """Markdown: a line for each kernel, a column for each architecture."""
    lines = [
        "# CUDA kernels as compiled",
        "",
        f"Written by `scripts/cuda_report.py` with nvcc {version}, without a GPU: no time is measured.",
        "Cells: registers of a thread at its start, and where there are some the instructions of tensor cores, of",
        "the copy engine, and those by which `spread` stores 16 bytes. The script fails on a kernel that spills",
        "registers or waits for each `wgmma`, on a `spread` that stores less at a time, and on a `hopper_partials`",
        "with gradients whose exponentials of a step do not stand between the wait for the scores and that for the",
        "products. All shared memory is given at the launch, in sizes that the plans on the host",
        "(`csrc/*/*_plan.h`) bound and `tests/cuda` checks. `hopper_partials` is built for sm_90a alone, where",
        "warps trade registers: 24 and 240.",
        "",
        "| Kernel | " + " | ".join(f"sm_{each}" for each in architectures) + " |",
        "|---" * (len(architectures) + 1) + "|",
    ]
    for name, row in results.items():
        cells = [
            f"{row[each].registers} {row[each].instruction or ''}".strip() if each in row else "-"
            for each in architectures
        ]
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
    jobs = [(nvcc, *each, arch) for each in chosen for arch in options.arch if each[2] in (None, arch)]
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
