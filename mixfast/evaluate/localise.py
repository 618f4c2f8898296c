"""evaluate localise: how well attention maps find objects; docs/localisation.md says what the numbers mean."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch

from mixfast import drawing
from mixfast.errors import ConfigError
from mixfast.evaluate import objects
from mixfast.evaluate.contestants import Localise, Row, contestants
from mixfast.evaluate.runs import (
    SCHEMA,
    Loaded,
    LoadedRun,
    PrintLine,
    described,
    evaluation_folder,
    grouped,
    load_runs,
    record_scores,
    table,
)
from mixfast.run.folder import now, write_json
from mixfast.scoring import bootstrap, protocol
from mixfast.scoring.boxes import Objects
from mixfast.scoring.dilate import fine_stride
from mixfast.scoring.localisation import DELTAS
from mixfast.scoring.maps import KINDS, enlarged
from mixfast.scoring.protocol import Choice, Options

ORACLES = ("max_box_acc", "max_box_acc_v2")
TITLES = {
    "pointing": "pointing",
    "energy": "energy",
    "pxap": "PxAP",
    "corloc": "CorLoc",
    "box_v2": "BoxAccV2",
    "hit_at_1": "hit@1",
    "hit_at_3": "hit@3",
    "hit_at_5": "hit@5",
    "background": "background",
    "max_box_acc": "oracle MaxBoxAcc",
    "max_box_acc_v2": "oracle V2",
}
_IMAGES = 6  # images in the picture


class Result(NamedTuple):
    """Scores of the runs and their baselines, and the settings."""

    settings: dict[str, Any]
    rows: list[Row]
    scores: dict[str, dict[str, Any]]  # by row and metric: `bootstrap.summary`
    margins: dict[str, dict[str, Any]]  # scores of each run minus those of its untrained network: `bootstrap.margin`
    draws: torch.Tensor  # of the bootstrap
    test: Objects


def localise(options: Localise, loaded: Loaded | None = None, print_line: PrintLine = print) -> dict[str, Any]:
    """Score maps; print the table, write a JSON file and a picture, and append the scores to evaluations.jsonl.

    Returns:
        The content of the JSON file, and under "files" the paths.
    """
    runs = load_runs(options, loaded=loaded, print_line=print_line)
    result = evaluate(options, runs)
    folder = evaluation_folder(runs, options.out)
    several = f"-{options.objects}" if result.test.name == "canvas" and options.objects > 1 else ""
    file = folder / f"localise-{result.test.name}{several}.json"
    content = facts(runs, result)
    write_json(file, content)
    draw(file.with_suffix(".png"), result)
    record_results(runs, result)
    files = {"table": str(file), "picture": str(file.with_suffix(".png"))}
    print_line(text(result))
    print_line("\n".join(f"{kind:<9} {path}" for kind, path in files.items()))
    return {**content, "files": files}


def record_results(runs: Sequence[LoadedRun], result: Result) -> None:
    """Append the scores of each run, and of the baselines, to the evaluations.jsonl in its folder."""
    for row, group in zip(result.rows, grouped(runs).values(), strict=False):  # runs are the first rows
        baselines = {baseline.name: result.scores[baseline.name] for baseline in result.rows if baseline.role != "run"}
        for run, outcome in zip(group, row.outcomes, strict=True):
            run_scores = {row.name: protocol.summarise([outcome], result.draws)}
            record_scores(run, "localise", result.settings, {**run_scores, **baselines})


def evaluate(options: Localise, runs: Sequence[LoadedRun]) -> Result:
    """Score the runs and their baselines; nothing is written."""
    if unknown := [kind for kind in options.kinds if kind not in KINDS]:
        raise ConfigError(f"--kinds must be among {', '.join(KINDS)}; got {', '.join(unknown)}.")
    validation, test = objects.load(options, runs[0])
    rows = contestants(options, runs, validation)
    protocol_options = Options(tolerance=options.tolerance)
    for row in rows:
        row.outcomes = [protocol.choose_and_score(maker, validation, test, protocol_options) for maker in row.makers]
    draws = bootstrap.resamples(len(test), options.seed)
    base = {row.start: row.outcomes for row in rows if row.role == "untrained"}
    names = [name for name in TITLES if name in rows[0].outcomes[0].images]
    backbone = runs[0].setup.method.encoder.backbone
    settings = {
        "data": test.name,
        "images": len(test),
        "validation": len(validation),
        "side": test.size[0],
        "objects": test.boxes.shape[1],
        "layer": options.layer,
        "stride": options.stride or fine_stride(backbone, min(test.size), options.layer),
        "tolerance": options.tolerance,
        "kinds": list(options.kinds),
        "boxes": "half-open, no + 1 in the IoU",
    }
    return Result(
        settings,
        rows,
        {row.name: protocol.summarise(row.outcomes, draws) for row in rows},
        {
            row.name: {name: protocol.margin(row.outcomes, base[row.start], draws, name) for name in names}
            for row in rows
            if row.role == "run"
        },
        draws,
        test,
    )


def facts(runs: Sequence[LoadedRun], result: Result) -> dict[str, Any]:
    """The content of the JSON file."""
    rows = [
        {
            "name": row.name,
            "role": row.role,
            "choices": [_choice(outcome.choice) for outcome in row.outcomes],
            "scores": result.scores[row.name],
            "above_untrained": result.margins.get(row.name),
        }
        for row in result.rows
    ]
    about = {"schema": SCHEMA, "command": "localise", "time": now(), "settings": result.settings}
    return {**about, "runs": described(runs), "rows": rows}


def _choice(choice: Choice) -> dict[str, Any]:
    shares = {"corloc": choice.corloc, **{f"v2 at {d}": t for d, t in zip(DELTAS, choice.deltas, strict=True)}}
    thresholds = {name: index / Options().thresholds for name, index in shares.items()}
    return {"map": choice.kind, "thresholds": thresholds, "validation_max_box_acc_v2": choice.validation}


def text(result: Result) -> str:
    """The table with its settings and notes, as text."""
    settings = result.settings
    lines = [
        f"localisation on {settings['data']}: {settings['images']} images of {settings['side']} pixels with up to "
        f"{settings['objects']} objects; maps and thresholds chosen on {settings['validation']} others",
        f"map of layer {settings['layer'] or 'last'}, {settings['stride']} pixels per cell; boxes {settings['boxes']}",
    ]
    lines += [table(cells(result))]
    lines += ["percent; ± over seeds; in brackets 95 % of bootstrap draws of the images"]
    lines += ["oracle: threshold chosen on the images that are scored, an upper bound"]
    for name, margins in result.margins.items():
        margins_text = [
            f"{TITLES[key]} {m['mean']:+.1f} ({m['low']:+.1f} to {m['high']:+.1f})"
            for key, m in margins.items()
            if key not in ORACLES
        ]
        lines.append(f"{name} above untrained: {', '.join(margins_text)}")
    return "\n".join(lines)


def cells(result: Result) -> dict[str, dict[str, str]]:
    """For each row, by title of the column: its map, and each score with its spread over seeds and its interval."""
    rows: dict[str, dict[str, str]] = {}
    for row in result.rows:
        rows[row.name] = {"map": "/".join(dict.fromkeys(outcome.choice.kind for outcome in row.outcomes))}
        for key, title in TITLES.items():
            if (score := result.scores[row.name].get(key)) is not None:
                std = "" if score["std"] is None else f" ± {score['std']:.1f}"
                interval = "" if key in ORACLES else f" ({score['low']:.0f}-{score['high']:.0f})"
                rows[row.name][title] = f"{score['mean']:.1f}{std}{interval}"
    return rows


def draw(path: Path, result: Result) -> None:
    """A few test images with their boxes, and each contestant's map with the box that CorLoc scores."""
    test = result.test
    shown_images = test.take(torch.linspace(0, len(test) - 1, min(_IMAGES, len(test))).long())
    columns = [drawing.Column("image", shown_images.images.cpu() / 255, drawing.framed(shown_images.boxes))]
    for row in result.rows:
        choice = row.outcomes[0].choice
        big = enlarged(row.makers[0](shown_images, [choice.kind])[choice.kind].cpu(), shown_images.size)
        boxes = protocol.predicted(big, choice)[:, None]
        columns.append(drawing.Column(f"{row.name}\n{choice.kind}", drawing.heat(big), drawing.framed(boxes, "white")))
    drawing.image_grid(path, columns, title=f"{test.name}: maps, and boxes at the chosen threshold")
