"""evaluate detect --recipe: a detector trained on a run's network by a recipe of the literature."""

import dataclasses
import hashlib
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from mixfast.detection import average_precision
from mixfast.detection.average_precision import Detections, Truth
from mixfast.detection.body import whole_batches
from mixfast.detection.masks import Masked, mask_scores, need_pycocotools
from mixfast.detection.originals import Original, OriginalFiles, fingerprint, originals
from mixfast.detection.photographs import truth_of
from mixfast.detection.recipes import DATA_FORMS, RECIPES, PublishedRecipe, dry
from mixfast.errors import ConfigError, DataError
from mixfast.evaluate import recipe_page
from mixfast.evaluate.detect_data import check_form, read_photographs
from mixfast.evaluate.recipe_training import CHECKPOINTS, Training, precise_statistics, predict, train
from mixfast.evaluate.runs import LoadedRun, evaluation_folder, load_runs, record_scores
from mixfast.models.split_bn import convert_split_bn
from mixfast.rng import Generators
from mixfast.run import checkpoint, machine
from mixfast.run.claim import Lock
from mixfast.run.console import Console, duration
from mixfast.run.precision import pick_precision
from mixfast.run.reopen import MachineOptions
from mixfast.run.signals import Stopped, StopRequest
from mixfast.world import current

if TYPE_CHECKING:
    from mixfast.evaluate.detect import Detect

_OF_RECIPES = {"dry_run", "resume", "accumulate", "precision", "workers"}
_OF_BOTH = {"runs", "recipe", "data", "seeds", "splits", "lr", "out"}
_MOST_WORKERS = 8


@dataclass(frozen=True)
class RecipeData:
    """Photographs to train on and to score."""

    train: list[Original]
    test: list[Original]
    class_names: list[str]
    counted: list[int]  # numbers of the classes that training images show
    truth: Truth  # of `test`
    split: str
    left_out: dict[str, int]  # images, boxes and objects, by reason


def check_options(options: "Detect") -> None:
    """Raise a ConfigError for an option of recipes without --recipe, or an option of short detectors with --recipe."""
    shared = _OF_BOTH | {item.name for item in dataclasses.fields(MachineOptions)}
    changed = [item.name for item in dataclasses.fields(options) if getattr(options, item.name) != item.default]
    if options.recipe is None:
        misplaced = [name for name in changed if name in _OF_RECIPES]
        reason = "belongs to --recipe, which is not given"
    else:
        misplaced = [name for name in changed if name not in _OF_RECIPES | shared]
        reason = f"does not go with --recipe {options.recipe}, which says how to train and what to score"
    if misplaced:
        raise ConfigError(f"--{misplaced[0]} {reason}. Omit it.")


def train_recipe(options: "Detect") -> None:
    """Train, score, print the report, and write it as JSON and Markdown beside the checkpoints.

    Raises:
        Stopped: a signal came; the training is saved.
    """
    world = current()
    published, recipe = world.in_turn(partial(chosen, options))
    (run,) = load_runs(options)
    data = world.in_turn(partial(load, options, recipe))
    seed = options.seeds[0] if options.seeds else 0
    name = f"recipe-{recipe.name}-seed{seed}{'-dry' * options.dry_run}"
    folder = world.first(partial(evaluation_folder, [run], options.out)) / name
    with Console() as console, locked(folder, console):
        training = world.in_turn(partial(prepare, options, run, recipe, data, seed, folder))
        start_training(training, options.resume, console)
        fit(training, console)
        precise_statistics(training)
        detections, runs = predict(training, OriginalFiles(data.test, data.class_names), console)
    if world.rank:
        return  # the first process scores and writes
    facts = recipe_page.facts(run, published, training, data, scores(recipe, data, detections, runs))
    recipe_page.write(folder, facts)
    if not options.dry_run:
        record_scores(run, "detect-recipe", facts["settings"], {run.name: facts["scores"]})
    print(recipe_page.markdown(facts))
    print("\n".join(f"{kind:<9} {folder / file}" for kind, file in recipe_page.FILES.items()))


