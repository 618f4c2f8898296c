"""The diagnostics of a run at an evaluation, and what is worth a warning."""

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
    """The numbers of mixfast/scoring/diagnostics.py for a method as it stands; moves nothing of it.

    std_z, effective_rank_h, uniformity: of the first 1024 test images, in evaluation mode. alignment: of two views of
    each. For a method with queues, from one batch of training images seen as in training: top1_TERM, the share of
    queries that are more similar to their positive than to all K keys of the term's queue; top1_other_TERM, the same
    with *another image's* positive, at chance level 1 / (K + 1) unless a batch has something in common, such as its
    box; queue_age, the steps after which a key is overwritten. For a method that pastes patches (`patched_views`),
    top1_fresh_TERM: top1 with every patch from a view of its image that shows nowhere else. If it is far below top1,
    terms are solved by colours and crops that a patch shares with the other side, and not by the image.
    """
    draws = Generators(setup.config.seed, setup.device)  # its own generators: the same views at every evaluation
    images, size = setup.splits.test.images[:IMAGES].to(setup.device), setup.config.eval.batch_size

    augment = setup.augmenter(draws)

    def view(batch: Tensor) -> Tensor:
        return augment(batch, 1)[0]

    plain = extract(setup.method.encoder, images, setup.normalise, size)
    first, second = (unit(extract(setup.method.encoder, images, view, size).z) for _ in range(2))
    numbers = {
        "std_z": diagnostics.normalised_std(unit(plain.z)),
        "effective_rank_h": diagnostics.effective_rank(plain.h),
        "uniformity": diagnostics.uniformity(unit(plain.z)),
        "alignment": diagnostics.alignment(first, second),
        **_positives(setup, draws),
    }
    values = torch.stack([number.double() for number in numbers.values()]).tolist()
    return dict(zip(numbers, values, strict=True))


def _positives(setup: Setup, draws: Generators) -> dict[str, Tensor]:
    """Top-1 accuracies and age of the queues, from a step on the first training images; {} without queues."""
    rows = setup.config.train.batch_size // setup.config.train.accumulate
    images, boxes = setup.train_images[:rows], draws["mix"].get_state()
    views = setup.views(images, draws)
    with frozen_statistics(setup.method), setup.autocast():
        step = setup.method.step(views, draws)
    if not step.terms:
        return {}
    queues = setup.method.negatives()
    steps = [len(queues[name]) / (len(keys) * setup.config.train.accumulate) for name, keys in step.carry.items()]
    numbers = {"queue_age": torch.tensor(max(steps), device=setup.device)}
    kinds = [("top1", step.terms, 0), ("top1_other", step.terms, diagnostics.OTHER_IMAGE)]
    if patched := patched_views(views, setup.config.method):
        draws["mix"].set_state(boxes)  # the same boxes in other views
        others = setup.views(images, draws)
        fresh = {name: paste(views[name], others[name], box) for name, box in patched.items()}
        with frozen_statistics(setup.method), setup.autocast():
            kinds.append(("top1_fresh", setup.method.step(views | fresh, draws).terms, 0))
    for name, terms, shift in kinds:
        shares = diagnostics.top1_accuracy(terms, queues, shift)
        numbers |= {f"{name}_{term}": share for term, share in shares.items()}
    return numbers


def patched_views(views: dict[str, Tensor], config: Any) -> dict[str, Tensor]:
    """The boxes [B, 4] of the mixtures among `views` by their names; other views with equal boxes have other patches.

    {} where there is nothing of the kind: no such boxes, or ones that the option `mixture` leaves empty or places by
    the patch.
    """
    if getattr(config, "mixture", "cutmix") != "cutmix":
        return {}
    boxes = {name: views.get(f"boxes_{name}") for name in views}
    return {name: box for name, box in boxes.items() if box is not None and box.ndim == 2}


def warning(numbers: dict[str, float]) -> str | None:
    """A sentence if the encoder has collapsed."""
    if numbers["std_z"] >= COLLAPSED:
        return None
    return (
        f"std of z is {numbers['std_z']:.3f} (1: directions are used evenly): every image has nearly the "
        f"same embedding. A lower --optim.lr or a warm-up (--optim.warmup_epochs) may prevent it."
    )
