"""report.md: what was trained, its scores and those of the baselines, and where to find more."""

from typing import Any

from torch import Tensor

from mixfast.config.options import flatten
from mixfast.initial_weights import Origin
from mixfast.rng import Generators
from mixfast.run.console import duration
from mixfast.run.folder import RunFolder
from mixfast.run.monitor import chance_loss
from mixfast.run.records import Records, Result, result, time_by_part
from mixfast.run.sanity import queue_steps, warnings
from mixfast.run.state import Run
from mixfast.train import plots


def table(results: list[Result], baselines: Records) -> str:
    """The scores as a Markdown table: baselines first, then the runs in the order given."""
    heads, *rows = _rows(results, baselines)
    lines = [heads, ["---"] * len(heads), *rows]
    return "\n".join("|" + "|".join(f" {cell} " if cell else " " for cell in cells) + "|" for cells in lines)


def aligned(results: list[Result], baselines: Records) -> str:
    """The scores as a table for a terminal."""
    rows = _rows(results, baselines)
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    name_width, *score_widths = widths
    return "\n".join(
        f"{cells[0]:<{name_width}}"
        + "".join(f"   {cell:>{width}}" for cell, width in zip(cells[1:], score_widths, strict=True))
        for cells in rows
    )


def _rows(results: list[Result], baselines: Records) -> list[list[str]]:
    """The cells of the table, its heads first."""
    rows = [["", "kNN on z", "kNN on h", "best z", "best h", "epochs", "training", "images/s"]]
    for record in baselines:
        rows.append([record["name"], _cell(record, "knn_z"), _cell(record, "knn_h"), *[""] * 5])
    for row in results:
        scores = [_cell(scores, key) for scores in (row.last, row.best) for key in ("knn_z", "knn_h")]
        rows.append([row.name, *scores, str(row.epochs), duration(row.seconds), f"{row.images_per_s:.0f}"])
    return rows


def _cell(scores: dict[str, Any], key: str) -> str:
    return f"{scores[key]:.1f}" if key in scores else "-"


def verdict(results: list[Result], baselines: Records) -> str:
    """One sentence per comparison, on h in the last epoch, for gains and losses alike."""
    main, *companions = results
    if "knn_h" not in main.last:
        return "Without labels there is no score."
    rivals = [(record["name"], record["knn_h"]) for record in baselines]
    rivals += [(f"{companion.name} at equal encoder cost", companion.last["knn_h"]) for companion in companions]
    lines = []
    for name, score in rivals:
        gap = main.last["knn_h"] - score
        points = f"{abs(gap):.1f} points {'above' if gap > 0 else 'below'}" if gap else "level with"
        lines.append(f"{main.name} is {points} {name} (kNN on h, one seed).")
    return "\n".join(lines)


def draw(run: Run, runs: dict[str, Records]) -> None:
    """All plots of a run folder; `runs` holds the metrics of the run and of those it is compared with, by name."""
    folder = run.folder.plots
    folder.mkdir(exist_ok=True)
    baselines = [record for record in runs[run.config.method_name] if record["kind"] == "baseline"]
    plots.loss_curve(folder / "loss.png", runs, chance_loss(run.config))
    plots.time_by_part(folder / "time.png", {name: time_by_part(records) for name, records in runs.items()})
    if any(record["kind"] == "eval" for records in runs.values() for record in records):
        plots.knn_curve(folder / "knn.png", runs, baselines)
    if any(record["kind"] == "diagnostics" for records in runs.values() for record in records):
        plots.diagnostics(folder / "diagnostics.png", runs)
    for path in sorted(folder.glob("*.png")):
        if path.stem != "views":  # `draw_views` has logged it
            run.folder.metrics.loggers.picture(run.step, path)


def first_views(run: Run, count: int = 8) -> tuple[Tensor, dict[str, Tensor]]:
    """The method's input: the first images, uint8 [count, 3, H, W], and their views and mixtures with boxes."""
    images = run.batches.images[:count]
    return images, run.views(images, Generators(run.config.seed, run.device))


def draw_views(run: Run, images: Tensor, views: dict[str, Tensor]) -> None:
    """A picture of what `first_views` returned."""
    run.folder.plots.mkdir(exist_ok=True)
    path = run.folder.plots / "views.png"
    plots.view_grid(path, images.cpu(), views, run.splits.mean, run.splits.std)
    run.folder.metrics.loggers.picture(run.step, path)


