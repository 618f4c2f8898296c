"""The end of the first run: detection, localisation and maps of its networks, and the gains and losses.

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
LOCALISED, CHOSEN_ON = 300, 100  # scenes on which maps are scored; others, on which map and threshold are chosen
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


class Worth(NamedTuple):
    """Scores by row: the methods, and "untrained"."""

    knn: dict[str, float]  # on h
    located: localise.Result
    detected: detect_page.Result | None  # None: torchvision is missing
    missing: str  # what to do about it


def wanted(run: Run, preset: str, companions: dict[str, RunFolder]) -> bool:
    """Whether a run ends with this comparison: the demo on scenes, with baselines and another method to compare."""
    config = run.config
    return preset == DEFAULT and config.data.kind == "scenes" and config.eval.baselines and bool(companions)


def add(run: Run, companions: dict[str, RunFolder]) -> str:
    """Measure, draw, and add the section to the report; returns table and sentences as plain text.

    An exception or a stop leaves the report as it was.
    """
    run.console.line("\nscores for detection: attention maps, then detectors on frozen features")
    worth, runs = measure(run, companions)
    rows, said = table_rows(worth), sentences(worth, [row.name for row in runs])
    pictures = [("predictions", "detect.png")] if worth.detected else []
    pictures += [("attention maps", "maps.png"), ("maps and the boxes that CorLoc scores", "localise.png")]
    page = _page(worth, rows, said, runs, [f"![{title}]({FOLDER}/{name})" for title, name in pictures])
    text = run.folder.report.read_text(encoding="utf-8", errors="backslashreplace")
    write_whole(run.folder.report, f"{text}\n{page}".encode(errors="backslashreplace"))
    (_, *columns), *body = rows
    shown = table({name: dict(zip(columns, cells, strict=True)) for name, *cells in body})
    return "\n".join([shown, "", *said])


def measure(run: Run, companions: dict[str, RunFolder]) -> tuple[Worth, list[LoadedRun]]:
    """Score and draw the networks of all methods and the untrained one; scores also go to evaluations.jsonl."""
    folder, config = run.folder.path / FOLDER, run.config
    folder.mkdir(exist_ok=True)
    paths = (run.folder.path, *(other.path for other in companions.values()))
    own_code = (config.method_name, *companions, config.model.backbone.partition(":")[0])  # this process runs it
    options = ScoringOptions(paths, device=config.train.device, threads=config.train.threads, trust=own_code)
    runs = load_runs(options, loaded={data_key(config): run.splits})
    located = localise.evaluate(Localise(paths, data="scenes", count=LOCALISED, validation=CHOSEN_ON), runs)
    write_json(folder / "localise.json", localise.facts(runs, located))
    localise.draw(folder / "localise.png", located)
    localise.keep(runs, located)
    networks = [(one.name, one.trained, one) for one in runs]
    shown = [*networks, (_UNTRAINED, runs[0].untrained(), runs[0])]
    maps.draw(folder / "maps.png", maps.Maps(paths, count=_DRAWN), runs[0], shown)
    knn = {other["name"]: other["knn_h"] for other in run.folder.metrics.read() if other["kind"] == "baseline"}
    last = {one.name: result(one.name, one.folder.metrics.read()).last for one in runs}
    knn |= {name: scores["knn_h"] for name, scores in last.items()}
    try:
        need_torchvision()
    except PlatformError as error:
        missing = f"AP is missing: {error} Then: python -m mixfast.train --resume {run.folder.path}"
        return Worth(knn, located, None, missing), runs
    detectors = Detect(paths, quick=True, seeds=SEEDS, supervised=False)
    detected = detect.evaluate(detectors, runs, run.console)
    detect_page.write(folder / "detect.json", runs, detected)
    detect.keep(runs, detected)
    return Worth(knn, located, detected, ""), runs


def _detectors(worth: Worth, row: str, key: str) -> dict[int, float]:
    """A score of a row's detectors by seed."""
    rows = worth.detected.rows if worth.detected else []
    return {seed: outcome.scores[key] for one in rows if one.name == row for seed, outcome in one.outcomes.items()}


