"""Detection and localisation scores and maps of the networks of the first run, appended to its report.

The sizes keep this part within a minute of one core; docs/detection.md has the longer protocol.
"""

from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from mixfast.config.presets import DEFAULT
from mixfast.detection.detectors import need_torchvision
from mixfast.errors import PlatformError
from mixfast.evaluate import detect, detect_page, localise, maps
from mixfast.evaluate.contestants import Localise
from mixfast.evaluate.detect import Detect
from mixfast.evaluate.runs import LoadedRun, ScoringOptions, load_runs, table
from mixfast.files import write_whole
from mixfast.run.folder import RunFolder, write_json
from mixfast.run.records import result
from mixfast.run.reopen import data_key
from mixfast.run.state import Run
from mixfast.scoring import protocol
from mixfast.scoring.paired import difference, spread

FOLDER = "transfer"  # in the run's folder
SEEDS = (0, 1, 2)  # of the detectors
LOCALISED, CHOSEN_ON = 300, 100  # scenes on which maps are scored; scenes on which map and threshold are chosen
_DRAWN = 6  # test images whose maps are drawn
_UNTRAINED, _EDGES = "untrained", "edges"  # rows beside the methods

_PAGE = """## What the networks are worth for detection

{table}

{sentences}

- In brackets behind a difference: its 95 % interval. "No significant difference": the interval contains 0.
- kNN on h: the accuracy of the result above, in percent.
{detection}- CorLoc: percent of {localised} scenes in which the box around the largest component of an attention map \
has an IoU of at least 0.5 with the object; in brackets the 95 % interval from bootstrap draws of the scenes. "edges" \
is a map of image edges, made without a network.
- All networks come from one seed of pre-training, so no interval contains the variation of the pre-training itself.
- For longer training of the detectors, and a network trained with labels as a reference: \
`python -m mixfast.evaluate detect {runs}`.
"""
_DETECTION = """- AP: COCO's average precision of torchvision's FCOS on the frozen network, trained for {steps} steps \
of {batch_size} on {training_images} canvases with several objects and scored on {test_images} others. "Any class AP" \
ignores the classes of the boxes: it scores finding objects, not naming them. ±: standard deviation over {seeds} seeds \
of the detector, which all networks share.
"""


class Gap(NamedTuple):
    """A score of one network minus that of another, with its 95 % interval if there is one."""

    score: str
    mean: float
    low: float | None
    high: float | None


class TransferScores(NamedTuple):
    """Scores by row: the methods, and "untrained"."""

    knn: dict[str, float]  # on h
    located: localise.Result
    detected: detect_page.Result | None  # None: torchvision is missing
    missing: str  # a sentence on how to get AP without torchvision; "" with it


def is_demo(run: Run, preset: str, companions: dict[str, RunFolder]) -> bool:
    """Whether a run is the demo on scenes, with baselines and another method: only its report gets this section."""
    config = run.config
    return preset == DEFAULT and config.data.kind == "scenes" and config.eval.baselines and bool(companions)


def add(run: Run, companions: dict[str, RunFolder]) -> str:
    """Score and draw the networks, and append the section to the report; returns table and sentences as plain text.

    An exception or a stop signal leaves the report unchanged.
    """
    run.console.line("\nscores for detection: attention maps, then detectors on frozen features")
    summary, runs = measure(run, companions)
    rows, lines = table_rows(summary), sentences(summary, [row.name for row in runs])
    pictures = [("predictions", "detect.png")] if summary.detected else []
    pictures += [("attention maps", "maps.png"), ("maps and the boxes that CorLoc scores", "localise.png")]
    page = _page(summary, rows, lines, runs, [f"![{title}]({FOLDER}/{name})" for title, name in pictures])
    report = run.folder.report.read_text(encoding="utf-8", errors="backslashreplace")
    write_whole(run.folder.report, f"{report}\n{page}".encode(errors="backslashreplace"))
    (_, *columns), *body = rows
    text_table = table({name: dict(zip(columns, cells, strict=True)) for name, *cells in body})
    return "\n".join([text_table, "", *lines])


def measure(run: Run, companions: dict[str, RunFolder]) -> tuple[TransferScores, list[LoadedRun]]:
    """Score and draw the networks of all methods and the untrained one; scores also go to evaluations.jsonl."""
    folder, config = run.folder.path / FOLDER, run.config
    folder.mkdir(exist_ok=True)
    paths = (run.folder.path, *(entry.path for entry in companions.values()))
    own_code = (config.method_name, *companions, config.model.backbone.partition(":")[0])  # imported already
    options = ScoringOptions(paths, device=config.train.device, threads=config.train.threads, trust=own_code)
    runs = load_runs(options, loaded={data_key(config): run.splits})
    located = localise.evaluate(Localise(paths, data="scenes", count=LOCALISED, validation=CHOSEN_ON), runs)
    write_json(folder / "localise.json", localise.facts(runs, located))
    localise.draw(folder / "localise.png", located)
    localise.record_results(runs, located)
    networks = [(loaded_run.name, loaded_run.trained, loaded_run) for loaded_run in runs]
    columns = [*networks, (_UNTRAINED, runs[0].untrained(), runs[0])]
    maps.draw(folder / "maps.png", maps.Maps(paths, count=_DRAWN), runs[0], columns)
    knn = {entry["name"]: entry["knn_h"] for entry in run.folder.metrics.read() if entry["kind"] == "baseline"}
    last = {loaded_run.name: result(loaded_run.name, loaded_run.folder.metrics.read()).last for loaded_run in runs}
    knn |= {name: scores["knn_h"] for name, scores in last.items()}
    try:
        need_torchvision()
    except PlatformError as error:
        missing = f"AP is missing: {error}. Then: python -m mixfast.train --resume {run.folder.path}"
        return TransferScores(knn, located, None, missing), runs
    detectors = Detect(paths, quick=True, seeds=SEEDS, supervised=False)
    detected = detect.evaluate(detectors, runs, run.console)
    detect_page.write(folder / "detect.json", runs, detected)
    detect.record_results(runs, detected)
    return TransferScores(knn, located, detected, ""), runs


