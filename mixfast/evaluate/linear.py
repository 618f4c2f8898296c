"""evaluate linear: a linear classifier on the frozen encoder."""

import dataclasses
from dataclasses import dataclass
from functools import partial
from typing import Literal

from torch import Tensor

from mixfast.evaluate.runs import (
    Loaded,
    LoadedRun,
    PrintLine,
    ScoreTable,
    ScoringOptions,
    load_runs,
    need_labels,
    record_scores,
)
from mixfast.ranges import Count, Positive
from mixfast.rng import Generators
from mixfast.scoring.baselines import pixels
from mixfast.scoring.features import extract
from mixfast.scoring.linear import CACHED, SGD, LinearRecipe, linear_score, linear_scores, sgd_score
from mixfast.scoring.maps import Network


@dataclass(frozen=True)
class Linear(ScoringOptions):
    """Accuracy of a linear classifier on the encoder, the untrained network and, if asked, raw pixels."""

    protocol: Literal["cached", "sgd"] = "cached"  # features once, without augmentation; or the full SGD protocol
    epochs: Count | None = None  # none: 500 (cached), 100 (sgd)
    lr: tuple[Positive, ...] = ()  # none: 0.01 (cached), 30 (sgd); several: the best on held-out training images
    batch_size: Count | None = None  # none: 1000 (cached), 256 (sgd)
    baselines: bool = True  # also score the untrained network
    pixels: bool = False  # also score raw pixels, by the cached protocol; slow, as they are many


def linear(options: Linear, loaded: Loaded | None = None, print_line: PrintLine = print) -> dict[str, dict[str, float]]:
    """Print the accuracies, append them to evaluations.jsonl in the run folders, and return them by row and metric."""
    recipe = _recipe(options)
    runs = load_runs(options, loaded=loaded, print_line=print_line)
    need_labels(runs, "a linear classifier")
    board = ScoreTable()
    for run in runs:
        rows: dict[str, dict[str, float]] = {}
        if options.pixels:
            rows["raw pixels"] = board.score("raw pixels", run.origin, partial(_pixels, run, recipe))
        if options.baselines:
            scorer = partial(_score, run, run.untrained(), options, recipe, print_line)
            rows["untrained"] = board.score("untrained", run.origin, scorer)
        scorer = partial(_score, run, run.trained, options, recipe, print_line)
        rows[run.name] = board.score(run.name, str(run.checkpoint), scorer)
        record_scores(run, "linear", {"protocol": options.protocol, **dataclasses.asdict(recipe)}, rows)
    print_line(f"linear classifier, {options.protocol} protocol, {recipe.epochs} epochs; top-1 accuracy in percent")
    print_line(board.table())
    if len(recipe.lrs) > 1:
        print_line(f"lr: chosen among {', '.join(f'{lr:g}' for lr in recipe.lrs)} on a tenth of the training images")
    return board.rows


def _recipe(options: Linear) -> LinearRecipe:
    base = SGD if options.protocol == "sgd" else CACHED
    changes = {"epochs": options.epochs, "lrs": options.lr or None, "batch_size": options.batch_size}
    return dataclasses.replace(base, **{key: value for key, value in changes.items() if value is not None})  # type: ignore[arg-type]


def _score(
    run: LoadedRun, network: Network, options: Linear, recipe: LinearRecipe, print_line: PrintLine
) -> dict[str, float]:
    setup = run.setup
    train, test = setup.splits.train, setup.splits.test
    generators = Generators(setup.config.seed, setup.device)
    labels, answers = train.labels.to(setup.device), test.labels.to(setup.device)
    size = setup.config.eval.batch_size
    if options.protocol == "cached":
        bank, queries = (extract(network.encoder, i, setup.normalise, size) for i in (setup.train_images, test.images))
        return linear_scores(bank, labels, queries, answers, generators["linear"], recipe)
    # The run's own crop and flip, without changes of colour.
    recipe_of_views = dataclasses.replace(setup.config.augment, jitter=0.0, grey=0.0, blur=0.0, solarise=0.0)
    augment = setup.augmenter(generators, recipe_of_views)

    def view(images: Tensor) -> Tensor:
        return augment(images, 1)[0]

    def progress(epoch: int, epochs: int) -> None:
        if epoch % max(1, epochs // 10) == 0:
            print_line(f"  {run.name}: epoch {epoch} of {epochs}")

    images = (setup.train_images, labels, test.images.to(setup.device), answers)
    return sgd_score(network, view, *images, generators["linear"], recipe, progress)


def _pixels(run: LoadedRun, recipe: LinearRecipe) -> dict[str, float]:
    setup = run.setup
    train, test = setup.splits.train, setup.splits.test
    bank, queries = (pixels(images, setup.normalise) for images in (setup.train_images, test.images))
    labels, answers = train.labels.to(setup.device), test.labels.to(setup.device)
    generator = Generators(setup.config.seed, setup.device)["linear"]
    accuracy, rate = linear_score(bank, labels, queries, answers, generator, recipe)
    return {"linear_h": accuracy, "lr_h": rate}