@contextmanager
def locked(folder: Path, console: Console) -> Iterator[None]:
    """Create the folder and lock it for this training within the block."""
    locks: list[Lock] = []

    def take() -> None:
        folder.mkdir(exist_ok=True)
        locks.append(Lock(folder, console.line))

    current().first(take)
    try:
        yield
    finally:
        for lock in locks:
            lock.release()


def chosen(options: "Detect") -> tuple[PublishedRecipe, PublishedRecipe]:
    """The recipe of the options: as it was published, and with the changes of the command line.

    Raises:
        ConfigError: options that do not suit the recipe. PlatformError: pycocotools is needed and missing.
    """
    published = RECIPES[str(options.recipe)]
    if len(options.runs) > 1 or len(options.seeds) > 1:
        raise ConfigError("--recipe trains one detector: give one RUN, and one of --seeds at most.")
    check_form(options.data)
    if options.data[0] != published.data:
        form = DATA_FORMS[published.data]
        raise ConfigError(f"--recipe {published.name} is for {form}; got --data {options.data[0]}.")
    if options.splits is not None and published.data != "voc":
        raise ConfigError("--splits belongs to --data voc. Omit it.")
    if published.masks:
        need_pycocotools(f"--recipe {published.name}")
    recipe = dry(published) if options.dry_run else published
    if recipe.batch_size % (options.accumulate * (size := current().size)):
        shared = f" among {size} processes" if size > 1 else ""
        raise ConfigError(
            f"--accumulate must divide the batch of {recipe.batch_size}{shared}; got {options.accumulate}."
        )
    return published, replace(recipe, lr=options.lr or recipe.lr)


def load(options: "Detect", recipe: PublishedRecipe) -> RecipeData:
    """The photographs that `--data` names.

    Raises:
        DataError: files are missing or unreadable, or no image has a usable box.
    """
    train, test, split = read_photographs(options.data, options.splits, recipe.images[1], recipe.masks)
    left_out: Counter[str] = Counter()
    train_originals, test_originals = originals(train, left_out), originals(test, left_out)
    usable = [photograph for photograph in train_originals if any(not marked.crowd for marked in photograph.objects)]
    left_out["training images left out, without objects"] = len(train_originals) - len(usable)
    trained_classes = {marked.name for photograph in usable for marked in photograph.objects if not marked.crowd}
    for part, part_name in ((usable, "training"), (test_originals, "test")):
        if not any(photograph.objects for photograph in part):
            raise DataError(f"{options.data[-1]}: no {part_name} image has a box that can be used; {dict(+left_out)}.")
    names = sorted(trained_classes | {marked.name for photograph in test_originals for marked in photograph.objects})
    truth = truth_of([photograph.objects for photograph in test_originals], names)
    unknown = (truth.labels >= 0) & ~torch.tensor([*(name in trained_classes for name in names), True])[truth.labels]
    left_out["test objects that do not count, as no training image shows their class"] = int(unknown.sum())
    truth = truth._replace(ignored=truth.ignored | unknown)
    counted = [number for number, name in enumerate(names) if name in trained_classes]
    return RecipeData(usable, test_originals, names, counted, truth, split, dict(+left_out))


