"""The output of `evaluate detect`: tables as text, Markdown and JSON, and a picture of predictions."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from mixfast import drawing
from mixfast.detection.average_precision import Detections
from mixfast.detection.images import LabelledImages
from mixfast.detection.scores import any_class, scores_of_draws
from mixfast.drawing import Box, Column
from mixfast.evaluate.runs import SCHEMA, LoadedRun, described, table
from mixfast.run.folder import now, write_json
from mixfast.scoring import bootstrap
from mixfast.scoring.boxes import iou
from mixfast.scoring.paired import difference, spread

if TYPE_CHECKING:
    from mixfast.evaluate.detect import Contestant

_DRAWS = 300  # of the test images
FILES = {"table": ".json", "report": ".md", "picture": ".png"}
TITLES = {"ap": "AP", "ap50": "AP50", "ap75": "AP75", "any_class_ap": "any class AP"}
_OF_DATA = {
    "coco": {"ap_small": "small", "ap_medium": "medium", "ap_large": "large"},
    "voc": {"voc07_ap": "VOC07 AP", "voc07_ap50": "VOC07 AP50", "voc07_ap75": "VOC07 AP75"},
}
_NOTES = {
    "": "AP: COCO's, at 101 recalls, mean over the IoU thresholds .50 to .95 and the classes, in percent. Any class "
    "AP: AP of the boxes without their classes (finding, not naming). ± over seeds. Differences are taken seed by "
    "seed: the networks of a seed share images, order, and the detector's first weights. 95 % over seeds: Student's t, "
    f"for what other seeds would change on these test images. 95 % over images: {_DRAWS} bootstrap draws of the test "
    "images, equal for all networks and seeds, for what other test images would change with these detectors.",
    "voc": "VOC07: the 11-point AP of VOC 2007 at the same ten thresholds, which MoCo's tables call AP; never compare "
    "it with the 101-point AP.",
    "coco": "Small, medium, large: COCO's areas in pixels of the original images.",
}
_SHOWN = 6  # images in the picture
# Colour and dashes of a detection.
FRAMES = {
    "right": (drawing.SKY, "-"),
    "another class": (drawing.YELLOW, "--"),
    "nothing there": (drawing.VERMILION, ":"),
}


@dataclass
class Result:
    """Scores of all rows, and how they were made."""

    settings: dict[str, Any]
    rows: "Sequence[Contestant]"  # the first is what the others are compared with
    seeds: Sequence[int]
    test: LabelledImages

    @property
    def titles(self) -> dict[str, str]:
        """The columns by metric."""
        return {**TITLES, **_OF_DATA.get(self.test.name, {})}

    @cached_property
    def gaps(self) -> dict[str, dict[str, dict[str, Any]]]:
        """By metric and row: the mean difference to the first row, its standard error over the seeds, two intervals.

        "low" and "high" are Student's t over the seeds, None with a single one. "images_low" and "images_high" are the
        central 95 % of the means over draws of the test images, the same draws for all rows and seeds; None for a
        single image, and where no draw has a score.
        """
        first, *others = self.rows
        draws = bootstrap.resamples(len(self.test), number=_DRAWS if len(self.test) > 1 else 0)
        base = self._of_draws(first, draws)
        found: dict[str, dict[str, dict[str, Any]]] = {key: {} for key in self.titles}
        for row in others:
            drawn = self._of_draws(row, draws)
            for key, rows in found.items():
                rows[row.name] = _gap(_by_seed(row, key), _by_seed(first, key), drawn[key] - base[key])
        return found

    def _of_draws(self, row: "Contestant", draws: Tensor) -> dict[str, Tensor]:
        """Means over the seeds, by metric and draw."""
        classes, names = len(self.test.class_names), set(self.titles)
        tables = [scores_of_draws(o.found, o.truth, classes, draws, names) for o in row.outcomes.values()]
        return {key: torch.stack([table[key] for table in tables]).mean(dim=0) for key in names}


def write(file: Path, runs: Sequence[LoadedRun], result: Result) -> dict[str, Any]:
    """Write the JSON file, and beside it Markdown and picture; returns the content of the first."""
    content = _facts(runs, result)
    write_json(file, content)
    file.with_suffix(FILES["report"]).write_text(markdown(result, file.stem), encoding="utf-8")
    draw(file.with_suffix(FILES["picture"]), result)
    return content


def _by_seed(row: "Contestant", key: str) -> dict[int, float]:
    return {seed: outcome.scores[key] for seed, outcome in row.outcomes.items()}


def _number(value: float) -> float | None:
    return None if math.isnan(value) else value


def recorded(row: "Contestant", seeds: Sequence[int], rows: "Sequence[Contestant]") -> dict[str, dict[str, Any]]:
    """A run's own scores and those of the baselines, by row and metric: means over `seeds`."""
    kept = [row, *(other for other in rows if other.role != "run")]
    means = {}
    for each in kept:
        values = [each.outcomes[seed].scores for seed in seeds]
        means[each.name] = {key: _number(sum(v[key] for v in values) / len(values)) for key in values[0]}
    return means


