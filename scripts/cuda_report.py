"""Compiles every CUDA kernel for every architecture, without a GPU, and reports what the assembler says.

    python scripts/cuda_report.py --out docs/cuda-report.md          the whole report, minutes
    python scripts/cuda_report.py --only "^pool<" --arch 90          some of it, on the console
    python scripts/cuda_report.py --built build/cmake-... --arch 90  what a build of the module holds, seconds

Exits with 1 if a kernel spills registers, asks for more static shared memory than a block can have, multiplies
matrices without tensor cores, waits for each wgmma before the next one, computes exponentials while no product is under
way, writes maps less than 16 bytes at a time, or, in split_batch_norm, reads or writes them more often than stated.
Machine code is read where a disassembler is at hand: in the CUDA toolkit or in the package triton. Sources and flags
are those of csrc/sources.txt.
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
ONLY_ARCHITECTURE = {"cuda_sm_90a": 90}  # targets of csrc/sources.txt for the instructions of a single architecture
# What the machine code of a kernel must have, by its name.
NEEDED = {
    r"^infonce::partials<": "MMA",
    r"^infonce::hopper_partials<": "HGMMA UTMALDG",
    r"^spread(_last)?<\w+, [248]>": "STG.E.128",
}
# Maps that a kernel of split_batch_norm reads and writes: the sums are the sweeps in mixfast/ops/norm/__init__.py. The
# machine code has each access COPIES times: for several positions at once, and for the last ones (kAhead + 1 in
# csrc/norm/cuda_plan.h).
SWEEPS = {
    r"^norm::moments<\w+, [48]>": (1, 0),
    r"^norm::normalise<\w+, [48], false>": (1, 1),
    r"^norm::normalise<\w+, [48], true>": (2, 1),  # a residual
    r"^norm::products<\w+, [48], false, false>": (2, 0),
    r"^norm::products<\w+, [48], true, false>": (3, 0),  # a ReLU
    r"^norm::products<\w+, [48], true, true>": (3, 1),  # the residual's gradient
    r"^norm::gradient<\w+, [48], false>": (2, 1),
    r"^norm::gradient<\w+, [48], true>": (3, 1),
}
COPIES = 5
# Products on tensor cores, and copies of a tensor's boxes, as the machine code calls them.
INSTRUCTIONS = (re.compile(r"\b([HQ]?GMMA|[HI]MMA|UTC\w*MMA)\b"), re.compile(r"\b(UTMALDG)\b"))
STORE = re.compile(r"\b(STG\.E\.128)\b")  # of 16 bytes; looked for in kernels that write maps
ACCESSES = ("LDG.E.128", "STG.E.128")  # counted in the kernels of split_batch_norm
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
    return next((path for folder in folders if (path := shutil.which(name, path=str(folder)))), None)


def sources() -> Iterator[tuple[str, list[str], int | None]]:
    """(path, flags of its own, the only architecture) of each CUDA source."""
    for line in (ROOT / "csrc/sources.txt").read_text().splitlines():
        fields = line.split()
        if fields and fields[0] in ("cuda", *ONLY_ARCHITECTURE) and fields[1].endswith(".cu"):
            yield fields[1], fields[2:], ONLY_ARCHITECTURE.get(fields[0])


def short_names(mangled: list[str]) -> list[str]:
    """Demangled names without namespaces, return type and parameters."""
    text = subprocess.run(["c++filt"], input="\n".join(mangled), capture_output=True, text=True, check=True).stdout
    names = []
    for name in text.splitlines():
        name = re.sub(r"mixfast::gpu::|\(anonymous namespace\)::|\((?:mixfast::)?[\w:]+\)(?=\d)", "", name)
        names.append(re.sub(r"^void ", "", name[: name.rindex("(")] if name.endswith(")") else name))
    return names


def resource_usage(log: str) -> dict[str, tuple[int, int, int]]:
    """Registers, bytes spilled and static shared memory of each kernel, by its mangled name."""
    usage = {}
    for part in re.split(r"Compiling entry function", log)[1:]:
        name = re.match(r" '(\w+)'", part)
        registers = re.search(r"Used (\d+) registers", part)
        spills = re.search(r"(\d+) bytes spill stores, (\d+) bytes spill loads", part)
        if not (name and registers and spills):
            raise RuntimeError(f"the assembler's report reads otherwise than expected:\n{part}")
        shared = re.search(r"(\d+) bytes smem", part)
        usage[name[1]] = (int(registers[1]), int(spills[1]) + int(spills[2]), int(shared[1]) if shared else 0)
    return usage


def serialized(log: str) -> set[str]:
    """Mangled names of the kernels whose wgmma the assembler could not leave asynchronous."""
    return set(re.findall(r"wgmma\.mma_async instructions are serialized.*?'(\w+)'", log))


def hidden(code: str) -> float:
    """Share of a kernel's exponentials that stand between a wait for all wgmma but the last group and the next wait."""
    under_way, hidden_count, total = False, 0, 0
    for groups, exponential in WAITS.findall(code):
        total += bool(exponential)
        hidden_count += bool(exponential) and under_way
        under_way = under_way if exponential else groups == "1"
    return hidden_count / total if total else 0.0


