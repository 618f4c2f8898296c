"""The diagnostics of a run at an evaluation, and the warning about a collapsed encoder."""

from typing import Any

import torch
from torch import Tensor

from mixfast.losses import unit
from mixfast.mix import paste
from mixfast.models.split_bn import frozen_statistics
from mixfast.rng import Generators
from mixfast.run.setup import Setup
from mixfast.scoring import diagnostics
from mixfast.scoring.features import extract

IMAGES = 1024  # of the test set, at most
COLLAPSED = 0.1  # std_z below which every image has nearly the same embedding


@torch.no_grad()
def diagnose(setup: Setup) -> dict[str, float]:
    """The numbers of mixfast/scoring/diagnostics.py for a method in its present state, which does not change.

    std_z, effective_rank_h, uniformity: of the first 1024 test images, in evaluation mode. alignment: of two views of
    each of these images. For a method with queues, from one batch of training images and views as in training:
    top1_TERM, the share of queries that are more similar to their positive than to all K keys of the term's queue;
    top1_other_TERM, that share with another image's positive in place of the query's own, at chance level 1 / (K + 1)
    unless all images of a batch have something in common, such as a box; queue_age, the steps after which a key is
    overwritten. For a method that pastes patches (`patched_views`), top1_fresh_TERM: top1 with every patch cut from a
    further view of its image, which no other vector shows. If it is far below top1, queries find their positives by
    the colours and the crop that a patch shares with another view, and not by the image.
    """
    generators = Generators(setup.config.seed, setup.device)  # fresh ones: the same views at every evaluation
    images, size = setup.splits.test.images[:IMAGES].to(setup.device), setup.config.eval.batch_size

    augment = setup.augmenter(generators)

    def view(batch: Tensor) -> Tensor:
        return augment(batch, 1)[0]

    features = extract(setup.method.encoder, images, setup.normalise, size)
    first, second = (unit(extract(setup.method.encoder, images, view, size).z) for _ in range(2))
    numbers = {
        "std_z": diagnostics.normalised_std(unit(features.z)),
        "effective_rank_h": diagnostics.effective_rank(features.h),
        "uniformity": diagnostics.uniformity(unit(features.z)),
        "alignment": diagnostics.alignment(first, second),
        **_positives(setup, generators),
    }
    values = torch.stack([number.double() for number in numbers.values()]).tolist()
    return dict(zip(numbers, values, strict=True))


def _positives(setup: Setup, generators: Generators) -> dict[str, Tensor]:
    """Top-1 accuracies and queue age, from a step on the first training images; {} for a method without queues."""
    rows = setup.config.train.batch_size // setup.config.train.accumulate
    images, mix_state = setup.train_images[:rows], generators["mix"].get_state()
    views = setup.views(images, generators)
    with frozen_statistics(setup.method), setup.autocast():
        step = setup.method.step(views, generators)
    if not step.terms:
        return {}
    queues = setup.method.negatives()
    steps = [len(queues[name]) / (len(keys) * setup.config.train.accumulate) for name, keys in step.carry.items()]
    numbers = {"queue_age": torch.tensor(max(steps), device=setup.device)}
    kinds = [("top1", step.terms, 0), ("top1_other", step.terms, diagnostics.OTHER_IMAGE)]
    if patched := patched_views(views, setup.config.method):
        generators["mix"].set_state(mix_state)  # the same boxes in other views
        fresh_views = setup.views(images, generators)
        fresh = {name: paste(views[name], fresh_views[name], box) for name, box in patched.items()}
        with frozen_statistics(setup.method), setup.autocast():
            kinds.append(("top1_fresh", setup.method.step(views | fresh, generators).terms, 0))
    for name, terms, shift in kinds:
        shares = diagnostics.top1_accuracy(terms, queues, shift)
        numbers |= {f"{name}_{term}": share for term, share in shares.items()}
    return numbers


def patched_views(views: dict[str, Tensor], config: Any) -> dict[str, Tensor]:
    """The boxes [B, 4] of pasted patches, by the name of the view: patches of other views fit into them.

    {} if no view has such boxes, or if the option `mixture` leaves them empty or places them by the patch's content.
    """
    if getattr(config, "mixture", "cutmix") != "cutmix":
        return {}
    boxes = {name: views.get(f"boxes_{name}") for name in views}
    return {name: box for name, box in boxes.items() if box is not None and box.ndim == 2}


def warning(numbers: dict[str, float]) -> str | None:
    """A sentence if the encoder has collapsed, else None."""
    if numbers["std_z"] >= COLLAPSED:
        return None
    return (
        f"std of z is {numbers['std_z']:.3f} (1: directions are used evenly): every image has nearly the "
        f"same embedding. A lower --optim.lr or a warm-up (--optim.warmup_epochs) may prevent it."
    )
