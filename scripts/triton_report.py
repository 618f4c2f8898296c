"""Compiles every Triton kernel for every architecture, without a GPU, and reports what the assembler says.

    python scripts/triton_report.py --out docs/triton-report.md     the whole report, minutes
    python scripts/triton_report.py --only "merge" --arch 90        some of it, on the console
    python scripts/triton_report.py --only "merge" --out docs/triton-report.md     these lines of it anew

Exits with 1 if a kernel spills registers, asks for more shared memory than a block can have, multiplies matrices in
16 bits without tensor cores, or only reads and writes maps but stores less than 16 bytes at a time. The constants and
launch options are those of the backends.
"""

import argparse
import contextlib
import io
import re
import sys
from pathlib import Path
from typing import Any, NamedTuple

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from triton_variants import Types, Variant, variants

SHARED_LIMIT = {80: 163, 86: 99, 89: 99, 90: 227, 100: 227, 120: 99}  # KiB a block can have
# Matrix instructions, as PTX calls them. Triton uses mma.sync where a tile is too small for the others.
INSTRUCTIONS = ("wgmma.mma_async", "tcgen05.mma", "mma.sync")
STREAMS = re.compile("^spread ")  # variants that do little else than to write a map
STORE = re.compile(r"\bst\.global\S*?(?:\.v(\d))?\.[bfsu](\d+)\b")  # of PTX: numbers, and bits of each


class Result(NamedTuple):
    registers: int
    spilled: int  # bytes stored
    shared: int  # bytes of a block
    instruction: str
    narrow: int = 0  # stores to global memory of less than 16 bytes


def narrow_stores(ptx: str) -> int:
    return sum(int(count or 1) * int(bits) < 128 for count, bits in STORE.findall(ptx))


def source(variant: Variant) -> ASTSource:
    """The kernel as the launcher would specialise it: aligned pointers, and numbers that are multiples of 16."""
    signature: Types = {}
    constants: dict[tuple[int, ...], Any] = {}
    aligned: dict[tuple[int, ...], Any] = {}
    for i, name in enumerate(variant.kernel.arg_names):
        given = variant.types.get(name)
        if name in variant.constants or given is None:
            signature[name] = "constexpr"
            constants[(i,)] = variant.constants.get(name)
            continue
        parts = given if isinstance(given, tuple) else (given,)
        for j, part in enumerate(parts):
            if part.startswith("*") or part.endswith(":16"):
                aligned[(i, j) if isinstance(given, tuple) else (i,)] = [["tt.divisibility", 16]]
        signature[name] = given if isinstance(given, tuple) else given.removesuffix(":16")
    return ASTSource(variant.kernel, signature, constants, aligned)


def compiled(variant: Variant, architecture: int) -> Result:
    log = io.StringIO()
    with contextlib.redirect_stdout(log):
        binary = triton.compile(source(variant), target=GPUTarget("cuda", architecture, 32), options=variant.launch)
    text = log.getvalue()
    registers, spilled = re.search(r"Used (\d+) registers", text), re.search(r"(\d+) bytes spill stores", text)
    if registers is None or spilled is None:
        raise RuntimeError(f"{variant.name}: the assembler reported no registers:\n{text}")
    ptx = binary.asm["ptx"]
    instruction = next((name for name in INSTRUCTIONS if name in ptx), "")
    return Result(int(registers[1]), int(spilled[1]), binary.metadata.shared, instruction, narrow_stores(ptx))


def faults(variant: Variant, architecture: int, result: Result) -> list[str]:
    messages = []
    if result.spilled:
        messages.append(f"spills {result.spilled} bytes")
    if result.shared > SHARED_LIMIT[architecture] << 10:
        messages.append(f"{result.shared} bytes of shared memory, {SHARED_LIMIT[architecture] << 10} at most")
    if variant.matrix and not result.instruction:
        messages.append("no tensor cores")
    if STREAMS.search(variant.name) and result.narrow:
        messages.append(f"{result.narrow} stores of less than 16 bytes")
    return messages


def table(results: dict[str, dict[int, Result]], architectures: list[int], earlier: str = "") -> str:
    """Markdown: a line for each variant, a column for each architecture.

    What is not in `results` keeps its line of an earlier table, if that had the same columns, and versions of Triton.
    """
    columns = [f"sm_{architecture}, {SHARED_LIMIT[architecture]} KiB" for architecture in architectures]
    head = f"| Kernel | {' | '.join(columns)} |"
    rows = {line.split("|")[1].strip(): line for line in earlier.splitlines() if head in earlier and line[:2] == "| "}
    versions = re.findall(r"[\d.]+(?=, )", earlier.partition("with Triton ")[2].partition("without")[0]) if rows else []
    written_with = ", ".join(dict.fromkeys([*versions, triton.__version__]))
    for name, row in results.items():
        cells = []
        for architecture in architectures:
            result = row[architecture]
            cells.append(f"{result.registers}, {-(-result.shared // 1024)} {result.instruction.split('.')[0]}".strip())
        rows[name] = f"| {name} | " + " | ".join(cells) + " |"
    lines = [
        "# Triton kernels as compiled",
        "",
        f"Written by `scripts/triton_report.py` with Triton {written_with}, without a GPU: no time is measured.",
        "Cells: registers of a thread, KiB of shared memory of a block (limit in the head), matrix instruction.",
        "No kernel spills registers, and `spread` stores 16 bytes at a time: else the script fails.",
        "",
        head,
        "|---" * (len(architectures) + 1) + "|",
    ]
    lines += [rows[variant.name] for variant in variants(architectures[0]) if variant.name in rows]
    return "\n".join(lines) + "\n"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--only", default="", help="regular expression in the names of variants; --out keeps the others"
    )
    parser.add_argument("--arch", type=int, nargs="+", choices=SHARED_LIMIT, default=list(SHARED_LIMIT))
    parser.add_argument("--out", type=Path, help="file for the table, once all is well")
    options = parser.parse_args()
    triton.knobs.compilation.always_compile = True  # a kernel from the cache would bring no log
    triton.knobs.nvidia.dump_ptxas_log = True
    results: dict[str, dict[int, Result]] = {}
    faulty = 0
    for architecture in options.arch:
        for variant in variants(architecture):
            if not re.search(options.only, variant.name):
                continue
            result = compiled(variant, architecture)
            messages = faults(variant, architecture, result)
            faulty += bool(messages)
            results.setdefault(variant.name, {})[architecture] = result
            note = f"  FAULT: {'; '.join(messages)}" if messages else ""
            print(f"sm_{architecture}  {variant.name}: {', '.join(map(str, result))}{note}", flush=True)
    print(f"{sum(map(len, results.values()))} compiled, {faulty} at fault")
    if options.out and not faulty:
        earlier = options.out.read_text() if options.only and options.out.exists() else ""
        options.out.write_text(table(results, options.arch, earlier))
    return 1 if faulty or not results else 0


if __name__ == "__main__":
    sys.exit(main())