def _detectors(summary: TransferScores, row: str, key: str) -> dict[int, float]:
    """A score of a row's detectors by seed."""
    rows = summary.detected.rows if summary.detected else []
    return {
        seed: outcome.scores[key]
        for contestant in rows
        if contestant.name == row
        for seed, outcome in contestant.outcomes.items()
    }


def table_rows(summary: TransferScores) -> list[list[str]]:
    """The cells of the table, its head first: the untrained network, then the methods."""
    scores = {"AP": "ap", "any class AP": "any_class_ap"} if summary.detected else {}
    rows = [["", "kNN on h", *scores, "CorLoc"]]
    names = [row.name for row in summary.located.rows if row.role == "run"]
    for name in (_EDGES, _UNTRAINED, *names):
        cells = [f"{summary.knn[name]:.1f}" if name in summary.knn else "-"]
        for key in scores.values():
            row = spread(list(_detectors(summary, name, key).values()))
            cells.append("-" if row is None else row.text())
        corloc = summary.located.scores[name]["corloc"]
        rows.append([name, *cells, f"{corloc['mean']:.1f} ({corloc['low']:.0f}-{corloc['high']:.0f})"])
    return rows


def gaps(summary: TransferScores, name: str, rival: str) -> list[Gap]:
    """The scores of a row minus those of another."""
    differences = [Gap("kNN on h", summary.knn[name] - summary.knn[rival], None, None)]
    for title, key in (("AP", "ap"), ("any class AP", "any_class_ap")):
        if gap := difference(_detectors(summary, name, key), _detectors(summary, rival, key)):
            differences.append(Gap(title, gap.mean, gap.low, gap.high))
    outcomes = {row.name: row.outcomes for row in summary.located.rows}
    margin = protocol.margin(outcomes[name], outcomes[rival], summary.located.draws, "corloc")
    return [*differences, Gap("CorLoc", margin["mean"], margin["low"], margin["high"])]


def sentences(summary: TransferScores, names: list[str]) -> list[str]:
    """Gains and losses of the first row against the others and against the untrained network."""
    first, *companions = names
    rivals = {companion: f"{companion} at equal encoder cost" for companion in companions} | {
        _UNTRAINED: "the untrained network"
    }
    lines = [
        f"Against {description}, {first} {verdict(gaps(summary, first, rival))}."
        for rival, description in rivals.items()
    ]
    return [*lines, *([summary.missing] if summary.missing else [])]


def verdict(differences: Iterable[Gap]) -> str:
    """ "gains CorLoc +3.0 (+1.0 to +5.0); loses ...; ...": a gain or a loss has an interval without 0."""
    kinds: dict[str, list[str]] = {"gains": [], "loses": [], "shows no significant difference in": []}
    for gap in differences:
        low, high = (gap.mean if bound is None else bound for bound in (gap.low, gap.high))
        kind = "gains" if low > 0 else "loses" if high < 0 else "shows no significant difference in"
        interval = "no interval" if gap.low is None else f"{gap.low:+.1f} to {gap.high:+.1f}"
        kinds[kind].append(f"{gap.score} {gap.mean:+.1f} ({interval})")
    return "; ".join(f"{kind} {', '.join(scores)}" for kind, scores in kinds.items() if scores)


def _page(
    summary: TransferScores, rows: list[list[str]], texts: list[str], runs: list[LoadedRun], pictures: list[str]
) -> str:
    table_lines = [rows[0], ["---"] * len(rows[0]), *rows[1:]]
    sizes = summary.detected.settings if summary.detected else {}
    page = _PAGE.format(
        table="\n".join("| " + " | ".join(cells) + " |" for cells in table_lines),
        sentences="\n".join(f"- {line}" for line in texts),
        detection=_DETECTION.format(**sizes, seeds=len(SEEDS)) if summary.detected else "",
        localised=summary.located.settings["images"],
        runs=" ".join(str(_relative_folder(loaded_run.folder.path)) for loaded_run in runs),
    )
    return "\n\n".join([page.rstrip(), *pictures]) + "\n"


def _relative_folder(path: Path) -> str:
    """A run's folder relative to its parent."""
    return "/".join(path.parts[-3:]) if path.parent.name == "compare" else path.name
