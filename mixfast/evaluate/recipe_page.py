"""The report of a recipe: settings, scores, published figures, and why they are not comparable."""

import dataclasses
import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from mixfast.detection.recipes import FIGURES, PublishedRecipe
from mixfast.evaluate.recipe_training import Training
from mixfast.evaluate.runs import SCHEMA, LoadedRun, described
from mixfast.files import write_whole
from mixfast.models import Backbone
from mixfast.run.folder import now, write_json
from mixfast.world import current

if TYPE_CHECKING:
    from mixfast.evaluate.recipe import RecipeData

FILES = {"numbers": "result.json", "report": "report.md"}
# AP50 first on VOC, as in MoCo's table.
_TITLES = {
    "voc": {"voc07_ap50": "AP50", "voc07_ap": "AP", "voc07_ap75": "AP75"},
    "coco": {
        **{"ap": "AP", "ap50": "AP50", "ap75": "AP75"},
        **{"ap_small": "small", "ap_medium": "medium", "ap_large": "large"},
        **{"mask_ap": "mask AP", "mask_ap50": "mask AP50", "mask_ap75": "mask AP75"},
    },
}
_METRICS = {
    "voc": "The 11-point AP of VOC 2007, in percent: at IoU .50, mean over .50, .55 ... .95, and at .75.",
    "coco": "COCO's AP at 101 recalls, in percent: mean over IoU .50, .55 ... .95, at .50 and at .75, and by size; of "
    "boxes, and of masks by pycocotools.",
}
_DETECTORS = {
    "voc": "The detector is Faster R-CNN C4, with one more batch norm after the last stage.",
    "coco": "The detector is Mask R-CNN FPN. Two variants of it are in circulation, and their figures are not "
    "comparable: this is MoCo's own, with batch norm in the backbone and the pyramid alone and a head of two linear "
    "layers; the other has batch norm in every head, and four convolutions in that of the boxes.",
}
_RESNET50 = ([256, 512, 1024, 2048], [4, 8, 16, 32], 23_508_032)  # channels, strides, weights
_DIFFERENCES = (
    "Torchvision's parts put together here, not detectron2.",
    "Batch norm sees the whole batch, whatever the number of processes, as detectron2's eight synchronised ones do. "
    "Each of those pads two images to one size; here all of the batch are padded to one size, and the padding takes "
    "part in the statistics.",
    "Images are padded to a multiple of the stride of the coarsest map; in detectron2 to 32 pixels with a pyramid, "
    "else not at all. Anchors are rounded to whole pixels.",
    "Images are resized by torch's bilinear interpolation; in detectron2 by Pillow's, which averages where it shrinks.",
    "Images are normalised with the mean and deviation of the run, with which its network was trained.",
)
_OF_DATA = {
    "voc": "Scores are not rounded to three digits, nor boxes to one. One training; MoCo's figures are means of five.",
    "coco": "Masks are pasted into photographs at whole pixels, and cropped from masks of whole images; in detectron2 "
    "at fractions of pixels, and cropped from polygons.",
}


def facts(
    run: LoadedRun, published: PublishedRecipe, training: Training, data: "RecipeData", scores: dict[str, float]
) -> dict[str, Any]:
    """The content of the report."""
    import torchvision

    recipe, backbone = training.recipe, run.setup.method.encoder.backbone
    fields = [item.name for item in dataclasses.fields(recipe) if item.name not in ("name", "data", "images")]
    reasons = [*_reasons(backbone, published, training, data)]
    return {
        **{"schema": SCHEMA, "command": "detect-recipe", "time": now(), "run": described([run])[0]},
        "network": run.architecture,
        "dry_run": training.settings["dry_run"],
        "settings": {
            **{**training.settings, "device": str(training.device), "seconds": training.seconds},
            "processes": current().size,
        },
        "recipe": {name: [getattr(published, name), getattr(recipe, name)] for name in fields},
        "data": {
            **{"kind": published.data, "training_images": len(data.train), "test_images": len(data.test)},
            **{"test_objects": int((data.truth.labels >= 0).sum()), "classes": len(data.class_names)},
            **{"split": data.split, "left_out": data.left_out},
        },
        "scores": {key: None if math.isnan(value) else value for key, value in scores.items()},
        "published": [
            {**figure._asdict(), "comparable": not reasons, "why_not": reasons} for figure in FIGURES[recipe.name]
        ],
        "differences": [*_DIFFERENCES, _OF_DATA[published.data], *_changes(training)],
        **{"torch": torch.__version__, "torchvision": torchvision.__version__},
    }


