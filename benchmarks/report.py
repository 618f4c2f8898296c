"""python -m benchmarks.report [FILE.json]: Markdown from pytest-benchmark's file, one table per group.

Without a file: writes the tables of docs/benchmarks.md, and the pictures beside it, from all of benchmarks/results.
"""

import json
import re
import sys
from pathlib import Path
from typing import Any

from benchmarks.gpu import plot
from benchmarks.gpu import report as gpu

ROOT = Path(__file__).parents[1]
RESULTS, DOCUMENT, PICTURES = ROOT / "benchmarks/results", ROOT / "docs/benchmarks.md", ROOT / "docs/pictures"


def ratio(time: float, base: dict[str, Any] | None) -> str:
    return "" if base is None else f"{time / base['stats']['median']:.2f} x"


def first(rows: list[dict[str, Any]], prefix: str) -> dict[str, Any] | None:
    """The quickest row whose name begins with `prefix`."""
    named = [row for row in rows if row["extra_info"]["implementation"].startswith(prefix)]
    return min(named, key=lambda row: row["stats"]["median"], default=None)


def table(group: str, rows: list[dict[str, Any]]) -> list[str]:
    mixfast_row, floor = first(rows, "mixfast"), first(rows, "floor")
    lines = [
        f"### {group}",
        "",
        "| implementation | median ms | least ms | of ours | of the floor | extra memory MiB |",
        "|---|---|---|---|---|---|",
    ]
    for row in sorted(rows, key=lambda row: row["stats"]["median"]):
        info, median, least = row["extra_info"], row["stats"]["median"], row["stats"]["min"]
        memory = info.get("extra_memory_mib")
        cells = [
            info["implementation"],
            f"{median * 1e3:.3g}",
            f"{least * 1e3:.3g}",
            ratio(median, mixfast_row),
            ratio(median, floor),
            "" if memory is None else f"{memory:.1f}",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return [*lines, ""]


def render(results: dict[str, Any]) -> str:
    """The whole report: the machine, then the tables in the order in which the groups ran."""
    machine, benchmarks = results["machine_info"], results["benchmarks"]
    cpu = machine.get("cpu", {})
    threads = sorted({row["extra_info"].get("threads") for row in benchmarks})
    busy = ", processor seconds" if benchmarks[0]["extra_info"].get("clock") == "processor" else ""
    lines = [
        f"{cpu.get('brand_raw', machine.get('processor', 'unknown processor'))}, "
        f"{cpu.get('count', '?')} cores, {'/'.join(map(str, threads))} threads{busy}, {results['datetime'][:10]}, "
        f"commit {results['commit_info'].get('id', 'unknown')[:10]}"
        + (" with changes" if results["commit_info"].get("dirty") else ""),
        "",
    ]
    for group in dict.fromkeys(row["group"] for row in benchmarks):
        lines += table(group, [row for row in benchmarks if row["group"] == group])
    return "\n".join(lines)


def cpu_tables() -> str:
    files = sorted(RESULTS.glob("cpu-*/*.json"))
    return "\n".join(render(json.loads(path.read_text())) for path in files)


def gpu_tables() -> str:
    sections = []
    for path in sorted(RESULTS.glob("*/benchmarks.jsonl")):
        sections.append(gpu.render(gpu.load(path)))
        pictures = [name for _, name in plot.PICTURES.values() if (PICTURES / path.parent.name / name).exists()]
        sections += [f"![{name}](pictures/{path.parent.name}/{name})\n" for name in pictures]
    return "\n".join(sections) or gpu.render([])


def filled(text: str) -> str:
    """The document with its tables as the results say: between <!-- NAME tables ... --> and the next <!-- end."""
    for name, tables in (("cpu", cpu_tables()), ("gpu", gpu_tables())):
        pattern = rf"(<!-- {name} tables[^\n]*-->\n).*?(<!-- end)"
        text, count = re.subn(pattern, lambda match, t=tables: f"{match[1]}\n{t}\n{match[2]}", text, flags=re.DOTALL)
        if count != 1:
            raise ValueError(f"the document needs one place for the {name} tables; it has {count}")
    return text


def main() -> None:
    if len(sys.argv) > 1:
        print(render(json.loads(Path(sys.argv[1]).read_text())))
        return
    for path in RESULTS.glob("*/benchmarks.jsonl"):
        folder = PICTURES / path.parent.name
        folder.mkdir(parents=True, exist_ok=True)
        plot.draw(gpu.load(path), folder)
    DOCUMENT.write_text(filled(DOCUMENT.read_text()))


if __name__ == "__main__":
    main()
