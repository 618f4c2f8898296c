"""python -m benchmarks.profile_page: the tables and pictures of docs/profile.md, from benchmarks/results/*/profile.

A folder holds files profile*.json, which `python -m mixfast.profile` writes, and scaling.json of `benchmarks.scaling`.
"""

import json
import re
from pathlib import Path
from typing import Any

from mixfast import drawing
from mixfast.profile import output

ROOT = Path(__file__).parents[1]
RESULTS, DOCUMENT, PICTURES = ROOT / "benchmarks/results", ROOT / "docs/profile.md", ROOT / "docs/pictures/profile"
PANELS = {  # sweep: what the axis shows, and the implementation that is the measure
    "batch": ("images in a batch", "bare encoder"),
    "K": ("K, keys in each queue", "bare encoder"),
    "H = W": ("H = W of the images, pixels", "bare encoder"),
    "terms": ("terms of the loss", "matrix products"),
}


def machine_line(environment: dict[str, Any], clock: str) -> str:
    count = environment["threads"]
    device = environment.get("gpu") or f"{environment['cpu']}, {count} thread{'s' * (count > 1)}"
    commit = (environment["git"] or {}).get("commit", "unknown")[:10]
    return f"{device}, torch {environment['torch']}, {clock} seconds, commit {commit}"


def section(folder: Path) -> str:
    """The section of one machine: a table and a picture for each file of profiles, then the curves."""
    name, lines = folder.parent.name, []
    for path in sorted(folder.glob("profile*.json")):
        content = json.loads(path.read_text())
        records = content["profiles"]
        title = machine_line(content["environment"], content["environment"]["clock"])
        shape = re.sub(r", K = \d+|; passes.*", "", output.headline(records[-1]).partition(": ")[2])
        other_networks = [
            record["preset"] for record in records if record["shape"]["depth"] != records[-1]["shape"]["depth"]
        ]
        note = f" (`{'`, `'.join(other_networks)}`: its own network)" if other_networks else ""
        lines += [f"### {title}", "", f"{shape}{note}.", "", output.markdown(records), ""]
        lines += [f"![parts of a step](pictures/profile/{name}-{path.stem}.png)", ""]
    if (folder / "scaling.json").exists():
        lines += [f"![cost against sizes](pictures/profile/{name}-scaling.png)", ""]
    return "\n".join(lines)


def filled(text: str) -> str:
    """The document with the tables that the results give."""
    sections = "\n".join(section(path) for path in sorted(RESULTS.glob("*/profile")))
    pattern = r"(<!-- profiles[^\n]*-->\n).*?(<!-- end)"
    text, count = re.subn(pattern, lambda match: f"{match[1]}\n{sections}\n{match[2]}", text, flags=re.DOTALL)
    if count != 1:
        raise ValueError(f"the document needs one place for the profiles; it has {count}")
    return text


def draw_scaling(path: Path, points: list[dict[str, Any]]) -> None:
    """A panel for each sweep: time as a multiple of the bare encoder's, or of the matrix products'."""
    page, (axes,) = drawing.figure(15, 3.8, 1, len(PANELS))
    for axis, (sweep, (label, floor)) in zip(axes, PANELS.items(), strict=True):
        sweep_points = [point for point in points if point["sweep"] == sweep]
        x = [point["x"] for point in sweep_points]
        labels = []
        for number, name in enumerate(("mixfast", "plain PyTorch")):
            ratios, style = (
                [each["seconds"][name] / each["seconds"][floor] for each in sweep_points],
                drawing.curve(number),
            )
            axis.plot(x, ratios, **style)
            labels.append((ratios[-1], name, style["color"]))
        labels.append(drawing.level(axis, 1, floor))
        axis.set(xscale="log", xlabel=label, xticks=x, xticklabels=x, ylim=(0, None))
        axis.minorticks_off()
        drawing.label_ends(axis, labels)
    axes[0].set(ylabel="time, in bare encoder passes")
    axes[-1].set(ylabel="time, in matrix products")
    drawing.save(page, path)


def main() -> None:
    PICTURES.mkdir(parents=True, exist_ok=True)
    for path in RESULTS.glob("*/profile/*.json"):
        content, picture = json.loads(path.read_text()), PICTURES / f"{path.parents[1].name}-{path.stem}.png"
        if "profiles" in content:
            output.draw(picture, content["profiles"])
        else:
            draw_scaling(picture, content["points"])
    DOCUMENT.write_text(filled(DOCUMENT.read_text()))


if __name__ == "__main__":
    main()
