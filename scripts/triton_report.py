"""Compiles every Triton kernel for every architecture, without a GPU, and reports what the assembler says.

    python scripts/triton_report.py --out docs/triton-report.md     the whole report, minutes
    python scripts/triton_report.py --only "merge" --arch 90        some of it, on the console

Exits with 1 if a kernel spills registers, asks for more shared memory than a block can have, or multiplies matrices in
16 bits without tensor cores. The constants and launch options are those of the backends themselves.
"""

import argparse
import contextlib
import io
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from mixfast.ops.enqueue import gpu_triton as enqueue
from mixfast.ops.enqueue import gpu_triton_kernels as enqueue_kernels
from mixfast.ops.masked_upsample_pool import gpu_triton as pool
from mixfast.ops.masked_upsample_pool import gpu_triton_kernels as pool_kernels
from mixfast.ops.multi_queue_infonce import gpu_triton as infonce
from mixfast.ops.multi_queue_infonce import gpu_triton_kernels as infonce_kernels
from mixfast.ops.nt_xent import gpu_triton as nt_xent
from mixfast.ops.nt_xent import gpu_triton_kernels as nt_xent_kernels

SHARED_LIMIT = {80: 163, 86: 99, 89: 99, 90: 227, 100: 227, 120: 99}  # KiB a block can have
# Matrix instructions, as PTX calls them. Triton uses mma.sync where a tile is too small for the others.
INSTRUCTIONS = ("wgmma.mma_async", "tcgen05.mma", "mma.sync")
Types = dict[str, Any]


class Variant(NamedTuple):
    """A kernel with the types of its arguments ("i32:16" is a multiple of 16, None is None) and its constants."""

    name: str
    kernel: Any
    types: Types
    constants: dict[str, Any]
    launch: dict[str, Any]
    matrix: bool = False  # multiplies matrices on tensor cores


class Result(NamedTuple):
    registers: int
    spilled: int  # bytes stored
    shared: int  # bytes of a block
    instruction: str


def pool_variants() -> Iterator[Variant]:
    launch = pool._LAUNCH
    sizes = {"height": "i32", "width": "i32"}
    for dtype, sides in (("bf16", (4, 7, 14)), ("fp32", (7,))):
        for last in (False, True):
            for side in sides:
                name = f"{dtype} {'channels_last' if last else 'contiguous'} {side}x{side}"
                maps = {each: f"*{dtype}" for each in ("features", "inside", "outside")}
                types = {**maps, "weights": "*fp32", "channels": "i32:16", **sizes}
                constants = pool.pool_constants(side, side, False, last, False)
                yield Variant(f"pool boxes {name}", pool_kernels.pool, {**types, "boxes": "*i64"}, constants, launch)
                yield Variant(f"pool weights {name}", pool_kernels.pool, {**types, "boxes": None}, constants, launch)
                maps = {each: f"*{dtype}" for each in ("grad_inside", "grad_outside", "grad")}
                types = {**maps, "weights": "*fp32", "channels": "i32:16"}
                constants = pool.spread_constants(side, side, False, last)
                yield Variant(f"spread {name}", pool_kernels.spread, types, constants, launch)
    types = {"boxes": "*i64", "weights": "*fp32", **sizes}
    yield Variant("box_weights 32x32", pool_kernels.box_weights, types, pool.box_constants(32, 32, True), launch)
    for dtype, element_size in (("u8", 1), ("fp32", 4)):
        for side in (7, 64):
            types = {"masks": f"*{dtype}", "weights": "*fp32", **sizes}
            constants = pool.mask_constants(side, side, False, element_size)
            yield Variant(f"mask_weights {dtype} {side}x{side}", pool_kernels.mask_weights, types, constants, launch)
    constants = {"POSITIONS": 4096, "BLOCK_P": 1024}
    yield Variant("normalise 64x64", pool_kernels.normalise, {"weights": "*fp32"}, constants, launch)


