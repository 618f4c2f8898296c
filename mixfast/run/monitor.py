"""Reports of a run while it trains: records of the loss, evaluations, and a table row per epoch."""

import math
import time
from collections.abc import Callable
from functools import partial
from typing import Any

from torch import Tensor, nn

from mixfast.config.options import RunConfig
from mixfast.data import Images, Streamed, take
from mixfast.data.loader import Library
from mixfast.data.sets import first_balanced
from mixfast.run.console import duration
from mixfast.run.diagnosis import diagnose, warning
from mixfast.run.optim import epoch_rate
from mixfast.run.sanity import candidates, queue_size, queue_steps, warnings
from mixfast.run.setup import Setup
from mixfast.run.state import Run
from mixfast.scoring.baselines import calibrated, pixels
from mixfast.scoring.features import extract
from mixfast.scoring.knn import knn_score, knn_scores
from mixfast.spans import span
from mixfast.world import current

HEADER = f"{'':<16} epoch       lr     loss   knn_z   knn_h    img/s  data wait     left"


def chance_loss(config: RunConfig[Any]) -> float | None:
    """Chance level of a loss term: ln of its number of candidates; None for a method without candidates."""
    count = candidates(config)
    return None if count is None else math.log(count)


def mean_term(means: dict[str, float]) -> float:
    """The loss divided by the sum of its terms' weights: their weighted mean, to compare with the chance level."""
    return means["loss"] / (means["total_weight"] or 1.0)


def introduce(run: Run) -> None:
    """Print the chance level of the loss, how the queues fill, whether there will be scores, and warnings."""
    config, console = run.config, run.console
    if (chance := chance_loss(config)) is not None:
        console.line(
            f"loss: weighted mean of its terms, averaged over the epoch; chance level ln({candidates(config)}) = "
            f"{chance:.2f}"
        )
    if run.step < (steps := queue_steps(config)):
        console.line(
            f"queue: its {queue_size(config)} keys are random vectors at first, easy negatives: the loss may rise "
            f"until step {steps} (epoch {steps / len(run.batches):.1f}), when the last is replaced"
        )
    if not scorable(run):
        console.line("kNN is off: not every image has a class.")
    for text in warnings(config, run.splits):
        console.line(f"warning: {text}")


def scorable(setup: Setup) -> bool:
    """Whether all images have labels to score against."""
    return setup.splits.train.labelled and setup.splits.test.labelled


def bank_size(setup: Setup) -> int:
    """Number of training images among which kNN looks for neighbours."""
    return min(setup.config.eval.bank or len(setup.splits.train), len(setup.splits.train))


def bank(setup: Setup) -> tuple[Images, Tensor]:
    """The training images among which kNN looks for neighbours, and their classes on the device."""
    images, labels = setup.train_images, setup.splits.train.labels
    if bank_size(setup) < len(labels):
        chosen = first_balanced(labels, bank_size(setup))
        images, labels = take(images, chosen.to(images.device)), labels[chosen]
    return images, labels.to(setup.device)


def scored_images(setup: Setup) -> Images:
    """The test images; if they are in files, bound to the device, so that the training's worker processes read them."""
    images = setup.splits.test.images
    return images.to(setup.device) if isinstance(images, Streamed) else images


@span("record")
def record(run: Run) -> None:
    """Write a record with the means since the last one and the seconds by part, and show it."""
    means, parts = run.meter.means(), run.clock.seconds()
    elapsed = sum(parts.values())
    if not run.last and isinstance(run.batches.images, Streamed):
        run.console.line(loader_and_step(run.batches.images.library, run.images / (elapsed - parts["data"])))
    run.seconds += elapsed
    run.last = {
        "kind": "train",
        "step": run.step,
        "epoch": (run.step - 1) // len(run.batches) + 1,
        "lr": run.rate,
        **means,
        "images_per_s": run.images / elapsed,
        "time": run.seconds,
        **{f"time_{name}": seconds for name, seconds in parts.items()},
    }
    run.images = 0
    if current().rank == 0:
        run.folder.metrics.write(run.last)
    rate, wait, remaining = _speed(run)
    note = f"loss {mean_term(means):.3f}   {rate} img/s   data wait {wait}"
    run.task.update(run.step, note)
    if run.console.silent_for_long():
        run.console.line(f"  step {run.step} of {run.steps}   {note}   left {remaining}")


def loader_and_step(library: Library, step: float) -> str:
    """A sentence on whether training waits for decoding.

    Args:
        library: which has measured decoding alone.
        step: images/s of the training steps without waiting for images.
    """
    alone = library.images_per_s or 0.0
    rates = f"decoding alone {alone:,.0f} images/s, a step without waiting for images {step:,.0f}"
    if alone >= step:
        return f"{rates}: training does not wait for its images"
    return f"{rates}: decoding is the limit; more cores, a smaller --data.size or a faster disk would help"


