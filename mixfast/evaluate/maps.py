"""evaluate maps: attention maps of several runs side by side, as in the paper's figure 4."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from mixfast import drawing
from mixfast.data.folder import ENDINGS
from mixfast.data.sets import first_balanced
from mixfast.data.vision import resized
from mixfast.errors import ConfigError, DataError
from mixfast.evaluate.runs import LoadedRun, ScoringOptions, evaluation_folder, load_runs, record_scores, table
from mixfast.ranges import Count, Positive, Side
from mixfast.rng import Generators
from mixfast.scoring import localisation
from mixfast.scoring.annotations import stretched
from mixfast.scoring.boxes import Objects, objects_from_set
from mixfast.scoring.dilate import fine_stride
from mixfast.scoring.features import extract
from mixfast.scoring.linear import probe
from mixfast.scoring.maps import Mapper, Network, enlarged, entropy, fit_mapper

PHOTOGRAPH = 128  # pixels to which given files are stretched, as in the paper's figure
Contestant = tuple[str, Network, LoadedRun]  # title of the column, network whose maps it shows, run of the network
_REFERENCE = 512  # training images whose channel means centre the "norm" map


@dataclass(frozen=True)
class Maps(ScoringOptions):
    """Draw attention maps of several runs side by side."""

    images: tuple[Path, ...] = ()  # image files, or folders of them; none: the first run's test images
    count: Count = 6  # images at most
    kind: Literal["norm", "power", "eigen", "sim", "cam"] = "power"  # docs/localisation.md defines them
    p: Positive = 2.0  # exponent of power
    resize: Side | None = None  # side of the network's input; none: 128 for files, as they are for test images
    layer: Count | None = None  # stage of the network, 1 is the first; none: the last
    stride: Count | None = None  # pixels per cell, by dilating the last stages; none: 14 cells a side or more
    align_corners: bool = True  # enlarge as the paper's figure does; false: as the scores do
    overlay: bool = False  # show the image through the map
    untrained: bool = True  # a column for each network before training
    out: Path | None = None  # folder of the picture; none: evaluation/ of the first run


def maps(options: Maps) -> None:
    """Draw the maps; print and record their entropy and, where boxes are known, the share of them inside the boxes."""
    runs = load_runs(options)
    path = evaluation_folder(runs, options.out) / f"maps-{options.kind}.png"
    title, settings, scores = draw(path, options, runs[0], _contestants(runs, options.untrained))
    for run in runs:
        record_scores(run, "maps", settings, scores)
    print(f"{title}; {len(settings['images'])} images")
    print(table({name: {key: f"{value:.1f}" for key, value in row.items()} for name, row in scores.items()}))
    print("entropy: 100 is a map without preference; energy: share inside the boxes, in percent")
    print(f"picture   {path}")


def draw(
    path: Path, options: Maps, first: LoadedRun, contestants: Sequence[Contestant]
) -> tuple[str, dict[str, Any], dict[str, dict[str, float]]]:
    """Draw the grid: the images of `first`, or those of the options, and a column of maps per contestant.

    Returns:
        The picture's title; the settings behind it; by contestant the mean entropy and energy of the maps, in percent.
    """
    data, rows = _images(options, first)
    columns = [drawing.Column("image", data.images.cpu() / 255, drawing.framed(data.boxes))]
    scores: dict[str, dict[str, float]] = {}
    for name, network, run in contestants:
        mapper = _mapper(options, run, network, data)
        if options.kind not in mapper.kinds():
            raise ConfigError(f"--kind {options.kind} reads the last layer; got --layer {options.layer}.")
        raw = mapper.maps(data.images, [options.kind], data.labels)[options.kind].cpu()
        big = enlarged(raw, data.size, options.align_corners)
        columns.append(drawing.Column(name, drawing.heat(big, data.images if options.overlay else None)))
        scores[name] = {"entropy": 100 * entropy(big).mean().item()}
        if data.boxes.shape[1]:
            scores[name]["energy"] = 100 * localisation.energy(big, data.boxes).mean().item()
    side = data.size[0]
    stride = options.stride or fine_stride(first.setup.method.encoder.backbone, side, options.layer)
    title = f"{options.kind}{f', p = {options.p:g}' if options.kind == 'power' else ''}; {side} pixels, stride {stride}"
    drawing.image_grid(path, columns, rows, title)
    settings: dict[str, Any] = {
        "kind": options.kind,
        "p": options.p,
        "side": side,
        "layer": options.layer,
        "stride": stride,
    }
    return title, settings | {"align_corners": options.align_corners, "images": rows}, scores


def _contestants(runs: list[LoadedRun], untrained: bool) -> list[Contestant]:
    """A column for each run, and for each different untrained network: they are equal for the same start and seed."""
    contestants = []
    for run in runs:
        count = sum(other_run.name == run.name for other_run in runs)
        title = f"{run.name}, seed {run.setup.config.seed}" if count > 1 else run.name
        contestants.append((title, run.trained, run))
    if untrained:
        unique = {f"{run.start} {run.setup.config.seed}": run for run in reversed(runs)}
        for run in reversed(unique.values()):
            title = "untrained" if len(unique) == 1 else f"untrained, as {run.name}, seed {run.setup.config.seed}"
            contestants.append((title, run.untrained(), run))
    return contestants


def _mapper(options: Maps, run: LoadedRun, network: Network, data: Objects) -> Mapper:
    reference = resized(run.setup.splits.train.images[:_REFERENCE], data.size[0])
    weights = probe_weights(run, network) if options.kind == "cam" else None
    try:
        return fit_mapper(
            network, reference, layer=options.layer, stride=options.stride, classifier=weights, p=options.p
        )
    except ValueError as error:
        raise ConfigError(f"--{error}.") from error


def probe_weights(run: LoadedRun, network: Network) -> Tensor:
    """[classes, C]: a linear probe on the pooled features of the run's training images, for "cam"."""
    setup, train = run.setup, run.setup.splits.train
    if not train.labelled:
        raise ConfigError(f"{run.checkpoint}: a cam map needs a class for every training image.")
    features = extract(network.encoder, setup.train_images, network.normalise, setup.config.eval.batch_size)
    generator = Generators(setup.config.seed, setup.device)["linear"]
    layer, _ = probe(features.h, train.labels.to(setup.device), len(train.class_names), generator)
    return layer.weight.detach()


