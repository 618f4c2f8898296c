"""python -m benchmarks.gpu.report FILE.jsonl [--all]: Markdown from the results of a GPU; --all adds every group."""

import argparse
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

Row = dict[str, Any]
NOT_MEASURED = "Not yet measured: `scripts/gpu_check.sh` on a machine with a GPU writes these tables."


def load(path: Path) -> list[Row]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def render(records: list[Row], *, everything: bool = False) -> str:
    rows = [record for record in records if record["kind"] == "row"]
    if not rows:
        return NOT_MEASURED + "\n"
    lines = [machine_line(records), "", *rates_line(records), ""]
    plain = [row for row in rows if not row["facts"].get("sweep")]
    lines += overview("CUDA graph, cold L2", [row for row in plain if row["graph"] and row["cold"]])
    lines += overview("Eager calls, hot L2", [row for row in plain if not row["graph"] and not row["cold"]])
    for fact, heading in (("keys", "Time against K"), ("pixels", "Time against H x W")):
        lines += sweep(heading, fact, [row for row in rows if row["facts"].get("sweep") == fact])
    if everything:
        for title in dict.fromkeys(row["title"] for row in rows):
            lines += group(title, [row for row in rows if row["title"] == title])
    return "\n".join(lines).rstrip() + "\n"


def machine_line(records: list[Row]) -> str:
    machine = [record for record in records if record["kind"] == "machine"][-1]
    gpu = machine["gpu"] or {"name": "no GPU (a dry run)", "driver_version": "none"}
    versions = f"torch {machine['torch']}, Triton {machine['packages']['triton']}, CUDA {machine['cuda_runtime']}"
    return (
        f"{gpu['name']}, driver {gpu['driver_version']}, {versions}, {machine['date'][:10]}, commit {machine['commit']}"
    )


def rates_line(records: list[Row]) -> list[str]:
    rates = [record for record in records if record["kind"] == "rates"][-1]
    products = ", ".join(f"{rate / 1e12:.0f} TFLOP/s in {dtype}" for dtype, rate in rates["products"].items())
    return [
        f"Rates behind the floors: copy {rates['copy'] / 1e12:.2f} TB/s (bytes read and written), matrix products "
        f"{products}; a kernel inside a graph takes at least {rates['launch_us']:.2f} µs."
    ]


def overview(heading: str, rows: list[Row]) -> list[str]:
    """One line for each task: times of this package, and ratios of the others to its fastest backend in their group."""
    if not rows:
        return []
    lines = [
        f"### {heading}",
        "",
        "| task | floor µs | goal µs | cuda µs (of the floor) | triton µs (of the floor) | others, times ours | MiB |",
        "|---|---|---|---|---|---|---|",
    ]
    for task in dict.fromkeys(row["task"] for row in rows):
        of_task = [row for row in rows if row["task"] == task]
        floor = next((f"{row['floor_us']:.2f}" for row in of_task if "floor_us" in row), "?")
        fastest = best(of_task)
        goal = " / ".join(dict.fromkeys(f"{row['goal_us']:g}" for row in of_task if row["goal_us"]))
        memory = "" if fastest is None or fastest["peak_mib"] is None else f"{fastest['peak_mib']:.2f}"
        cells = [task, floor, goal, *(mixfast_cell(of_task, backend) for backend in ("cuda", "triton"))]
        lines.append(f"| {' | '.join([*cells, other_cells(of_task), memory])} |")
    return [*lines, ""]


def mixfast_cell(rows: list[Row], backend: str) -> str:
    row = next((row for row in rows if row["implementation"] == f"mixfast {backend}"), None)
    if row is None:
        return "-"
    return row.get("reason") or f"{row['median_us']:.2f} ({row['floor_us'] / row['median_us']:.0%})"


def best(rows: Iterable[Row]) -> Row | None:
    """The fastest row of this package."""
    measured = [row for row in rows if row["implementation"].startswith("mixfast") and "median_us" in row]
    return min(measured, key=lambda row: row["median_us"], default=None)


def other_cells(rows: list[Row]) -> str:
    entries = []
    for title in dict.fromkeys(row["title"] for row in rows):
        of_group = [row for row in rows if row["title"] == title]
        fastest = best(of_group)
        for row in of_group:
            if row["implementation"].startswith("mixfast"):
                continue
            measured = "median_us" in row and fastest is not None
            ratio = f"{row['median_us'] / fastest['median_us']:.1f}" if measured and fastest else row.get("reason", "?")
            entries.append(f"{row['implementation']} {ratio}")
    return "; ".join(entries)


def sweep(heading: str, fact: str, rows: list[Row]) -> list[str]:
    if not rows:
        return []
    names = list(dict.fromkeys(row["implementation"] for row in rows))
    lines = []
    for task in dict.fromkeys(label(row) for row in rows):
        of_curve = [row for row in rows if label(row) == task]
        lines += [f"### {heading}: {task}", "", f"| {fact} | {' | '.join(names)} |", "|---" * (len(names) + 1) + "|"]
        for value in sorted({row["facts"][fact] for row in of_curve}):
            by_name = {row["implementation"]: row for row in of_curve if row["facts"][fact] == value}
            cells = [
                f"{by_name[name]['median_us']:.2f}" if "median_us" in by_name.get(name, {}) else "-" for name in names
            ]
            lines.append(f"| {value} | {' | '.join(cells)} |")
        lines.append("")
    return lines


def label(row: Row) -> str:
    """The name of the curve that a row is a point of."""
    return row["facts"]["curve"]


def group(title: str, rows: list[Row]) -> list[str]:
    lines = [
        f"#### {title}",
        "",
        "| implementation | median µs | 10 % | 90 % | samples x calls | of the floor | peak MiB | deviation |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for row in sorted(rows, key=lambda row: row.get("median_us", float("inf"))):
        if "median_us" not in row:
            lines.append(f"| {row['implementation']} | {row['reason']} | | | | | | |")
            continue
        times = [f"{row[key]:.2f}" for key in ("median_us", "p10_us", "p90_us")]
        share, counts = f"{row['floor_us'] / row['median_us']:.1%}", f"{row['samples']} x {row['calls']}"
        memory = "" if row["peak_mib"] is None else f"{row['peak_mib']:.2f}"
        deviation = "" if "deviation" not in row else f"{row['deviation']:.1e}"
        lines.append(f"| {' | '.join([row['implementation'], *times, counts, share, memory, deviation])} |")
    return [*lines, ""]


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu.report", description=__doc__)
    parser.add_argument("file", type=Path)
    parser.add_argument("--all", action="store_true", help="also a table for every group")
    options = parser.parse_args()
    print(render(load(options.file), everything=options.all), end="")


if __name__ == "__main__":
    main()