def _gap(ours: dict[int, float], theirs: dict[int, float], drawn: Tensor) -> dict[str, Any]:
    """A difference of two rows, from their scores by seed and the differences of their means by draw."""
    gap, pairs = difference(ours, theirs), spread([ours[seed] - theirs[seed] for seed in ours])
    assert gap is not None and pairs is not None
    error = None if pairs.std is None else pairs.std / math.sqrt(pairs.n)
    drawn = drawn[~drawn.isnan()]  # a draw may have no object of a size
    low, high = bootstrap.interval(drawn) if len(drawn) else (None, None)
    found = {"mean": gap.mean, "standard_error": error, "low": gap.low, "high": gap.high}
    return {**found, "images_low": low, "images_high": high}


def _facts(runs: Sequence[LoadedRun], result: Result) -> dict[str, Any]:
    rows = []
    for row in result.rows:
        seeds = {
            str(seed): {
                "scores": {key: _number(value) for key, value in outcome.scores.items()},
                "first_loss": outcome.losses[0],
                "last_loss": outcome.losses[-1],
                "seconds": outcome.seconds,
            }
            for seed, outcome in row.outcomes.items()
        }
        less = {key: _written(gaps[row.name]) for key, gaps in result.gaps.items() if row.name in gaps}
        rows.append(
            {"name": row.name, "role": row.role, "networks": _networks(row), "seeds": seeds, "above_first": less}
        )
    about = {"schema": SCHEMA, "command": "detect", "time": now(), "settings": result.settings}
    return {**about, "runs": described(runs), "rows": rows}


def _written(gap: dict[str, float | None]) -> dict[str, float | None]:
    return {key: None if value is None else _number(value) for key, value in gap.items()}


def _networks(row: "Contestant") -> int:
    return len({id(network.encoder) for network in row.networks.values()})


def _cells(result: Result) -> dict[str, dict[str, str]]:
    """The table: a line per row, means and standard deviations over seeds, and AP less the first row's."""
    rows: dict[str, dict[str, str]] = {}
    for row in result.rows:
        rows[row.name] = {}
        for key, title in result.titles.items():
            found = spread(list(_by_seed(row, key).values()))
            assert found is not None
            rows[row.name][title] = found.words()
        rows[row.name]["AP by seed"] = " ".join(f"{value:.1f}" for value in _by_seed(row, "ap").values())
    for name, gap in result.gaps["ap"].items():
        rows[name][f"AP minus {result.rows[0].name}"] = f"{gap['mean']:+.1f}"
        rows[name] |= {title: _interval(gap, prefix) for prefix, title in _INTERVALS.items() if _interval(gap, prefix)}
    return rows


_INTERVALS = {"": "95 % over seeds", "images_": "95 % over images"}  # by prefix of the keys in `Result.gaps`


def _interval(gap: dict[str, Any], prefix: str) -> str:
    low, high = gap[f"{prefix}low"], gap[f"{prefix}high"]
    return "" if low is None else f"{low:+.1f} to {high:+.1f}"


def _difference(gap: dict[str, Any]) -> str:
    """In a cell: +1.2 (seeds -0.3 to +2.7, images +0.4 to +2.0)."""
    known = [f"{title.split()[-1]} {text}" for prefix, title in _INTERVALS.items() if (text := _interval(gap, prefix))]
    return f"{gap['mean']:+.1f}" + (f" ({', '.join(known)})" if known else "")


def heading(result: Result) -> str:
    """The task and the training of the detectors, in two lines."""
    s = result.settings
    how = "fine-tuned" if s["finetune"] else "frozen"
    stages = ", ".join(f"{layer} (stride {stride})" for layer, stride in zip(s["layers"], s["strides"], strict=True))
    several = [f"{row.name}: {count}" for row in result.rows if (count := _networks(row)) > 1]
    networks = f"networks pre-trained with their own seeds: {', '.join(several)}" if several else "one network per row"
    return (
        f"detection on {result.test.name}: {s['test_images']} images of {s['side']} pixels with {s['test_objects']} "
        f"objects of {s['classes']} classes\n"
        f"{s['detector']} on stage {stages}, {how}: {s['training_images']} images, {s['steps']} steps of "
        f"{s['batch_size']}; seeds {' '.join(map(str, result.seeds))}; {networks}"
    )