def infonce_variants(architecture: int) -> Iterator[Variant]:
    """Of five terms against three queues, with temperatures as numbers."""
    common: Types = {"tiles": "*i32", "temperature": None, "temperatures": ("fp32",) * 5, "total": "i32"}
    common |= {"valid_len": "*i64"}
    partial = {each: "*fp32" for each in ("maxima", "sums", "products")}
    for dim in (64, 128, 256):
        for grad in (True, False):
            chunks = partial if grad else {**partial, "products": None}
            suffix = f"D={dim} {'loss and gradient' if grad else 'loss'}"
            for dtype, factors in (("fp16", "fp16"), ("bf16", "bf16"), ("fp32", "cast"), ("fp32", "bf16x3")):
                if factors == "bf16x3" and dim > infonce.LARGEST_EXACT_DIM:
                    continue
                types = {**common, **chunks, "queries": f"*{dtype}", "queues": (f"*{dtype}",) * 3}
                constants, launch = infonce.partials_constants(architecture, dim, factors, grad)
                product = factors if factors == dtype else f"{dtype} {factors}"
                yield Variant(f"partials {product} {suffix}", infonce_kernels.partials, types, constants, launch, True)
            rows = {each: "*fp16" for each in ("queries", "positives")}
            outputs = {"losses": "*fp32", "shares": "*fp32", "grads": "*fp32" if grad else None}
            constants = {**infonce.row_constants(dim), "GRAD": grad}
            types = {**common, **chunks, **rows, **outputs}
            yield Variant(f"merge fp16 {suffix}", infonce_kernels.merge, types, constants, infonce._LAUNCH)
        names = ("upstream", "grads", "shares", "d_temperatures")
        types = {**common, "terms": "*i32", "upstream_stride": "i32", **{name: "*fp32" for name in names}}
        types |= {name: "*fp16" for name in ("queries", "d_queries", "d_positives")}
        constants = {**infonce.row_constants(dim), "REDUCTION": "mean"}
        yield Variant(f"scale_rows fp16 D={dim}", infonce_kernels.scale_rows, types, constants, infonce._LAUNCH)
    types = {"values": "*fp32", "terms": "*i32", "results": "*fp32"}
    constants = {"MEAN": True, "BLOCK_N": 1024}
    yield Variant("reduce_terms", infonce_kernels.reduce_terms, types, constants, infonce._LAUNCH)


def nt_xent_variants(architecture: int) -> Iterator[Variant]:
    common: Types = {"temperature": None, "number": "fp32", "total": "i32", "chunk": "i32", "chunks": "i32"}
    statistics = ("maxima", "sums", "losses", "denominators", "shares", "upstream", "results", "d_temperatures")
    common |= {**{name: "*fp32" for name in statistics}, "upstream_stride": "i32"}
    for dim in (64, 128, 256):
        for dtype, factors in (("fp16", "fp16"), ("bf16", "bf16"), ("fp32", "cast"), ("fp32", "bf16x3")):
            if factors == "bf16x3" and dim > nt_xent.LARGEST_EXACT_DIM:
                continue
            for excluded in (None, "*i64") if dim == 128 else (None,):
                types = {**common, "rows": f"*{dtype}", "excluded": excluded}
                name = factors if factors == dtype else f"{dtype} {factors}"
                name += f" D={dim}{' excluded' if excluded else ''}"
                constants, launch = nt_xent.pair_constants(architecture, dim, factors, False)
                yield Variant(f"nt_xent partials {name}", nt_xent_kernels.partials, types, constants, launch, True)
                constants, launch = nt_xent.pair_constants(architecture, dim, factors, True)
                constants["REDUCTION"] = "mean"
                yield Variant(f"nt_xent products {name}", nt_xent_kernels.products, types, constants, launch, True)
        types = {**common, "rows": "*fp16", "d_rows": "*fp16"}
        constants, launch = nt_xent.row_constants(dim), nt_xent._LAUNCH
        yield Variant(f"nt_xent merge fp16 D={dim}", nt_xent_kernels.merge, types, constants, launch)
        constants = {**constants, "REDUCTION": "mean"}
        yield Variant(f"nt_xent combine fp16 D={dim}", nt_xent_kernels.combine, types, constants, launch)
    types = {"values": "*fp32", "result": "*fp32", "count": "i32"}
    yield Variant("nt_xent reduce", nt_xent_kernels.reduce, types, {"MEAN": True, "BLOCK_N": 1024}, nt_xent._LAUNCH)


