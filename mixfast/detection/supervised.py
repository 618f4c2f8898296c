"""Supervised training of a backbone on the images of a run: the reference for training without labels."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from mixfast.data import Images, read
from mixfast.detection.body import whole_batches
from mixfast.models import Backbone
from mixfast.rng import Generators
from mixfast.scoring.linear import Progress, new_layer


@dataclass(frozen=True)
class SupervisedRecipe:
    """SGD with Nesterov momentum and a cosine schedule; the rate is proportional to the batch size."""

    epochs: int
    batch_size: int
    lr: float = 0.05  # for a batch of 64
    momentum: float = 0.9
    weight_decay: float = 5e-4


def fit_supervised(
    backbone: Backbone,
    view: Callable[[Tensor], Tensor],
    images: Images,
    labels: Tensor,
    recipe: SupervisedRecipe,
    seed: int,
    progress: Progress = lambda step, steps: None,
) -> None:
    """Train a fresh backbone in place, below a linear layer on the mean of its last map.

    Args:
        backbone: its batch norms no longer split a batch; it is in evaluation mode afterwards.
        view: from uint8 images [B, 3, H, W] on the device to random, normalised views.
        images: uint8 [N, 3, H, W] on the device, or in files.
        labels: int64 [N] on the device, from 0.
        recipe: epochs, batch size and optimiser.
        seed: of the layer's weights and the order of the images.
        progress: called after every step.
    """
    generators = Generators(seed, labels.device)
    classifier = new_layer(backbone.out_channels, int(labels.max()) + 1, generators["supervised/weights"])
    weights = [*whole_batches(backbone).train().requires_grad_(True).parameters(), *classifier.parameters()]
    batch = min(recipe.batch_size, len(images))
    steps = recipe.epochs * (len(images) // batch)
    options = {"momentum": recipe.momentum, "weight_decay": recipe.weight_decay, "nesterov": True}
    optimizer = torch.optim.SGD(weights, lr=recipe.lr * batch / 64, **options)  # type: ignore[arg-type]
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: (1 + math.cos(math.pi * step / steps)) / 2)
    step = 0
    for _ in range(recipe.epochs):
        order = torch.randperm(len(images), generator=generators["supervised/order"], device=labels.device)
        parts = order[: len(images) // batch * batch].split(batch)
        for index, pictures in zip(parts, read(images, parts), strict=True):
            logits = classifier(backbone(view(pictures)).float().mean((2, 3)))
            optimizer.zero_grad()
            F.cross_entropy(logits, labels[index]).backward()
            optimizer.step()
            schedule.step()
            progress(step := step + 1, steps)
    backbone.eval()