def remarks(result: Result) -> list[str]:
    """Lines on the split of the images, on omitted images and boxes, and on detectors that found nothing."""
    lines = [result.settings["split"]] if result.settings["split"] else []
    lines += [f"{what}: {count}" for what, count in result.settings["left_out"].items()]
    unknown = {seed: n for seed, n in result.settings["objects_of_unknown_classes"].items() if n}
    if unknown:
        counts = ", ".join(f"{n} with seed {seed}" for seed, n in unknown.items())
        lines.append(f"test objects that do not count, as no training image shows their class: {counts}")
    for row in result.rows:
        for seed, outcome in row.outcomes.items():
            if outcome.scores["any_class_ap50"] == 0:
                lines.append(
                    f"{row.name}, seed {seed}: the detector has found no object; its loss has ended at "
                    f"{outcome.losses[-1]:.3g}. That is a training that failed, and it counts in means and intervals."
                )
    return lines


def words(result: Result) -> str:
    """Heading, remarks, table and notes, as text."""
    notes = [_NOTES[key] for key in ("", result.test.name) if key in _NOTES]
    return "\n".join([heading(result), *remarks(result), table(_cells(result)), *notes])


def markdown(result: Result, stem: str) -> str:
    """The table and its explanations as a Markdown page, with all differences."""
    cells = _cells(result)
    columns = list(dict.fromkeys(column for row in cells.values() for column in row))
    lines = [f"# Detection on {result.test.name}", "", heading(result), ""]
    lines += [f"- {line}" for line in remarks(result)] + [""] * bool(remarks(result))
    lines += [f"| | {' | '.join(columns)} |", "|---" * (len(columns) + 1) + "|"]
    lines += [f"| {name} | {' | '.join(row.get(key, '') for key in columns)} |" for name, row in cells.items()]
    lines += ["", f"## Differences to {result.rows[0].name}", ""]
    titles = result.titles
    lines += [f"| | {' | '.join(titles.values())} |", "|---" * (len(titles) + 1) + "|"]
    for row in result.rows[1:]:
        lines.append(f"| {row.name} | {' | '.join(_difference(result.gaps[key][row.name]) for key in titles)} |")
    meaning = [_NOTES[key] for key in ("", result.test.name) if key in _NOTES]
    picture = f"![predictions]({stem}{FILES['picture']})"
    return "\n".join([*lines, "", *meaning, "", "## Predictions", "", picture, "", _LEGEND, ""])


_LEGEND = (
    "As many boxes of each image as it has objects, those with the highest scores, of the first seed; of boxes that "
    "overlap by more than 0.5 the best alone. Solid blue: IoU >= 0.5 with an object of the class; dashed yellow: with "
    "one of another class; dotted red: with no object."
)


def verdicts(found: Detections, test: LabelledImages, image: int) -> list[tuple[list[float], str]]:
    """The best boxes of an image, as many as it has objects, each with a key of `FRAMES`."""
    count = int((test.labels[image] >= 0).sum())
    order = torch.where(found.labels[image] >= 0, found.scores[image], -1).argsort(descending=True, stable=True)[:count]
    pairs = []
    for slot in order[found.labels[image, order] >= 0].tolist():
        near = (iou(found.boxes[image, slot], test.boxes[image]) >= 0.5) & (test.labels[image] >= 0)
        same = near & (test.labels[image] == found.labels[image, slot])
        verdict = "right" if same.any() else "another class" if near.any() else "nothing there"
        pairs.append((found.boxes[image, slot].tolist(), verdict))
    return pairs


def draw(path: Path, result: Result) -> None:
    """Draw a few test images with their objects, and the detections of each row's detector of the first seed."""
    test, seed = result.test, result.seeds[0]
    shown = torch.linspace(0, len(test) - 1, min(_SHOWN, len(test))).long()
    cells = test.images[shown].cpu() / 255
    titles = ["objects", *(f"{row.name}\nAP {row.outcomes[seed].scores['ap']:.1f}" for row in result.rows)]
    columns = [
        Column(title, cells, [_boxes(result, number, image) for image in shown.tolist()])
        for number, title in enumerate(titles)
    ]
    meaning = "solid blue: correct; dashed yellow: another class; dotted red: no object"
    drawing.image_grid(path, columns, title=f"{test.name}, {result.settings['detector']}, seed {seed}\n{meaning}")


def _boxes(result: Result, column: int, image: int) -> list[Box]:
    """The boxes of a cell of the picture: the objects in the first column, then each row's detections."""
    test = result.test
    if column == 0:
        real: Tensor = test.labels[image] >= 0
        return [Box(box, "white") for box in test.boxes[image, real].tolist()]
    found = result.rows[column - 1].outcomes[result.seeds[0]].found
    found = found._replace(labels=torch.where(any_class(found).labels >= 0, found.labels, -1))
    return [Box(box, *FRAMES[verdict]) for box, verdict in verdicts(found, test, image)]
