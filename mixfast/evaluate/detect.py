"""evaluate detect: detectors on the networks of runs; docs/detection.md says what the numbers mean."""

import copy
import hashlib
import json
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from mixfast.detection.detectors import need_torchvision
from mixfast.detection.supervised import SupervisedRecipe, fit_supervised
from mixfast.detection.transfer import Outcome, Recipe, shape_of, transfer
from mixfast.errors import ConfigError, NonFiniteError
from mixfast.evaluate import detect_data, detect_page
from mixfast.evaluate import recipe as recipe_command
from mixfast.evaluate.detect_data import DetectionData
from mixfast.evaluate.runs import (
    Loaded,
    LoadedRun,
    ScoringOptions,
    evaluation_folder,
    grouped,
    load_runs,
    need_labels,
    record_scores,
)
from mixfast.files import write_whole
from mixfast.models.backbone import named_weights
from mixfast.ranges import Cores, Count, Positive, Seed, Side
from mixfast.rng import Generators
from mixfast.run.console import Console, duration
from mixfast.scoring.maps import Network
from mixfast.world import alone, current

SUPERVISED = "supervised.safetensors"  # in evaluation/ of a run: its architecture trained with labels
_SEEDS = (0, 1, 2)
SIZES = {False: (400, 400, 300), True: (100, 80, 150)}  # --quick or not: training images, steps, scored images
_SUPERVISED_BATCH = 256  # images, at most


@dataclass(frozen=True)
class Detect(ScoringOptions):
    """Average precision of detectors on the runs' features, beside the untrained and a supervised network."""

    # scenes; canvas (pictures of the run's data set); voc FOLDER; coco IMAGES INSTANCES.json, perhaps again for testing
    data: tuple[str, ...] = ("scenes",)
    detector: Literal["fcos", "retinanet", "fpn", "c4"] = "fcos"  # fpn, c4: Faster R-CNN
    finetune: bool = False  # also train the network below the detector
    # of images, detector and order; none: those of the runs if a method has several, else 0 1 2
    seeds: tuple[Seed, ...] = ()
    quick: bool = False  # smaller numbers: the table at the end of the first run
    images: Count | None = None  # to train each detector on, at most; none: 400, quick: 100
    count: Count | None = None  # images to score, at most; none: 300, quick: 150
    steps: Count | None = None  # of 8 images; none: 400, quick: 80
    lr: Positive | None = None  # learning rate; none: 1e-3, AdamW's, or the recipe's
    layers: tuple[Count, ...] = ()  # stages whose maps are used; none: one of each stride from 8 pixels on
    size: Side | None = None  # side of the images in pixels; none: 3 times the run's (scenes, canvas), 224 (voc, coco)
    splits: tuple[str, str] | None = None  # voc: lists in ImageSets/Main to train on and to score
    supervised: bool = True  # also train the first run's network with labels, once for each run; needs classes
    supervised_epochs: Count | None = None  # none: the run's
    out: Path | None = None  # folder of table and picture; none: evaluation/ of the first run
    # a full training of the literature's in place of all that, on voc or coco: docs/detection.md
    recipe: Literal["voc-c4-24k", "coco-fpn-1x", "coco-fpn-2x"] | None = None
    dry_run: bool = False  # of a recipe: all its parts, but a few steps on small images
    resume: bool = False  # continue a recipe that was stopped
    accumulate: Count = 1  # parts of a recipe's batch that are computed one after the other
    precision: Literal["auto", "fp32", "bf16"] = "auto"  # of a recipe; auto: bf16 on a GPU that has it
    workers: Cores | None = None  # of a recipe, processes that decode; none: one a core on a GPU's machine, at most 8


@dataclass
class Contestant:
    """A row of the table: its networks by seed, and the scores of their detectors."""

    name: str
    role: str  # run, untrained or supervised
    networks: dict[int, Network]  # by seed; the same one for all seeds if there is only one
    outcomes: dict[int, Outcome] = field(default_factory=dict)  # by seed


def detect_command(options: Detect) -> None:
    """Train and score short detectors, or a detector by a recipe of the literature, and print the table."""
    if options.recipe is None:
        detect(options, None, Console())
        return
    current().in_turn(partial(check, options))
    recipe_command.train_recipe(options)


