"""evaluate linear: a linear classifier on the frozen encoder."""

import dataclasses
from dataclasses import dataclass
from functools import partial
from typing import Literal

from torch import Tensor

from mixfast.errors import ConfigError
from mixfast.evaluate.runs import Board, Common, Opened, keep, need_labels, open_runs
from mixfast.rng import Generators
from mixfast.scoring.baselines import pixels
from mixfast.scoring.features import extract
from mixfast.scoring.linear import CACHED, SGD, LinearRecipe, linear_score, linear_scores, sgd_score
from mixfast.scoring.maps import Network


@dataclass(frozen=True)
class Linear(Common):
    """Accuracy of a linear classifier on the frozen encoder, beside the untrained network and, if asked, raw pixels."""

    protocol: Literal["cached", "sgd"] = "cached"  # features once, without augmentation; or the full SGD protocol
    epochs: int | None = None  # none: 500 (cached), 100 (sgd)
    lr: tuple[float, ...] = ()  # none: 0.01 (cached), 30 (sgd); several: the best on held-out training images
    batch_size: int | None = None  # none: 1000 (cached), 256 (sgd)
    baselines: bool = True  # also score the untrained network
    pixels: bool = False  # also score raw pixels, by the cached protocol; slow, as they are many


def linear(options: Linear) -> None:
    """Print the accuracies, and append them to evaluations.jsonl in the run folders."""
    recipe = _recipe(options)
    opened = open_runs(options)
    need_labels(opened, "a linear classifier")
    board = Board()
    for one in opened:
        rows: dict[str, dict[str, float]] = {}
        if options.pixels:
            rows["raw pixels"] = board.score("raw pixels", one.origin, partial(_pixels, one, recipe))
        if options.baselines:
            scorer = partial(_score, one, one.untrained(), options, recipe)
            rows["untrained"] = board.score("untrained", one.origin, scorer)
        scorer = partial(_score, one, one.trained, options, recipe)
        rows[one.name] = board.score(one.name, str(one.checkpoint), scorer)
        keep(one, "linear", {"protocol": options.protocol, **dataclasses.asdict(recipe)}, rows)
    print(f"linear classifier, {options.protocol} protocol, {recipe.epochs} epochs; top-1 accuracy in percent")
    print(board.table())
    if len(recipe.lrs) > 1:
        print(f"lr: chosen among {', '.join(f'{lr:g}' for lr in recipe.lrs)} on a tenth of the training images")


def _recipe(options: Linear) -> LinearRecipe:
    base = SGD if options.protocol == "sgd" else CACHED
    given = {"epochs": options.epochs, "lrs": options.lr or None, "batch_size": options.batch_size}
    recipe = dataclasses.replace(base, **{key: value for key, value in given.items() if value is not None})  # type: ignore[arg-type]
    if recipe.epochs < 1 or recipe.batch_size < 1 or not all(lr > 0 for lr in recipe.lrs):
        raise ConfigError(
            "--epochs and --batch-size must be at least 1 and every --lr above 0; "
            f"got {recipe.epochs}, {recipe.batch_size} and {', '.join(map(str, recipe.lrs))}."
        )
    return recipe


def _score(one: Opened, network: Network, options: Linear, recipe: LinearRecipe) -> dict[str, float]:
    run = one.run
    train, test = run.splits.train, run.splits.test
    generators = Generators(run.config.seed, run.device)
    labels, answers = train.labels.to(run.device), test.labels.to(run.device)
    size = run.config.eval.batch_size
    if options.protocol == "cached":
        bank, queries = (extract(network.encoder, i, run.normalise, size) for i in (run.batches.images, test.images))
        return linear_scores(bank, labels, queries, answers, generators["linear"], recipe)
    # The run's own crop and flip; colours stay.
    recipe_of_views = dataclasses.replace(run.config.augment, jitter=0.0, grey=0.0, blur=0.0, solarise=0.0)
    augment = run.augmenter(generators, recipe_of_views)

    def view(images: Tensor) -> Tensor:
        return augment(images, 1)[0]

    def progress(done: int, of: int) -> None:
        if done % max(1, of // 10) == 0:
            print(f"  {one.name}: epoch {done} of {of}", flush=True)

    images = (run.batches.images, labels, test.images.to(run.device), answers)
    return sgd_score(network, view, *images, generators["linear"], recipe, progress)


def _pixels(one: Opened, recipe: LinearRecipe) -> dict[str, float]:
    run = one.run
    train, test = run.splits.train, run.splits.test
    bank, queries = (pixels(images, run.normalise) for images in (run.batches.images, test.images))
    labels, answers = train.labels.to(run.device), test.labels.to(run.device)
    generator = Generators(run.config.seed, run.device)["linear"]
    accuracy, rate = linear_score(bank, labels, queries, answers, generator, recipe)
    return {"linear_h": accuracy, "lr_h": rate}