def _images(options: Maps, first: LoadedRun) -> tuple[Objects, list[str]]:
    """The images whose maps are drawn, and a name for each."""
    if options.images:
        files = _files(options.images)[: options.count]
        side = options.resize or PHOTOGRAPH
        stack = torch.stack([stretched(file, side)[0] for file in files])
        objects = Objects(stack, torch.zeros(len(files), 0, 4), torch.full((len(files),), -1), "files")
        return objects, [file.stem for file in files]
    test = first.setup.splits.test
    test = test.take(first_balanced(test.labels, options.count))
    names = [test.class_names[i] if i >= 0 else "" for i in test.labels.tolist()]
    side = options.resize or test.images.shape[2]
    if test.boxes is None:
        return Objects(resized(test.in_memory(), side), torch.zeros(len(test), 0, 4), test.labels, "test images"), names
    objects = objects_from_set(test, "test images")
    scale = side / test.images.shape[2]
    return Objects(resized(test.in_memory(), side), objects.boxes * scale, test.labels, objects.name), names


def _files(paths: tuple[Path, ...]) -> list[Path]:
    files: list[Path] = []
    for path in paths:
        inside = sorted(file for file in path.rglob("*") if file.suffix.lower() in ENDINGS) if path.is_dir() else [path]
        if not inside:
            raise DataError(f"--images {path}: no image there; endings looked for: {' '.join(ENDINGS)}.")
        files += inside
    return files