def detect(options: Detect, loaded: Loaded | None, console: Console) -> dict[str, Any]:
    """Train and score short detectors; print the table, write its files, and append scores to evaluations.jsonl.

    Returns:
        The content of the JSON file, and under "files" the paths; {} in all processes but the first.
    """
    current().in_turn(partial(check, options))
    runs = load_runs(options, loaded=loaded, print_line=console.line)
    with console:
        result = evaluate(options, runs, console)
    if current().rank:
        return {}  # the first process writes
    mode = "finetune" if options.finetune else "frozen"
    limit = "" if options.images is None else f"-{options.images}"
    file = evaluation_folder(runs, options.out) / f"detect-{result.test.name}-{options.detector}-{mode}{limit}.json"
    content = detect_page.write(file, runs, result)
    record_results(runs, result)
    files = {kind: str(file.with_suffix(end)) for kind, end in detect_page.FILES.items()}
    console.line(detect_page.text(result))
    console.line("\n".join(f"{kind:<9} {path}" for kind, path in files.items()))
    return {**content, "files": files}


def check(options: Detect) -> None:
    """Raise an error about wrong options before anything is loaded."""
    need_torchvision()
    recipe_command.check_options(options)
    if options.recipe is None:
        settings(options)


def evaluate(options: Detect, runs: Sequence[LoadedRun], console: Console) -> detect_page.Result:
    """Train and score the detectors of the runs and their baselines; writes no file but supervised networks."""
    recipe, images, count = settings(options)
    check_alike(runs)
    data = detect_data.load(options.data, runs[0], images, count, options.size, options.splits)
    seeds = seeds_of(options.seeds, runs)
    rows = contestants(options, runs, seeds, console)
    unknown = fit_detectors(rows, data, recipe, seeds, console)
    facts = {**describe(options, runs[0], data, recipe, seeds), "objects_of_unknown_classes": unknown}
    return detect_page.Result(facts, rows, seeds, data.test)


def record_results(runs: Sequence[LoadedRun], result: detect_page.Result) -> None:
    """Append the scores of each run, and of the baselines, to the evaluations.jsonl in its folder."""
    for row, group in zip(result.rows, grouped(runs).values(), strict=False):  # runs are the first rows
        for run in group:
            own_seeds = [run.setup.config.seed] if len(group) > 1 else list(result.seeds)
            if set(own_seeds) <= set(result.seeds):
                scores = detect_page.recorded(row, own_seeds, result.rows)
                record_scores(run, "detect", {**result.settings, "seeds": own_seeds}, scores)


def settings(options: Detect) -> tuple[Recipe, int, int]:
    """How detectors are trained, the number of training images, and the number of test images.

    Raises:
        ConfigError: options that contradict each other.
    """
    given = (options.images, options.steps, options.count)
    sizes = zip(given, SIZES[options.quick], strict=True)
    images, steps, count = (size if value is None else value for value, size in sizes)
    if len(set(options.seeds)) < len(options.seeds):
        raise ConfigError(f"--seeds must differ; got {' '.join(map(str, options.seeds))}.")
    if options.detector == "c4" and len(options.layers) > 1:
        raise ConfigError("--layers of c4 is one stage, the last but one; omit it.")
    return Recipe(options.detector, options.finetune, options.layers, steps, lr=options.lr or Recipe.lr), images, count


def check_alike(runs: Sequence[LoadedRun]) -> None:
    """Raise a ConfigError that names the first run of another architecture or image size than the first one."""
    for run in runs[1:]:
        for property_name, value_of in (("architecture", lambda run: run.architecture), ("image size", _image_size)):
            value, expected = value_of(run), value_of(runs[0])
            if value != expected:
                raise ConfigError(
                    f"{run.checkpoint} has another {property_name} than {runs[0].checkpoint}: {value}, not {expected}. "
                    "Average precision compares networks of one architecture on one kind of image: "
                    "evaluate them separately."
                )


def _image_size(run: LoadedRun) -> str:
    return f"{run.setup.splits.train.images.shape[-1]} pixels"


