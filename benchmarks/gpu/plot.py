"""python -m benchmarks.gpu.plot FILE.jsonl --out FOLDER: time against K and against H x W, drawn on any machine."""

import argparse
from pathlib import Path
from typing import Any

from benchmarks.gpu.report import load, machine_line

PICTURES = {"keys": ("K", "time_against_keys.png"), "pixels": ("H = W", "time_against_pixels.png")}


def draw(records: list[dict[str, Any]], folder: Path) -> list[Path]:
    """A picture for each sweep that was measured; medians, with the 10 % and 90 % as a band, and the floor."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    written = []
    for fact, (axis, name) in PICTURES.items():
        rows = [row for row in records if row["kind"] == "row" and row["facts"].get("sweep") == fact]
        curves = sorted({(row["facts"]["curve"], row["implementation"]) for row in rows if "median_us" in row})
        if not curves:
            continue
        figure, axes = pyplot.subplots(figsize=(8, 5), layout="constrained")
        for curve, implementation in curves:
            points = [row for row in rows if (row["facts"]["curve"], row["implementation"]) == (curve, implementation)]
            points = sorted((row for row in points if "median_us" in row), key=lambda row: row["facts"][fact])
            x = [row["facts"][fact] for row in points]
            (drawn,) = axes.plot(
                x, [row["median_us"] for row in points], marker="o", label=f"{implementation}, {curve}"
            )
            low, high = ([row[key] for row in points] for key in ("p10_us", "p90_us"))
            axes.fill_between(x, low, high, color=drawn.get_color(), alpha=0.2)
        for curve in sorted({curve for curve, _ in curves}):
            floor = {
                row["facts"][fact]: row["floor_us"]
                for row in rows
                if row["facts"]["curve"] == curve and "median_us" in row
            }
            axes.plot(sorted(floor), [floor[x] for x in sorted(floor)], "k:", label=f"floor, {curve}")
        axes.set(xlabel=axis, ylabel="microseconds", xscale="log", yscale="log", title=machine_line(records))
        axes.title.set_fontsize(7)
        axes.legend(fontsize=7)
        figure.savefig(folder / name, dpi=120)
        pyplot.close(figure)
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
