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
    "AP: AP without the classes of the boxes: it scores finding objects, not naming them. ±: standard deviation over "
    "seeds. Differences are taken seed by seed: the networks of a seed share images, order, and the detector's first "
    "weights. 95 % over seeds: Student's t interval of the difference for other seeds and these test images. 95 % over "
    f"images: interval of {_DRAWS} bootstrap draws of the test images, which all networks and seeds share, for other "
    "test images and these detectors.",
    "voc": "VOC07: the 11-point AP of VOC 2007 at the same ten thresholds, which MoCo's tables call AP; never compare "
    "it with the 101-point AP.",
    "coco": "Small, medium, large: COCO's areas in pixels of the original images.",
}
_IMAGES = 6  # images in the picture
# Colour and dashes of a detection.
FRAMES = {
    "right": (drawing.SKY, "-"),
    "another class": (drawing.YELLOW, "--"),
    "nothing there": (drawing.VERMILION, ":"),
}


@dataclass
class Result:
    """Scores of all rows, and the settings of the detectors."""

    settings: dict[str, Any]
    rows: "Sequence[Contestant]"  # the others are compared with the first
    seeds: Sequence[int]
    test: LabelledImages

    @property
    def titles(self) -> dict[str, str]:
        """The columns by metric."""
        return {**TITLES, **_OF_DATA.get(self.test.name, {})}

    @cached_property
    def gaps(self) -> dict[str, dict[str, dict[str, Any]]]:
        """By metric and row: the mean difference to the first row, its standard error over the seeds, two intervals.

        "low" and "high" are the Student's t interval over the seeds, None for a single seed. "images_low" and
        "images_high" are the central 95 % of the means over draws of the test images, the same draws for all rows and
        seeds; None for a single image, and where no draw has a score.
        """
        first, *other_rows = self.rows
        draws = bootstrap.resamples(len(self.test), number=_DRAWS if len(self.test) > 1 else 0)
        base = self._of_draws(first, draws)
        differences: dict[str, dict[str, dict[str, Any]]] = {key: {} for key in self.titles}
        for row in other_rows:
            means = self._of_draws(row, draws)
            for key, rows in differences.items():
                rows[row.name] = _gap(_by_seed(row, key), _by_seed(first, key), means[key] - base[key])
        return differences

    def _of_draws(self, row: "Contestant", draws: Tensor) -> dict[str, Tensor]:
        """Means over the seeds, by metric and draw."""
        classes, names = len(self.test.class_names), set(self.titles)
        tables = [scores_of_draws(o.detections, o.truth, classes, draws, names) for o in row.outcomes.values()]
        return {key: torch.stack([table[key] for table in tables]).mean(dim=0) for key in names}


def write(file: Path, runs: Sequence[LoadedRun], result: Result) -> dict[str, Any]:
    """Write the JSON file, and beside it Markdown and picture; returns the content of the JSON file."""
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
    entries = [row, *(baseline for baseline in rows if baseline.role != "run")]
    means = {}
    for entry in entries:
        values = [entry.outcomes[seed].scores for seed in seeds]
        means[entry.name] = {key: _number(sum(v[key] for v in values) / len(values)) for key in values[0]}
    return means


def _gap(row_scores: dict[int, float], first_scores: dict[int, float], differences: Tensor) -> dict[str, Any]:
    """A difference of two rows, from their scores by seed and the differences of their means by draw."""
    gap = difference(row_scores, first_scores)
    pairs = spread([row_scores[seed] - first_scores[seed] for seed in row_scores])
    assert gap is not None and pairs is not None
    error = None if pairs.std is None else pairs.std / math.sqrt(pairs.n)
    differences = differences[~differences.isnan()]  # a draw may have no object of a size
    low, high = bootstrap.interval(differences) if len(differences) else (None, None)
    entries = {"mean": gap.mean, "standard_error": error, "low": gap.low, "high": gap.high}
    return {**entries, "images_low": low, "images_high": high}


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
        above_first = {key: _finite(gaps[row.name]) for key, gaps in result.gaps.items() if row.name in gaps}
        rows.append(
            {"name": row.name, "role": row.role, "networks": _networks(row), "seeds": seeds, "above_first": above_first}
        )
    about = {"schema": SCHEMA, "command": "detect", "time": now(), "settings": result.settings}
    return {**about, "runs": described(runs), "rows": rows}


def _finite(gap: dict[str, float | None]) -> dict[str, float | None]:
    return {key: None if value is None else _number(value) for key, value in gap.items()}


def _networks(row: "Contestant") -> int:
    return len({id(network.encoder) for network in row.networks.values()})