def _changes(training: Training) -> list[str]:
    """Sentences on the options with which the training differs from the recipe."""
    lines, size = [], training.recipe.batch_size
    if (parts := training.accumulate) > 1:
        lines.append(f"The gradients of {parts} parts of a batch are added: batch norm sees {size // parts} images.")
    if training.settings["precision"] == "bf16":
        lines.append("Convolutions and linear layers in bfloat16; the published figures are of float32.")
    return lines


def _reasons(backbone: Backbone, published: PublishedRecipe, training: Training, data: "RecipeData") -> list[str]:
    """Reasons why the published figures are not comparable with this training's."""
    recipe, network = (
        training.recipe,
        (backbone.channels, backbone.strides, sum(map(torch.numel, backbone.parameters()))),
    )
    checks = {
        "a dry run": training.settings["dry_run"],
        "the network is no ResNet-50 with the stem for ImageNet": network != _RESNET50,
        "other photographs": (len(data.train), len(data.test)) != published.images,
        "another learning rate": recipe.lr != published.lr,
        "batch norm sees a part of the batch": training.accumulate > 1,
        "this code has not reproduced a published figure yet": True,
    }
    return [reason for reason, holds in checks.items() if holds]


def write(folder: Path, report: dict[str, Any]) -> None:
    """Write result.json and report.md."""
    write_json(folder / FILES["numbers"], report)
    write_whole(folder / FILES["report"], markdown(report).encode())


def markdown(report: dict[str, Any]) -> str:
    """The report as a page."""
    settings, data = report["settings"], report["data"]
    kind, titles = data["kind"], _TITLES[data["kind"]]
    columns = [f"| | {' | '.join(titles.values())} | |", "|---" * (len(titles) + 2) + "|"]
    run = report["run"]
    dry = ["**A dry run: its numbers mean nothing but that everything runs.**", ""] if report["dry_run"] else []
    lines = [
        *(f"# Recipe {settings['recipe']}, seed {settings['seed']}", "", *dry),
        f"{run['name']}, epoch {run['epoch']} ({report['network']}): {data['training_images']} photographs, "
        f"{settings['precision']} on {settings['device']}, {settings['seconds']:.0f} s of training.",
        f"Scored on {data['test_images']} photographs with {data['test_objects']} objects of {data['classes']} "
        f"classes; {data['split']}.",
        "",
        *(f"- {reason}: {count}" for reason, count in data["left_out"].items()),
        *[""] * bool(data["left_out"]),
        *columns,
        f"| this detector, by torchvision's parts | {_cells(report['scores'], titles)} | |",
        *(
            f"| published: {figure['network']} | {_cells(figure['scores'], titles)} | "
            f"{'' if figure['comparable'] else 'not comparable; '}{figure['source']} |"
            for figure in report["published"]
        ),
        *("", _METRICS[kind], "", _DETECTORS[kind], ""),
        "Published figures are of a ResNet-50 in detectron2, pre-trained on ImageNet-1k unless random. Why they are "
        f"not comparable with this detector's: {'; '.join(report['published'][0]['why_not'])}.",
        *("", "## Where this differs from detectron2's protocol", ""),
        *(f"- {line}" for line in report["differences"]),
        *("", "## The recipe", "", "| | published | here |", "|---|---|---|"),
        *(f"| {name} | {_word(published)} | {_word(used)} |" for name, (published, used) in report["recipe"].items()),
        "",
    ]
    return "\n".join(lines)


def _cells(scores: dict[str, float | None], titles: dict[str, str]) -> str:
    return " | ".join("" if scores.get(key) is None else f"{scores[key]:.1f}" for key in titles)


def _word(value: Any) -> str:
    return " ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)
