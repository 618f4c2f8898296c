"""A profile as a record for JSON, as a table and as a picture."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mixfast import drawing
from mixfast.config.options import RunConfig
from mixfast.models.encoder import KEY, QUERY
from mixfast.profile.measure import BACKWARD, ORDER, Parts, Timing, data_sizes
from mixfast.run.state import Run

Record = dict[str, Any]
GOALS = {"cpu": 0.05, "cuda": 0.15}  # excess of a step over its bare encoder passes that is aimed at, as a share
GRAPH = "as a graph"  # row of the time that a CUDA graph saves
GREYS = {QUERY: "0.75", KEY: "0.6", BACKWARD: "0.85"}  # shades of the parts that the bare encoder has too
MILLI, MIB = 1e3, 2**20


def to_record(
    preset: str,
    run: Run,
    timing: Timing,
    memory: tuple[int, dict[str, int]] | None,
    evaluation: float | None,
) -> Record:
    """The measurements of a preset. Seconds are per optimiser step; peaks in bytes are above those between steps."""
    config = run.config
    base, peaks = memory or (None, {})
    return {
        "preset": preset,
        "method": config.method_name,
        "shape": {
            **config.model.architecture,
            "bn_splits": config.model.bn_splits,
            "size": config.data.size,
            "batch": config.train.batch_size,
            "queue": getattr(config.method, "queue_size", None),
        },
        "device": run.device.type,
        "precision": run.precision,
        "memory_format": str(run.memory_format).removeprefix("torch."),
        "passes": {"trained": timing.cost.trained, "followed": timing.cost.forward_only},
        "rounds": len(timing.ratios),
        "seconds": timing.step,
        "bare_seconds": timing.floor,
        "graphed_seconds": timing.graphed,
        "step_seconds": timing.seconds,
        "ratio": timing.ratio,
        "ratios": [round(ratio, 4) for ratio in timing.ratios],
        "images_per_s": config.train.batch_size / timing.seconds,
        "held_bytes": base,
        "peak_bytes": peaks,
        "evaluation": evaluation_record(config, evaluation, timing.seconds),
    }


def evaluation_record(config: RunConfig[Any], seconds: float | None, step: float) -> Record | None:
    """The cost of an evaluation, and its share of a training that evaluates every `eval.every` epochs."""
    if seconds is None or config.eval.every == 0:
        return None
    return {"seconds": seconds, "every": config.eval.every, "epoch_seconds": step * _steps(config)}


def _steps(config: RunConfig[Any]) -> int:
    """Optimiser steps of an epoch of the data set that the preset names; 0 if its size is unknown."""
    sizes = data_sizes(config)
    return 0 if sizes is None else sizes[0] // config.train.batch_size


def excess(record: Record) -> Parts:
    """The additional cost of each part, as a share of the bare encoder passes; the sum is the ratio less 1."""
    bare = record["bare_seconds"]
    total = sum(bare.values())
    shares = {name: (value - bare.get(name, 0.0)) / total for name, value in record["seconds"].items()}
    if record["graphed_seconds"] is not None:
        shares[GRAPH] = (record["graphed_seconds"] - sum(record["seconds"].values())) / total
    return shares


def own_cost(record: Record) -> float:
    """The cost of the parts that a bare encoder does not have, as a share of its passes."""
    return sum(share for name, share in excess(record).items() if name not in GREYS)


def headline(record: Record) -> str:
    """One line: preset, network, batch, precision and encoder passes of a record."""
    shape, passes = record["shape"], record["passes"]
    queue = f", K = {shape['queue']}" if shape["queue"] else ""
    network = shape.get("backbone") or f"ResNet-{shape['depth']} of width {shape['width']}, stem {shape['stem']}"
    return (
        f"{record['preset']}: {network}, {shape['size']} px, batch {shape['batch']}{queue}, {record['precision']}, "
        f"{record['memory_format']}; "
        f"passes: {passes['trained']} trained, {passes['followed']} without gradient"
    )


def table(record: Record) -> str:
    """A line per part: milliseconds, milliseconds of the bare encoder, the excess in percent of these, memory."""
    bare, peaks = record["bare_seconds"], record["peak_bytes"]
    lines = [headline(record), f"{'part':<16}{'ms':>9}{'bare ms':>10}{'beyond %':>10}{'peak MiB':>10}"]
    for name, share in excess(record).items():
        seconds = record["seconds"].get(name, share * sum(bare.values()))
        lines.append(_line(name, seconds, bare.get(name), share, peaks.get(name)))
    total = sum(bare.values())
    lines.append(_line("step", record["step_seconds"], total, record["ratio"] - 1, max(peaks.values(), default=None)))
    lines.append(f"{record['ratio']:.3f} x the bare encoder passes; {record['images_per_s']:.0f} images/s")
    lines.append(f"parts that the bare encoder does not have: {100 * own_cost(record):.1f} % of it")
    if evaluation := record["evaluation"]:
        epochs = f"{evaluation['every']} epochs of {evaluation['epoch_seconds']:.1f} s"
        lines.append(f"evaluation: about {evaluation['seconds']:.1f} s every {epochs}")
    return "\n".join(lines)


def _line(name: str, seconds: float, bare: float | None, share: float, peak: int | None) -> str:
    cells = [f"{MILLI * seconds:.2f}", "" if bare is None else f"{MILLI * bare:.2f}", f"{100 * share:+.1f}"]
    cells.append("" if peak is None else f"{peak / MIB:.1f}")
    return f"{name:<16}{cells[0]:>9}" + "".join(f"{cell:>10}" for cell in cells[1:])


def markdown(records: Sequence[Record]) -> str:
    """A row per preset: the ratio, and the excess of each part over the bare passes in percent of them."""
    names = [name for name in (*ORDER, GRAPH) if any(name in excess(record) for record in records)]
    head = ["preset", "passes", "step ms", "bare ms", "ratio", "own %", *names, "peak MiB"]
    rows = [head, ["---"] * len(head)]
    for record in records:
        passes, shares = record["passes"], excess(record)
        peak = max(record["peak_bytes"].values(), default=None)
        rows.append(
            [
                record["preset"],
                f"{passes['trained']} + {passes['followed']}",
                f"{MILLI * record['step_seconds']:.1f}",
                f"{MILLI * sum(record['bare_seconds'].values()):.1f}",
                f"{record['ratio']:.3f}",
                f"{100 * own_cost(record):.1f}",
                *(f"{100 * shares[name]:.1f}" if name in shares else "" for name in names),
                "" if peak is None else f"{peak / MIB:.0f}",
            ]
        )
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def draw(path: Path, records: Sequence[Record]) -> None:
    """Stacked bars: the time of a step by part beside that of the bare encoder, and the excess."""
    from matplotlib.patches import Patch

    page, (axes,) = drawing.figure(13, 1.8 + 0.42 * len(records), 1, 2)
    parts = [name for record in records for name in excess(record)]
    names = [*(name for name in ORDER if name in parts), *dict.fromkeys(n for n in parts if n not in ORDER)]
    bright = [name for name in dict.fromkeys((*ORDER, *names)) if name not in GREYS]  # a part looks alike everywhere
    greys: dict[str, dict[str, Any]] = {name: {"facecolor": grey, "edgecolor": "white"} for name, grey in GREYS.items()}
    styles = {**greys, **{name: drawing.area(index) for index, name in enumerate(bright)}}
    rows = [record["preset"] for record in records]
    for name in names:
        for record, row in zip(records, range(len(records)), strict=True):
            for y, times in ((row - 0.18, record["seconds"]), (row + 0.22, record["bare_seconds"])):
                offset = sum(MILLI * times.get(earlier, 0.0) for earlier in names[: names.index(name)])
                height = 0.36 if times is record["seconds"] else 0.3
                axes[0].barh(y, MILLI * times.get(name, 0.0), height, left=offset, **styles[name])
            shares = excess(record)
            width = 100 * shares.get(name, 0.0)
            offsets = [100 * shares.get(earlier, 0.0) for earlier in names[: names.index(name)]]
            offset = sum(value for value in offsets if (value < 0) == (width < 0))
            axes[1].barh(row, width, 0.6, left=offset, **styles[name])
    for record, row in zip(records, range(len(records)), strict=True):
        axes[1].plot([100 * (record["ratio"] - 1)] * 2, [row - 0.34, row + 0.34], color="black", linewidth=1.5)
    goal = 100 * GOALS[records[0]["device"]]
    axes[1].axvline(goal, color=drawing.GREY, linestyle=":")
    axes[1].axvline(0, color="black", linewidth=0.6)
    longest = max(max(sum(entry[key].values()) for key in ("seconds", "bare_seconds")) for entry in records)
    axes[0].set(xlim=(0, 1.03 * MILLI * longest), xlabel="time of a step, ms (lower bar: the bare encoder passes)")
    axes[0].set(yticks=range(len(rows)), yticklabels=rows)
    axes[1].set(
        xlabel=f"time beyond the bare passes, % of them\nblack mark: sum; dotted line: goal, {goal:.0f} %",
        yticks=range(len(rows)),
        yticklabels=rows,
    )
    for axis in axes:
        axis.invert_yaxis()
    drawing.legend_below(page, 8, [Patch(label=name, **styles[name]) for name in names])
    drawing.save(page, path)
