"""python -m benchmarks.gpu.plot FILE.jsonl --out FOLDER: time against K and against H x W, drawn on any machine."""

import argparse
from pathlib import Path
from typing import Any

from benchmarks.gpu.report import load, machine_line
from mixfast import drawing

PICTURES = {
    "keys": ("K, keys in the queue", "time_against_keys.png"),
    "pixels": ("H = W of the images, pixels", "time_against_pixels.png"),
}


def draw(records: list[dict[str, Any]], folder: Path) -> list[Path]:
    """A picture for each sweep that was measured; medians, with the 10 % and 90 % as a band, and the floor."""
    written = []
    for fact, (axis, name) in PICTURES.items():
        rows = [row for row in records if row["kind"] == "row" and row["facts"].get("sweep") == fact]
        curves = sorted({(row["facts"]["curve"], row["implementation"]) for row in rows if "median_us" in row})
        if not curves:
            continue
        page, ((axes,),) = drawing.figure(10, 5)
        for number, (curve, implementation) in enumerate(curves):
            points = [row for row in rows if (row["facts"]["curve"], row["implementation"]) == (curve, implementation)]
            points = sorted((row for row in points if "median_us" in row), key=lambda row: row["facts"][fact])
            x = [row["facts"][fact] for row in points]
            style = drawing.curve(number)
            axes.plot(x, [row["median_us"] for row in points], label=f"{implementation}, {curve}", **style)
            low, high = ([row[key] for row in points] for key in ("p10_us", "p90_us"))
            axes.fill_between(x, low, high, color=style["color"], alpha=0.15, linewidth=0)
        for curve in sorted({curve for curve, _ in curves}):
            floor = {
                row["facts"][fact]: row["floor_us"]
                for row in rows
                if row["facts"]["curve"] == curve and "median_us" in row
            }
            axes.plot(sorted(floor), [floor[x] for x in sorted(floor)], "k:", label=f"floor, {curve}")
        axes.set(xlabel=axis, ylabel="time of a call, microseconds", xscale="log", yscale="log")
        axes.set_title(machine_line(records), fontsize=7)
        drawing.legend_beside(axes)
        drawing.save(page, folder / name, svg=True)
        written.append(folder / name)
    return written


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu.plot", description=__doc__)
    parser.add_argument("file", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    for path in draw(load(options.file), options.out):
        print(path)


if __name__ == "__main__":
    main()
