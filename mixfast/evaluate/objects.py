"""Images with boxes for `evaluate localise`: some on which map and threshold are chosen, and others to score."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch

from mixfast.data import SceneConfig, scenes
from mixfast.data.sets import ImageSet
from mixfast.errors import ConfigError
from mixfast.evaluate.runs import LoadedRun, ScoringOptions
from mixfast.ranges import Count, Seed, Side
from mixfast.scoring import annotations, canvas
from mixfast.scoring.boxes import Objects, objects_from_set

PHOTOGRAPH = 224  # side of VOC and COCO images unless another is given
CANVAS = 64


@dataclass(frozen=True)
class ObjectData(ScoringOptions):
    """Options that choose the images with boxes."""

    data: Literal["auto", "scenes", "canvas", "voc", "coco"] = "auto"  # auto: scenes for runs on scenes, else canvas
    count: Count = 1000  # images to score, at most
    validation: Count = 300  # other images, on which map and threshold are chosen
    size: Side | None = None  # side in pixels; none: the run's own (scenes), 64 (canvas), 224 (voc, coco)
    objects: Count = 1  # canvas: images pasted on each
    path: Path | None = None  # voc: folder with Annotations/ and JPEGImages/; coco: the instances .json
    images: Path | None = None  # coco: folder of the image files
    split: str | None = None  # voc: ImageSets/Main/<split>.txt; none: all annotations
    difficult: bool = True  # voc: count objects marked as difficult
    seed: Seed = 0  # of canvases and of the choice of images


def load(options: ObjectData, first: LoadedRun) -> tuple[Objects, Objects]:
    """(validation, test). Scenes and canvases are made as the first run's images, from its validation or test images.

    Raises:
        ConfigError: an option is missing. DataError: files that are missing or unreadable.
    """
    config = first.setup.config.data
    kind = options.data
    if kind == "auto":
        kind = "scenes" if config.kind == "scenes" else "canvas"
    if kind == "scenes":
        return _scenes(options, first)
    if kind == "canvas":
        train, test = first.setup.splits.train, first.setup.splits.test
        size = options.size or CANVAS
        parts = [(train, options.validation, "validation"), (test, options.count, "test")]
        validation, scored = (
            canvas.compose(split, count, size, options.objects, options.seed, name) for split, count, name in parts
        )
        return validation, scored
    return _photographs(options, kind)


def _scenes(options: ObjectData, first: LoadedRun) -> tuple[Objects, Objects]:
    config, seed = first.setup.config.data, first.setup.config.seed
    same_scenes = config.kind == "scenes" and options.size in (None, config.size)
    size = options.size or config.size
    scene = config.scene if config.kind == "scenes" else SceneConfig()
    test = first.setup.splits.test if same_scenes else scenes.generate(options.count, size, seed, "test", scene)
    chosen = scenes.generate(options.validation, size, seed, "validation", scene)
    return objects_from_set(chosen, "scenes"), objects_from_set(_head(test, options.count), "scenes")


def _head(images: ImageSet, count: int) -> ImageSet:
    return images.take(torch.arange(min(count, len(images))))


def _photographs(options: ObjectData, kind: str) -> tuple[Objects, Objects]:
    if options.path is None or (kind == "coco" and options.images is None):
        needed = "--path FILE.json and --images FOLDER" if kind == "coco" else "--path FOLDER (with Annotations/)"
        raise ConfigError(f"--data {kind} needs {needed}.")
    if kind == "coco":
        assert options.images is not None
        entries = annotations.read_coco(options.path, options.images)
    else:
        entries = annotations.read_voc(options.path, options.split, options.difficult)
    size = options.size or PHOTOGRAPH
    parts = annotations.split_off(entries, options.validation, options.count, options.seed)
    validation, test = (annotations.load_annotated(part, size, kind) for part in parts)
    return validation, test