def write(run: Run, preset: str, origins: dict[str, str], companions: dict[str, RunFolder]) -> str:
    """Draw the plots and write report.md and the CSV files; returns the results as plain text."""
    runs = {run.config.method_name: run.folder.metrics.read()}
    runs |= {name: folder.metrics.read() for name, folder in companions.items()}
    for folder in (run.folder, *companions.values()):
        folder.metrics.write_csv()
    draw(run, runs)
    results = [result(name, records) for name, records in runs.items()]
    baselines = [record for record in runs[run.config.method_name] if record["kind"] == "baseline"]
    sentences = verdict(results, baselines)
    summary = f"{table(results, baselines)}\n\n{sentences}"
    page = _page(run, preset, origins, summary, companions)
    run.folder.report.write_text(page, encoding="utf-8", errors="backslashreplace")
    return f"{aligned(results, baselines)}\n\n{sentences}"


_DIAGNOSTICS = """## Diagnostics

![diagnostics](plots/diagnostics.png)

- Effective rank: the number of directions that h uses; 1 if the network has collapsed.
- Alignment: squared distance between two views of a test image; lower is closer. Uniformity: lower means that the \
embeddings are spread more evenly.
- Top-1 accuracy, solid lines: share of queries that are more similar to their positive than to all keys of the queue.
- Dashed lines: top-1 accuracy with the positive of *another image*. Its chance level is 1 / (keys + 1). Above it, \
the network recognises positives by something that a whole batch shares, such as the box, and not by the image.
- Dotted lines (methods that paste patches): top-1 accuracy with patches from views that no other vector shares. If \
they are far below the solid lines, the network recognises positives by the colours and the crop of a shared patch.

"""


def _cautions(run: Run, companions: dict[str, RunFolder]) -> str:
    """The section with the warnings that were printed before training; "" without any."""
    texts = warnings(run.config, run.splits)
    for name, folder in companions.items():
        texts += [f"{name}: {text}" for text in warnings(folder.read_config()[0], run.splits)]
    return "## Warnings\n\n" + "\n".join(f"- {text}" for text in texts) + "\n\n" if texts else ""


def _page(run: Run, preset: str, origins: dict[str, str], summary: str, companions: dict[str, RunFolder]) -> str:
    config, splits = run.config, run.splits
    values = flatten(config)
    changed = "\n".join(f"- `{key}` = `{values[key]}` ({origin})" for key, origin in origins.items() if key in values)
    knn = "![kNN](plots/knn.png)\n\n" if (run.folder.plots / "knn.png").exists() else ""
    diagnostics = _DIAGNOSTICS if (run.folder.plots / "diagnostics.png").exists() else ""
    level = chance_loss(config)
    chance = "" if level is None else f", and of their weighted mean, in nats; chance level: {level:.2f}"
    steps = queue_steps(config)
    queue = (
        f" Until step {steps} the queue holds random vectors, which are easy negatives: the loss may rise."
        if steps
        else ""
    )
    beside = f" Compared with {', '.join(companions)} at equal encoder cost (in `compare/`)." if companions else ""
    begun = f"Begun with `{config.init}`: {Origin.of_run(run.folder.path)}.\n\n" if config.init else ""
    return f"""# {config.method_name} on {splits.name} (preset {preset}, seed {config.seed})

{len(splits.train)} training and {len(splits.test)} test images of {splits.train.images.shape[-1]} pixels, \
{config.model.title}, {config.train.epochs} epochs of {len(run.batches)} steps of \
{config.train.batch_size} images, {run.precision} on {run.device}.{beside}

{begun}{_cautions(run, companions)}## Result

{summary}

Scores are weighted kNN accuracies (k = {config.eval.k}, temperature {config.eval.temperature}) in percent of the test \
images; z is the head's output, h the pooled features. The result is that of the last epoch; "best" is chosen on the \
test images, so it is too high. "untrained" is the same network before training, with BatchNorm statistics of the \
data. Training time excludes evaluations.

{knn}## Loss

![loss](plots/loss.png)

Each point is the mean over an epoch: of the terms of the loss{chance}.{queue}

{diagnostics}## What the method sees

![views](plots/views.png)

## Time by part

![time](plots/time.png)

## Options that are not defaults

{changed}

All values: `config.json`. Machine and versions: `env.json`. Commands: `command.txt`. Curves: `metrics.csv`; plots \
of curves are in `plots/` as PNG and SVG. Weights for other programs: `export/`, read by \
`mixfast.export.load_backbone("export")` or any safetensors reader.
"""