def _cells(result: Result) -> dict[str, dict[str, str]]:
    """The cells of the table: by row, means and standard deviations over seeds, and the difference in AP to the first
    row."""
    rows: dict[str, dict[str, str]] = {}
    for row in result.rows:
        rows[row.name] = {}
        for key, title in result.titles.items():
            score = spread(list(_by_seed(row, key).values()))
            assert score is not None
            rows[row.name][title] = score.text()
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
    """The text of a cell: +1.2 (seeds -0.3 to +2.7, images +0.4 to +2.0)."""
    intervals = {title.split()[-1]: _interval(gap, prefix) for prefix, title in _INTERVALS.items()}
    listing = ", ".join(f"{name} {interval}" for name, interval in intervals.items() if interval)
    return f"{gap['mean']:+.1f}" + (f" ({listing})" if listing else "")


def heading(result: Result) -> str:
    """The task and the training of the detectors, in two lines."""
    s = result.settings
    mode = "fine-tuned" if s["finetune"] else "frozen"
    stages = ", ".join(f"{layer} (stride {stride})" for layer, stride in zip(s["layers"], s["strides"], strict=True))
    several = [f"{row.name}: {count}" for row in result.rows if (count := _networks(row)) > 1]
    networks = f"networks pre-trained with their own seeds: {', '.join(several)}" if several else "one network per row"
    return (
        f"detection on {result.test.name}: {s['test_images']} images of {s['side']} pixels with {s['test_objects']} "
        f"objects of {s['classes']} classes\n"
        f"{s['detector']} on stage {stages}, {mode}: {s['training_images']} images, {s['steps']} steps of "
        f"{s['batch_size']}; seeds {' '.join(map(str, result.seeds))}; {networks}"
    )


def remarks(result: Result) -> list[str]:
    """Lines on the split of the images, on omitted images and boxes, and on detectors that found nothing."""
    lines = [result.settings["split"]] if result.settings["split"] else []
    lines += [f"{reason}: {count}" for reason, count in result.settings["left_out"].items()]
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


def text(result: Result) -> str:
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
    "In each image as many boxes of the first seed's detector as it has objects, those with the highest scores; of "
    "boxes that overlap by more than 0.5 only the best. Solid blue: IoU >= 0.5 with an object of the class; dashed "
    "yellow: with an object of another class; dotted red: with no object."
)


def verdicts(detections: Detections, test: LabelledImages, image: int) -> list[tuple[list[float], str]]:
    """The best boxes of an image, as many as it has objects, each with a key of `FRAMES`."""
    count = int((test.labels[image] >= 0).sum())
    scores = torch.where(detections.labels[image] >= 0, detections.scores[image], -1)
    order = scores.argsort(descending=True, stable=True)[:count]
    pairs = []
    for slot in order[detections.labels[image, order] >= 0].tolist():
        overlaps = (iou(detections.boxes[image, slot], test.boxes[image]) >= 0.5) & (test.labels[image] >= 0)
        same_class = overlaps & (test.labels[image] == detections.labels[image, slot])
        verdict = "right" if same_class.any() else "another class" if overlaps.any() else "nothing there"
        pairs.append((detections.boxes[image, slot].tolist(), verdict))
    return pairs


def draw(path: Path, result: Result) -> None:
    """Draw a few test images with their objects, and the detections of each row's detector of the first seed."""
    test, seed = result.test, result.seeds[0]
    image_numbers = torch.linspace(0, len(test) - 1, min(_IMAGES, len(test))).long()
    cells = test.images[image_numbers].cpu() / 255
    titles = ["objects", *(f"{row.name}\nAP {row.outcomes[seed].scores['ap']:.1f}" for row in result.rows)]
    columns = [
        Column(title, cells, [_boxes(result, number, image) for image in image_numbers.tolist()])
        for number, title in enumerate(titles)
    ]
    meaning = "solid blue: correct; dashed yellow: another class; dotted red: no object"
    drawing.image_grid(path, columns, title=f"{test.name}, {result.settings['detector']}, seed {seed}\n{meaning}")


def _boxes(result: Result, column: int, image: int) -> list[Box]:
    """The boxes of a cell of the picture: the objects in the first column, then each row's detections."""
    test = result.test
    if column == 0:
        is_object: Tensor = test.labels[image] >= 0
        return [Box(box, "white") for box in test.boxes[image, is_object].tolist()]
    detections = result.rows[column - 1].outcomes[result.seeds[0]].detections
    detections = detections._replace(labels=torch.where(any_class(detections).labels >= 0, detections.labels, -1))
    return [Box(box, *FRAMES[verdict]) for box, verdict in verdicts(detections, test, image)]
