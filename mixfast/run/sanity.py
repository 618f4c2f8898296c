"""Warnings, before training, about settings that do not suit the data but raise no error."""

from typing import Any

from mixfast import methods
from mixfast.config.options import RunConfig
from mixfast.data import Splits
from mixfast.methods.bases import keys_per_step
from mixfast.run.optim import mean_rate

LOW_RATE = 0.1  # share of optim.lr below which the mean rate of a run is worth a warning
FEW_ROWS = 2  # images per batch-norm group up to which there is a warning


def queue_steps(config: RunConfig[Any]) -> int:
    """Steps after which the random vectors with which a queue begins are all replaced; 0 without a queue."""
    size = queue_size(config)
    return -(-size // keys_per_step(config.method, config.train.batch_size))


def queue_size(config: RunConfig[Any]) -> int:
    """Keys in each queue of the run's method; 0 if it has none."""
    return getattr(config.method, "queue_size", 0) if candidates(config) is not None else 0


def candidates(config: RunConfig[Any]) -> int | None:
    """Number of rows among which a loss term must find its positive; None for a method without negatives."""
    batch = config.train.batch_size // config.train.accumulate
    return methods.load(config.method_name).candidates(config.method, batch)


def warnings(config: RunConfig[Any], splits: Splits) -> list[str]:
    """A sentence for each setting with which a run would train, but not as its options suggest."""
    images = len(splits.train)
    steps = images // config.train.batch_size  # of an epoch
    labelled = splits.train.labelled and splits.test.labelled
    texts = [*_rate(config, steps), *_batch(config), *_queue(config, images, steps), *_average(config, steps)]
    bank = min(config.eval.bank or images, images)
    if labelled and config.eval.k > bank:
        texts.append(
            f"kNN looks for the {config.eval.k} nearest of {bank} training images: k is cut to {bank}, so that all of "
            "them vote. Lower --eval.k."
        )
    return texts


def _rate(config: RunConfig[Any], steps: int) -> list[str]:
    optim, epochs = config.optim, config.train.epochs
    mean, total = mean_rate(optim, epochs, steps), epochs * steps
    reasons = []
    if optim.lr == 0:
        reasons.append("no weight moves; raise --optim.lr")
    if optim.warmup_steps > total:
        reasons.append(f"the warm-up of {optim.warmup_steps} steps does not end; lower --optim.warmup_steps")
    if optim.warmup_epochs >= epochs:
        reasons.append(f"the warm-up of {optim.warmup_epochs} epochs does not end; lower --optim.warmup_epochs")
    if mean > LOW_RATE * optim.lr and not reasons:
        return []
    if optim.schedule == "cosine" and optim.cosine_origin == 1:
        reasons.append("the last epoch runs at rate 0; set --optim.cosine_origin 0 (omit moco_demo)")
    if optim.schedule == "step":
        shares = " ".join(f"{step:g}" for step in optim.steps)
        reasons.append(f"the rate falls at --optim.steps {shares} by --optim.step_factor {optim.step_factor:g}")
    share = 100 * mean / optim.lr if optim.lr else 0
    length = f"{total} steps ({epochs} epoch{'s' * (epochs > 1)})"
    return [
        f"the mean learning rate of the {length} is {mean:.3g}, {share:.0f} % of --optim.lr {optim.lr:g}: "
        f"{'; '.join(reasons)}."
    ]


def _batch(config: RunConfig[Any]) -> list[str]:
    train, splits = config.train, config.model.bn_splits
    rows = train.batch_size // train.accumulate // splits
    texts = []
    if rows <= FEW_ROWS:
        texts.append(
            f"batch norm has the statistics of {rows} image{'s' * (rows > 1)} at a time (--train.batch_size "
            f"{train.batch_size} / --train.accumulate {train.accumulate} / --model.bn_splits {splits}): take a larger "
            "batch, or fewer parts of it."
        )
    if candidates(config) == 1:
        texts.append(
            "the loss is 0 whatever the network does: its negatives are the other images of the batch, and there are "
            "none. Take a larger --train.batch_size or a smaller --train.accumulate."
        )
    return texts


def _queue(config: RunConfig[Any], images: int, steps: int) -> list[str]:
    size, total = queue_size(config), config.train.epochs * steps
    rows = keys_per_step(config.method, config.train.batch_size)
    epoch = images * rows // config.train.batch_size  # keys of an epoch
    texts = []
    if size > epoch:
        twice = " with two keys each" if epoch > images else ""
        texts.append(
            f"the queue of {size} keys is larger than the {images} training images{twice}: once it is full, "
            f"{size / epoch:.1f} of an image's negatives are keys of itself on average. Take a --method.queue_size "
            f"well below it, such as {max(1, epoch // 4 // rows) * rows}."
        )
    if size > total * rows:
        texts.append(
            f"the run's {total} steps enqueue {total * rows} keys: {size - total * rows} of the queue's {size} stay "
            "random vectors to the end. Train longer, or take a smaller --method.queue_size."
        )
    return texts


def _average(config: RunConfig[Any], steps: int) -> list[str]:
    ema, total = getattr(config.method, "ema", 0.0), config.train.epochs * steps
    if not isinstance(ema, float | int) or total * (1 - ema) >= 1:
        return []
    if ema == 1:
        return ["the network that follows by moving average never moves: --method.ema is 1. Lower it."]
    return [
        f"the network that follows by moving average keeps {100 * ema**total:.0f} % of its first weights to the end: "
        f"--method.ema {ema:g} averages over {1 / (1 - ema):.0f} steps, and the run has {total}. Train longer, or "
        "lower --method.ema."
    ]