def seeds_of(requested: Sequence[int], runs: Sequence[LoadedRun]) -> list[int]:
    """The seeds of the table: `requested`, or else the seeds that all methods with several runs share, or 0, 1, 2.

    Raises:
        ConfigError: a method with several runs lacks a seed, or has one twice.
    """
    seeds_by_method: dict[str, set[int]] = {}
    for name, group in grouped(runs).items():
        seeds = [run.setup.config.seed for run in group]
        if len(set(seeds)) < len(seeds):
            raise ConfigError(f"{name}: two runs have the same seed; got seeds {' '.join(map(str, seeds))}. Omit one.")
        if len(seeds) > 1:
            seeds_by_method[name] = set(seeds)
    common = sorted(set.intersection(*seeds_by_method.values())) if seeds_by_method else list(_SEEDS)
    seeds = list(requested) or common
    for name, available in seeds_by_method.items():
        if not seeds or set(seeds) - available:
            raise ConfigError(
                f"{name} has runs of seeds {' '.join(map(str, sorted(available)))}, and a table pairs methods by their "
                f"seed; asked for {' '.join(map(str, seeds)) or 'those that all methods have, which is none'}. Give "
                "--seeds, or one run of each method."
            )
    return seeds


def contestants(options: Detect, runs: Sequence[LoadedRun], seeds: Sequence[int], console: Console) -> list[Contestant]:
    """The rows of the table: the runs by group, the network before training, and the network trained with labels."""
    groups = [_by_seed(group, seeds) for group in grouped(runs).values()]
    rows = [
        Contestant(name, "run", {seed: run.trained for seed, run in group.items()})
        for name, group in zip(grouped(runs), groups, strict=True)
    ]
    most = max(groups, key=lambda group: len({run.checkpoint for run in group.values()}))
    origins = {run.origin: run for run in most.values()}
    baselines = {"untrained": {origin: run.untrained() for origin, run in origins.items()}}
    if options.supervised:
        need_labels(origins.values(), "the supervised network (--no-supervised leaves it out)")
        fits = {origin: partial(supervised, run, options, console) for origin, run in origins.items()}
        baselines["supervised"] = {origin: current().in_turn(fit) for origin, fit in fits.items()}
    for role, networks in baselines.items():
        rows.append(Contestant(role, role, {seed: networks[run.origin] for seed, run in most.items()}))
    return rows


def _by_seed(group: Sequence[LoadedRun], seeds: Sequence[int]) -> dict[int, LoadedRun]:
    """The run of each seed; the same one for all seeds if there is only one."""
    if len(group) == 1:
        return dict.fromkeys(seeds, group[0])
    return {run.setup.config.seed: run for run in group if run.setup.config.seed in seeds}


