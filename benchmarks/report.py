"""Turns pytest-benchmark's JSON into Markdown: one table per group, times as multiples of ours and of the floor."""

import json
import sys
from pathlib import Path
from typing import Any


def ratio(time: float, base: dict[str, Any] | None) -> str:
    return "" if base is None else f"{time / base['stats']['median']:.2f} x"


def first(rows: list[dict[str, Any]], prefix: str) -> dict[str, Any] | None:
    """The quickest row whose name begins with `prefix`."""
    named = [row for row in rows if row["extra_info"]["implementation"].startswith(prefix)]
    return min(named, key=lambda row: row["stats"]["median"], default=None)


def table(group: str, rows: list[dict[str, Any]]) -> list[str]:
    ours, floor = first(rows, "mixfast"), first(rows, "floor")
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
            ratio(median, ours),
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
    lines = [
        f"{cpu.get('brand_raw', machine.get('processor', 'unknown processor'))}, "
        f"{cpu.get('count', '?')} cores, {'/'.join(map(str, threads))} threads, {results['datetime'][:10]}, "
        f"commit {results['commit_info'].get('id', 'unknown')[:10]}",
        "",
    ]
    for group in dict.fromkeys(row["group"] for row in benchmarks):
        lines += table(group, [row for row in benchmarks if row["group"] == group])
    return "\n".join(lines)


def main() -> None:
    """python -m benchmarks.report RESULTS.json: the Markdown on standard output."""
    print(render(json.loads(Path(sys.argv[1]).read_text())))


if __name__ == "__main__":
    main()