def enqueue_variants() -> Iterator[Variant]:
    """Of three queues."""
    types = {"queues": ("*fp16",) * 3, "keys": ("*fp32",) * 3, "pointers": ("*i64",) * 3}
    types |= {"sizes": ("i32",) * 3, "counts": ("i32",) * 3}
    for dim in (64, 128, 256):
        constants = enqueue.enqueue_constants(dim, True)
        yield Variant(f"enqueue fp32 to fp16 D={dim}", enqueue_kernels.enqueue, types, constants, enqueue._LAUNCH)


def variants(architecture: int) -> Iterator[Variant]:
    yield from infonce_variants(architecture)
    yield from nt_xent_variants(architecture)
    yield from pool_variants()
    yield from enqueue_variants()


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
    return Result(int(registers[1]), int(spilled[1]), binary.metadata.shared, instruction)


def faults(variant: Variant, architecture: int, result: Result) -> list[str]:
    found = []
    if result.spilled:
        found.append(f"spills {result.spilled} bytes")
    if result.shared > SHARED_LIMIT[architecture] << 10:
        found.append(f"{result.shared} bytes of shared memory, {SHARED_LIMIT[architecture] << 10} at most")
    if variant.matrix and not result.instruction:
        found.append("no tensor cores")
    return found


def table(results: dict[str, dict[int, Result]], architectures: list[int]) -> str:
    """Markdown: a line for each variant, a column for each architecture."""
    lines = [
        "# Triton kernels as compiled",
        "",
        f"Written by `scripts/triton_report.py` with Triton {triton.__version__}, without a GPU: no time is measured.",
        "Cells: registers of a thread, KiB of shared memory of a block (limit in the head), matrix instruction.",
        "No kernel spills registers; the script fails on one that does.",
        "",
        "| Kernel | " + " | ".join(f"sm_{each}, {SHARED_LIMIT[each]} KiB" for each in architectures) + " |",
        "|---" * (len(architectures) + 1) + "|",
    ]
    for name, row in results.items():
        cells = []
        for each in architectures:
            result = row[each]
            cells.append(f"{result.registers}, {-(-result.shared // 1024)} {result.instruction.split('.')[0]}".strip())
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", help="regular expression that the name of a variant contains")
    parser.add_argument("--arch", type=int, nargs="+", choices=SHARED_LIMIT, default=list(SHARED_LIMIT))
    parser.add_argument("--out", type=Path, help="file for the table, once all is well")
    options = parser.parse_args()
    triton.knobs.compilation.always_compile = True  # a kernel from the cache would bring no log
    triton.knobs.nvidia.dump_ptxas_log = True
    results: dict[str, dict[int, Result]] = {}
    bad = 0
    for architecture in options.arch:
        for variant in variants(architecture):
            if not re.search(options.only, variant.name):
                continue
            result = compiled(variant, architecture)
            found = faults(variant, architecture, result)
            bad += bool(found)
            results.setdefault(variant.name, {})[architecture] = result
            note = f"  FAULT: {'; '.join(found)}" if found else ""
            print(f"sm_{architecture}  {variant.name}: {', '.join(map(str, result))}{note}", flush=True)
    print(f"{sum(map(len, results.values()))} compiled, {bad} at fault")
    if options.out and not bad:
        options.out.write_text(table(results, options.arch))
    return 1 if bad or not results else 0


if __name__ == "__main__":
    sys.exit(main())