def accesses(loads: int, stores: int) -> str:
    return " ".join(f"{count} {name}" for count, name in zip((loads, stores), ACCESSES, strict=True) if count)


def instructions(cubin: Path) -> dict[str, tuple[str, float]]:
    """Instructions, and hidden(), of each kernel by its mangled name; {} without a disassembler."""
    tool = program("nvdisasm")
    if tool is None:
        return {}
    text = subprocess.run([tool, "-c", str(cubin)], capture_output=True, text=True, check=True).stdout
    parts = re.split(r"\.section\s+\.text\.(\w+)", text)
    by_kernel = {}
    for name, body in zip(parts[1::2], parts[2::2], strict=True):
        looked_for = (STORE,) if "spread" in name else INSTRUCTIONS
        found = " ".join(hit[1] for pattern in looked_for if (hit := pattern.search(body)))
        if "4norm" in name:
            found = accesses(*(len(re.findall(rf"\b{re.escape(access)}\b", body)) for access in ACCESSES))
        by_kernel[name] = found, hidden(body)
    return by_kernel


def compiled(
    nvcc: str, source: str, flags: list[str], only_architecture: int | None, architecture: int
) -> dict[str, Result]:
    """Compile a source; returns the result of each of its kernels."""
    with tempfile.TemporaryDirectory() as folder:
        cubin = Path(folder, "kernels.cubin")
        target = f"{architecture}a" if only_architecture else str(architecture)
        code = f"-gencode=arch=compute_{target},code=sm_{target}"
        command = [nvcc, *FLAGS, code, *flags, source, "-o", str(cubin)]
        process = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
        if process.returncode:
            raise RuntimeError(f"{' '.join(command)}:\n{process.stderr}")
        log = process.stderr + process.stdout
        usage, code_of, slow = resource_usage(log), instructions(cubin), serialized(log)
    results = {}
    for mangled, name in sorted(zip(usage, short_names(list(usage)), strict=True), key=lambda pair: pair[1]):
        instruction, share = code_of.get(mangled, (None, 0.0))
        results[name] = Result(*usage[mangled], instruction, mangled in slow, share)
    return results


def built(folder: Path, source: str, architecture: int) -> dict[str, Result]:
    """The kernels in the object that a build made of a source; what they keep on a stack counts as spilled.

    That wgmma waits for wgmma is not seen: the assembler says so while it compiles, and nowhere else.
    """
    tool = program("cuobjdump")
    if tool is None:
        raise RuntimeError("cuobjdump not found")
    (made,) = folder.resolve().rglob(f"{source}.o")
    results = {}
    with tempfile.TemporaryDirectory() as extracted:
        subprocess.run(
            [tool, "-xelf", f"sm_{architecture}.", str(made)], cwd=extracted, check=True, capture_output=True
        )
        for cubin in Path(extracted).iterdir():
            text = subprocess.run([tool, "-res-usage", str(cubin)], capture_output=True, text=True, check=True).stdout
            usage = re.findall(r"Function (\w+):\s+REG:(\d+) STACK:(\d+) SHARED:(\d+) LOCAL:(\d+)", text)
            code_of = instructions(cubin)
            for (mangled, *sizes), name in zip(usage, short_names([mangled for mangled, *_ in usage]), strict=True):
                registers, stack, shared, local = map(int, sizes)
                instruction, share = code_of.get(mangled, (None, 0.0))
                results[name] = Result(registers, stack + local, shared, instruction, hidden=share)
    return results