def table_rows(worth: Worth) -> list[list[str]]:
    """The cells of the table, its head first: the untrained network, then the methods."""
    scores = {"AP": "ap", "any class AP": "any_class_ap"} if worth.detected else {}
    rows = [["", "kNN on h", *scores, "CorLoc"]]
    names = [row.name for row in worth.located.rows if row.role == "run"]
    for name in (_EDGES, _UNTRAINED, *names):
        cells = [f"{worth.knn[name]:.1f}" if name in worth.knn else "-"]
        for key in scores.values():
            row = spread(list(_detectors(worth, name, key).values()))
            cells.append("-" if row is None else row.words())
        corloc = worth.located.scores[name]["corloc"]
        rows.append([name, *cells, f"{corloc['mean']:.1f} ({corloc['low']:.0f}-{corloc['high']:.0f})"])
    return rows


def gaps(worth: Worth, name: str, rival: str) -> list[Gap]:
    """The scores of a row minus those of another."""
    found = [Gap("kNN on h", worth.knn[name] - worth.knn[rival], None, None)]
    for title, key in (("AP", "ap"), ("any class AP", "any_class_ap")):
        if gap := difference(_detectors(worth, name, key), _detectors(worth, rival, key)):
            found.append(Gap(title, gap.mean, gap.low, gap.high))
    outcomes = {row.name: row.outcomes for row in worth.located.rows}
    margin = protocol.margin(outcomes[name], outcomes[rival], worth.located.draws, "corloc")
    return [*found, Gap("CorLoc", margin["mean"], margin["low"], margin["high"])]


def sentences(worth: Worth, names: list[str]) -> list[str]:
    """Gains and losses of the first row against the others and against the untrained network."""
    first, *others = names
    rivals = {other: f"{other} at equal encoder cost" for other in others} | {_UNTRAINED: "the untrained network"}
    said = [f"Against {shown}, {first} {verdict(gaps(worth, first, rival))}." for rival, shown in rivals.items()]
    return [*said, *([worth.missing] if worth.missing else [])]


def verdict(found: Iterable[Gap]) -> str:
    """ "gains CorLoc +3.0 (+1.0 to +5.0); loses ...; ...": a difference counts if its interval excludes 0."""
    kinds: dict[str, list[str]] = {"gains": [], "loses": [], "shows no significant difference in": []}
    for gap in found:
        low, high = (gap.mean if bound is None else bound for bound in (gap.low, gap.high))
        kind = "gains" if low > 0 else "loses" if high < 0 else "shows no significant difference in"
        interval = "no interval" if gap.low is None else f"{gap.low:+.1f} to {gap.high:+.1f}"
        kinds[kind].append(f"{gap.score} {gap.mean:+.1f} ({interval})")
    return "; ".join(f"{kind} {', '.join(scores)}" for kind, scores in kinds.items() if scores)


def _page(worth: Worth, rows: list[list[str]], said: list[str], runs: list[LoadedRun], pictures: list[str]) -> str:
    lines = [rows[0], ["---"] * len(rows[0]), *rows[1:]]
    sizes = worth.detected.settings if worth.detected else {}
    page = _PAGE.format(
        table="\n".join("| " + " | ".join(cells) + " |" for cells in lines),
        sentences="\n".join(f"- {line}" for line in said),
        detection=_DETECTION.format(**sizes, seeds=len(SEEDS)) if worth.detected else "",
        localised=worth.located.settings["images"],
        runs=" ".join(str(_place(one.folder.path)) for one in runs),
    )
    return "\n\n".join([page.rstrip(), *pictures]) + "\n"


def _place(path: Path) -> str:
    """A run's folder relative to its parent."""
    return "/".join(path.parts[-3:]) if path.parent.name == "compare" else path.name