def _speed(run: Run) -> tuple[str, str, str]:
    """(images/s, share of the time spent waiting for data, time left) of the last record, formatted."""
    if not run.last:
        return "-", "-", "-"
    rate, parts = run.last["images_per_s"], [run.last[name] for name in run.last if name.startswith("time_")]
    remaining = (run.steps - run.step) * run.config.train.batch_size / rate
    wait = 100 * run.last.get("time_data", 0.0) / sum(parts)
    return f"{rate:.0f}", f"{wait:.1f} %", duration(remaining)


def end_epoch(run: Run) -> None:
    """Evaluate if that is due, write the means of the epoch, and print its row of the table; all processes together.

    The records of an evaluation are written together at its end: a run that is stopped in the middle repeats it.
    """
    if run.evaluated == run.epoch:  # a resumed run calls this again
        return
    config, stop = run.config, run.obey_signal
    records: list[dict[str, Any]] = []
    last = run.epoch == config.train.epochs
    due = last or bool(config.eval.every and run.epoch % config.eval.every == 0)
    if scorable(run):
        if run.epoch == 0 and config.eval.baselines:
            records.append(_evaluated(run, "baseline", "raw pixels", lambda: score_pixels(run)))
            row(run, "raw pixels", records[-1])
            records.append(_evaluated(run, "baseline", "untrained", lambda: score_untrained(run, stop)))
            row(run, "untrained", records[-1])
        elif run.epoch > 0 and due:
            records.append(_evaluated(run, "eval", config.method_name, lambda: score(run, run.method.encoder, stop)))
    if config.eval.diagnostics and run.epoch > 0 and due:
        scorer = partial(current().first, partial(diagnose, run))
        records.append(_evaluated(run, "diagnostics", config.method_name, scorer))
        if note := warning(records[-1]):
            run.console.line(f"warning: {note}")
    for entry in records:
        run.write(entry)
    run.evaluated = run.epoch
    if run.epoch:
        scores = next((entry for entry in records if entry["kind"] == "eval"), {})
        row(run, config.method_name, scores, *record_epoch(run), _speed(run))


def record_epoch(run: Run) -> tuple[str, str]:
    """Write the means over the steps of the epoch that has ended; returns its learning rate and mean term, formatted.

    Called after the evaluation of the epoch: until then the means of a stopped run are in its checkpoint.
    """
    means, options = run.meter.epoch_means(), run.config
    if not means:
        return "-", "-"
    rate = epoch_rate(options.optim, run.epoch - 1, options.train.epochs, len(run.batches))
    facts = {"kind": "epoch", "step": run.step, "epoch": run.epoch, "lr": rate}
    run.write({**facts, **means, "mean_term": mean_term(means), "time": run.seconds})
    return f"{rate:.3g}", f"{mean_term(means):.3f}"


def row(
    run: Run,
    name: str,
    scores: dict[str, Any],
    rate: str = "-",
    loss: str = "-",
    speed: tuple[str, str, str] = ("-", "-", "-"),
) -> None:
    """Print one row below HEADER."""
    z, h = (f"{scores[key]:.1f}" if key in scores else "-" for key in ("knn_z", "knn_h"))
    images, wait, remaining = speed
    run.console.line(
        f"{name:<16} {run.epoch:>5} {rate:>8} {loss:>8} {z:>7} {h:>7} {images:>8} {wait:>10} {remaining:>8}"
    )


def score(setup: Setup, encoder: nn.Module, before_batch: Callable[[], object] = lambda: None) -> dict[str, float]:
    """Weighted kNN of an encoder on a run's data: {"knn_z": percent, "knn_h": percent}.

    `before_batch` is called before every batch of images; an exception in it ends the scoring.
    """
    test, options = setup.splits.test, setup.config.eval
    images, labels = bank(setup)
    rows, queries = (
        extract(encoder, subset, setup.normalise, options.batch_size, before_batch)
        for subset in (images, scored_images(setup))
    )
    return knn_scores(rows, labels, queries, test.labels.to(setup.device), options.k, options.temperature)


def score_pixels(setup: Setup) -> dict[str, float]:
    """Weighted kNN of raw, normalised pixels on a run's data: {"knn_h": percent}."""
    test, options = setup.splits.test, setup.config.eval
    images, labels = bank(setup)
    rows, queries = (pixels(subset, setup.normalise) for subset in (images, scored_images(setup)))
    return {"knn_h": knn_score(rows, labels, queries, test.labels.to(setup.device), options.k, options.temperature)}


def score_untrained(setup: Setup, before_batch: Callable[[], object] = lambda: None) -> dict[str, float]:
    """Weighted kNN of the encoder before training, with BatchNorm statistics of the data; arguments as in `score`."""
    encoder = calibrated(setup.method.encoder, setup.train_images, setup.normalise, setup.config.eval.batch_size)
    return score(setup, encoder, before_batch)


def _evaluated(run: Run, kind: str, name: str, scorer: Callable[[], dict[str, float]]) -> dict[str, Any]:
    """Call `scorer`, and return its scores as a record of `kind`."""
    started = time.monotonic()
    scores = scorer()
    facts = {"kind": kind, "name": name, "step": run.step, "epoch": run.epoch, **scores}
    return {**facts, "time_evaluation": time.monotonic() - started}