def faults(name: str, architecture: int, result: Result) -> list[str]:
    messages = []
    if result.spilled:
        messages.append(f"spills {result.spilled} bytes")
    if result.shared > SHARED_LIMIT[architecture] << 10:
        messages.append(f"{result.shared} bytes of shared memory, {SHARED_LIMIT[architecture] << 10} at most")
    if result.serialized:
        messages.append("waits for each wgmma")
    needed = next((needed for pattern, needed in NEEDED.items() if re.search(pattern, name)), "")
    if result.instruction is not None and needed not in result.instruction:
        messages.append(f"no {needed}")
    sweeps = next((sweeps for pattern, sweeps in SWEEPS.items() if re.search(pattern, name)), None)
    if result.instruction is not None and sweeps is not None:
        stated = accesses(*(COPIES * maps for maps in sweeps))
        messages += [f"{result.instruction or 'none'}, stated are {stated}"] if result.instruction != stated else []
    if result.instruction is not None and re.search(OVERLAPPED, name) and result.hidden < 0.5:
        messages.append(
            f"only {result.hidden:.0%} of the exponentials beside products, 50% without those of the first step"
        )
    return messages


def table(results: dict[str, dict[int, Result]], architectures: list[int], version: str) -> str:
    """Markdown: a line for each kernel, a column for each architecture."""
    lines = [
        "# CUDA kernels as compiled",
        "",
        f"Written by `scripts/cuda_report.py` with nvcc {version}, without a GPU: no time is measured.",
        "Cells: registers of a thread at its start, and where there are some the instructions of tensor cores, of",
        "the copy engine, and those by which `spread` stores 16 bytes; of `norm` kernels the number of instructions",
        f"that load and store 16 bytes, {COPIES} for each map that is read or written. The script fails on a kernel",
        "that spills registers or waits for each `wgmma`, on a `spread` that stores less at a time, on a `norm` kernel",
        "that accesses maps more often than `mixfast/ops/norm/__init__.py` states, or less than 16 bytes at a time,",
        "and on a `hopper_partials` with gradients whose exponentials of a step do not stand between the wait for the",
        "scores and that for the products. All shared memory is given at the launch, in sizes that the plans on the",
        "host (`csrc/*/*_plan.h`) bound and `tests/cuda` checks. `hopper_partials` is built for sm_90a alone, where",
        "warps trade registers: 24 and 240.",
        "",
        "| Kernel | " + " | ".join(f"sm_{architecture}" for architecture in architectures) + " |",
        "|---" * (len(architectures) + 1) + "|",
    ]
    for name, row in results.items():
        cells = [
            f"{row[architecture].registers} {row[architecture].instruction or ''}".strip()
            if architecture in row
            else "-"
            for architecture in architectures
        ]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", help="regular expression that the name of a kernel contains")
    parser.add_argument("--source", default="", help="regular expression that the path of a source contains")
    parser.add_argument("--arch", type=int, nargs="+", choices=SHARED_LIMIT, default=list(SHARED_LIMIT))
    parser.add_argument("--built", type=Path, help="folder of a build of the module: its objects are read")
    parser.add_argument("--out", type=Path, help="file for the table, once all is well")
    options = parser.parse_args()
    nvcc = program("nvcc")
    if nvcc is None and (options.out or not options.built):
        print("nvcc not found", file=sys.stderr)
        return 1
    chosen = [entry for entry in sources() if re.search(options.source, entry[0])]
    jobs = [(*entry, arch) for entry in chosen for arch in options.arch if entry[2] in (None, arch)]

    def kernels_of(job: tuple[str, list[str], int | None, int]) -> dict[str, Result]:
        return built(options.built, job[0], job[-1]) if options.built else compiled(str(nvcc), *job)

    results: dict[str, dict[int, Result]] = {}
    faulty = 0
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for job, kernels in zip(jobs, pool.map(kernels_of, jobs), strict=True):
            for name, result in kernels.items():
                if not re.search(options.only, name):
                    continue
                messages = faults(name, job[-1], result)
                faulty += bool(messages)
                results.setdefault(name, {})[job[-1]] = result
                note = f"  FAULT: {'; '.join(messages)}" if messages else ""
                print(f"sm_{job[-1]}  {name}: {', '.join(map(str, result))}{note}", flush=True)
    print(f"{sum(map(len, results.values()))} compiled, {faulty} at fault")
    if options.out and not faulty:
        version = subprocess.run([nvcc, "--version"], capture_output=True, text=True, check=True).stdout
        options.out.write_text(table(results, options.arch, re.findall(r"release ([\d.]+)", version)[0]))
    return 1 if faulty or not results else 0


if __name__ == "__main__":
    sys.exit(main())