def prepare(
    options: "Detect", run: LoadedRun, recipe: PublishedRecipe, data: RecipeData, seed: int, folder: Path
) -> Training:
    """The training at step 0."""
    from mixfast.detection.rcnn import build_rcnn

    setup, device = run.setup, run.setup.device
    backbone = whole_batches(run.trained.encoder.backbone)
    settings = {
        **{"recipe": recipe.name, "dry_run": options.dry_run, "seed": seed, "lr": recipe.lr},
        **{"accumulate": options.accumulate, "precision": pick_precision(options.precision, device)},
        **{"network": _digest(backbone.state_dict()), "photographs": fingerprint(data.train)},
    }
    torch.manual_seed(int(torch.randint(2**62, (), generator=Generators(seed)["recipe/weights"])))
    model = build_rcnn(recipe, backbone, len(data.class_names), setup.splits.mean, setup.splits.std).to(device)
    if current().size > 1:
        convert_split_bn(model, 1, name="the detector")  # statistics of all processes
    workers = options.workers
    if workers is None:
        cores = max(1, machine.cpu_quota() // current().local_size)
        workers = min(_MOST_WORKERS, cores) if device.type == "cuda" else 0
    files = OriginalFiles(data.train, data.class_names)
    return Training(recipe, model, data.train, files, folder, settings, device, workers)


def _digest(weights: dict[str, Tensor]) -> str:
    from safetensors.torch import save

    whole = {name: value.detach().cpu().contiguous() for name, value in weights.items()}
    return hashlib.sha256(save(whole)).hexdigest()


def start_training(training: Training, resume: bool, console: Console) -> None:
    """Continue from a checkpoint, or check that the folder has none."""
    folder, recipe, world = training.folder, training.recipe, current()
    world.compare(training.settings, advice="All processes must see the same run and the same photographs.")
    if resume:
        world.in_turn(partial(training.load, console))
        console.line(f"continuing {recipe.name} after step {training.step} of {recipe.steps}")
        return

    def check_empty() -> None:
        if any((folder / CHECKPOINTS / name).exists() for name in (checkpoint.LAST, checkpoint.PREVIOUS)):
            raise ConfigError(
                f"{folder} holds a training by this recipe: continue it with --resume; or, for a new one, delete the "
                "folder or choose another --out."
            )
        training.metrics.truncate(0)

    world.first(check_empty)
    count, size = len(training.photographs), recipe.batch_size
    console.line(f"training {recipe.name}: {recipe.steps} steps of {size} of {count} photographs on {training.device}")


def fit(training: Training, console: Console) -> None:
    """Train to the last step; on a stop signal, save and say how to continue."""
    try:
        with StopRequest() as stop, stop.between_steps():
            train(training, stop, console)
    except Stopped:
        if current().rank:
            raise
        file = checkpoint.find(training.folder / CHECKPOINTS)
        print(f"checkpoint: {file}\ncontinue with the same command and --resume", file=sys.stderr)
        raise
    console.line(f"trained in {duration(training.seconds)}; statistics of batch norm, and the test")


def scores(recipe: PublishedRecipe, data: RecipeData, detections: Detections, runs: list[list[str]]) -> dict[str, Any]:
    """Scores in percent: for VOC the 11-point AP of VOC 2007, for COCO its AP of boxes and, if there are any, masks."""
    classes = len(data.class_names)
    if recipe.data == "voc":
        return average_precision.voc07_summary(average_precision.voc07(data.truth, detections, classes))
    boxes = average_precision.summary(average_precision.coco(data.truth, detections, classes))
    return boxes | (score_masks(data, detections, runs) if recipe.masks else {})


def score_masks(data: RecipeData, detections: Detections, runs: list[list[str]]) -> dict[str, float]:
    """COCO's AP of the masks in the test photographs."""
    number_of = {name: number for number, name in enumerate(data.class_names)}
    truth, predicted = [], []
    for image, photograph in enumerate(data.test):
        objects, size = photograph.objects, (photograph.height, photograph.width)
        areas = [marked.area or 0.0 for marked in objects]
        labels, crowd = [number_of[marked.name] for marked in objects], [marked.crowd for marked in objects]
        truth.append(Masked(*size, [marked.mask for marked in objects], labels, crowd, areas))
        count = len(runs[image])
        scores, classes = detections.scores[image, :count].tolist(), detections.labels[image, :count].tolist()
        predicted.append(Masked(*size, runs[image], classes, scores=scores))
    return mask_scores(truth, predicted, data.counted)