@alone()
def supervised(run: LoadedRun, options: Detect, console: Console) -> Network:
    """The run's network before training, then trained with the labels of its images; read from the run's folder if an
    earlier evaluation has trained it, else written there."""
    setup = run.setup
    encoder = copy.deepcopy(run.fresh)
    batch = min(setup.config.train.batch_size, _SUPERVISED_BATCH)
    recipe = SupervisedRecipe(options.supervised_epochs or setup.config.train.epochs, batch)
    key = json.dumps({"origin": run.origin, "augment": str(setup.config.augment), **asdict(recipe)}, sort_keys=True)
    path = evaluation_folder([run], None) / SUPERVISED
    backbone = named_weights(encoder.backbone)
    if weights := _read_weights(path, key, console):
        backbone.load_state_dict(weights)
        return Network(encoder.eval(), setup.normalise)
    started, task = time.monotonic(), console.task("supervised", 1000)
    console.line(f"training with labels: {recipe.epochs} epochs of {len(setup.train_images)} images, kept for later")
    augment = setup.augmenter(Generators(setup.config.seed, setup.device))

    def progress(step: int, steps: int) -> None:
        remaining = (time.monotonic() - started) / step * (steps - step)
        task.update(1000 * step // steps, f"about {duration(remaining)} left")
        if console.silent_for_long():
            console.line(f"  supervised: step {step} of {steps}; about {duration(remaining)} left")

    labels = setup.splits.train.labels.to(setup.device)
    view = lambda images: augment(images.to(setup.device), 1)[0]  # noqa: E731
    fit_supervised(encoder.backbone, view, setup.train_images, labels, recipe, setup.config.seed, progress)
    task.close()
    weights = {name: value.detach().cpu().contiguous() for name, value in backbone.state_dict().items()}
    _write_weights(path, key, weights)
    return Network(encoder.eval(), setup.normalise)


def _write_weights(path: Path, key: str, weights: dict[str, Tensor]) -> None:
    from safetensors.torch import save

    metadata = {"format": "pt", "key": key, "sha256": hashlib.sha256(save(weights)).hexdigest()}
    write_whole(path, save(weights, metadata=metadata))


def _read_weights(path: Path, key: str, console: Console) -> dict[str, Tensor] | None:
    """The weights that `_write_weights` wrote with this key; None if there are none, or, with a warning, if damaged."""
    from safetensors import safe_open
    from safetensors.torch import save

    if not path.is_file():
        return None
    try:
        with safe_open(path, "pt") as file:
            metadata = file.metadata() or {}
            weights = {name: file.get_tensor(name) for name in file.keys()} if metadata.get("key") == key else {}  # noqa: SIM118
        if weights and hashlib.sha256(save(weights)).hexdigest() != metadata.get("sha256"):
            raise ValueError("bits of it have changed since it was written")
    except Exception as error:  # safetensors raises its own type, and others
        console.line(f"warning: {path} cannot be read ({error}) and is made again")
        return None
    return weights or None


def fit_detectors(
    rows: Sequence[Contestant], data: DetectionData, recipe: Recipe, seeds: Sequence[int], console: Console
) -> dict[int, int]:
    """Train and score a detector for every row and seed; returns the number of ignored test objects by seed.

    Several processes divide the detectors among them, and each trains a detector as a single process would.
    """
    world, pairs = current(), [(seed, row) for seed in seeds for row in rows]
    total, done, started = len(range(world.rank, len(pairs), world.size)), 0, time.monotonic()
    task = console.task("detectors", total * recipe.steps)
    images = {seed: data.of_seed(seed) for seed in seeds}

    def fit(number: int) -> Outcome:
        nonlocal done
        seed, row = pairs[number]
        title, (train, test, _) = f"{row.name}, seed {seed}", images[seed]

        def time_left(steps: int) -> str:
            steps_done = done * recipe.steps + steps
            seconds = (time.monotonic() - started) / steps_done * (total * recipe.steps - steps_done)
            return f"about {duration(seconds)} left"

        def progress(step: int, _: int) -> None:
            task.update(done * recipe.steps + step, f"{title}; {time_left(step)}")
            if console.silent_for_long():
                console.line(f"  {title}: step {step} of {recipe.steps}; {time_left(step)}")

        try:
            outcome = transfer(row.networks[seed], train, test, recipe, seed, progress)
        except NonFiniteError as error:
            raise NonFiniteError(f"{title}: {error}") from error
        done += 1
        share = f"[{done}/{total}]{f' of process 0 of {world.size}' if world.size > 1 else ''}"
        scored = f"AP {outcome.scores['ap']:.1f}, {outcome.seconds:.0f} s"
        console.line(f"{share} {title}: {scored}; {time_left(0)}")
        return outcome

    for (seed, row), outcome in zip(pairs, world.jobs(len(pairs), fit), strict=True):
        row.outcomes[seed] = outcome
    task.close()
    return {seed: unknown for seed, (_, _, unknown) in images.items()}


def describe(
    options: Detect, first: LoadedRun, data: DetectionData, recipe: Recipe, seeds: Sequence[int]
) -> dict[str, Any]:
    """The settings of the table."""
    import torchvision

    backbone, train = first.setup.method.encoder.backbone, data.draw(seeds[0])
    layers = shape_of(backbone, train, recipe).layers
    return {
        "data": " ".join(options.data),
        "test_images": len(data.test),
        "test_objects": data.test.objects,
        "side": data.test.side,
        "classes": len(data.test.class_names),
        "training_images": len(train),
        "split": data.split,
        "left_out": data.left_out(),
        **asdict(recipe),
        "layers": layers,
        "strides": [backbone.strides[layer - 1] for layer in layers],
        "torch": torch.__version__,
        "torchvision": torchvision.__version__,
    }
