"""Linear classification of frozen features, by two protocols:

    cached   features of plain images; Adam, rate 1e-2 -> 1e-6 exponentially over 500 epochs, decay 5e-6, batch 1000
             (Ermolov et al. 2021)
    sgd      features of a random crop and flip in every step; SGD 30 with momentum 0.9, 100 epochs, rate x 0.1 after 60
             and 80 of them, no decay, batch 256 (He et al. 2020)

Several processes divide the computation of features among them. Each then has the features of all images and trains the
same layers, so that no gradient is exchanged.

With several learning rates, the best on held-out training images is used, never the best on test images.
"""

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mixfast.data import Images, read, take
from mixfast.scoring.features import Features, by_batches, evaluation_mode
from mixfast.scoring.knn import accuracy
from mixfast.scoring.maps import Network
from mixfast.world import alone, current

HELD_OUT = 0.1  # share of the training images on which the learning rate is chosen
Progress = Callable[[int, int], None]  # called with the epochs done and the epochs in all


@dataclass(frozen=True)
class LinearRecipe:
    """The training of a linear layer; the defaults are those of the cached protocol."""

    epochs: int = 500
    batch_size: int = 1000
    lrs: tuple[float, ...] = (1e-2,)  # of several, the best on held-out training images is used
    lr_end: float = 1e-6  # cached: learning rate of the last epoch
    weight_decay: float = 5e-6
    drops: tuple[float, ...] = ()  # sgd: shares of the training after which the learning rate falls to a tenth
    momentum: float = 0.9  # sgd


CACHED = LinearRecipe()
SGD = LinearRecipe(epochs=100, batch_size=256, lrs=(30.0,), weight_decay=0.0, drops=(0.6, 0.8))


def split(count: int, generator: torch.Generator, share: float = HELD_OUT) -> tuple[Tensor, Tensor]:
    """Random positions int64 to train on, and to choose the learning rate on; at least one of each."""
    order = torch.randperm(count, generator=generator, device=generator.device)
    held_out = min(max(1, round(share * count)), count - 1)
    return order[held_out:], order[:held_out]


def new_layer(features: int, classes: int, generator: torch.Generator) -> nn.Linear:
    """A linear layer with weights from N(0, 0.01^2) and biases 0, on the generator's device."""
    layer = nn.Linear(features, classes, device=generator.device)
    nn.init.normal_(layer.weight, std=0.01, generator=generator)
    nn.init.zeros_(layer.bias)
    return layer


def fit_cached(
    features: Tensor, labels: Tensor, classes: int, recipe: LinearRecipe, lr: float, generator: torch.Generator
) -> nn.Linear:
    """A layer trained on features [N, C] with labels int64 [N]; all on the generator's device."""
    layer = new_layer(features.shape[1], classes, generator)
    optimizer = torch.optim.Adam(layer.parameters(), lr=lr, weight_decay=recipe.weight_decay)
    fall = (recipe.lr_end / lr) ** (1 / max(1, recipe.epochs - 1))
    for epoch in range(recipe.epochs):
        optimizer.param_groups[0]["lr"] = lr * fall**epoch
        order = torch.randperm(len(features), generator=generator, device=features.device)
        for index in order.split(recipe.batch_size):
            optimizer.zero_grad()
            F.cross_entropy(layer(features[index]), labels[index]).backward()
            optimizer.step()
    return layer


def probe(
    bank: Tensor,
    labels: Tensor,
    classes: int,
    generator: torch.Generator,
    recipe: LinearRecipe = CACHED,
) -> tuple[nn.Linear, float]:
    """A layer trained on cached features, and the learning rate that it was trained with.

    Args:
        bank: [N, C] features of the training images.
        labels: int64 [N].
        classes: number of classes.
        generator: on the device of `bank`.
        recipe: with several learning rates, a layer is trained with each on nine tenths of the images and scored on
            the others; then a layer is trained on all images with the best rate.
    """
    rates, chosen = list(recipe.lrs), 0
    if len(rates) > 1:
        training, held_out = split(len(bank), generator)
        layers = [fit_cached(bank[training], labels[training], classes, recipe, rate, generator) for rate in rates]
        accuracies = [accuracy(predict(layer, bank[held_out]), labels[held_out]) for layer in layers]
        chosen = accuracies.index(max(accuracies))
    return fit_cached(bank, labels, classes, recipe, rates[chosen], generator), rates[chosen]


@torch.no_grad()
def predict(layer: nn.Linear, features: Tensor) -> Tensor:
    """int64 [N]: classes of features [N, C]."""
    return layer(features).argmax(1)


def linear_scores(
    bank: Features,
    labels: Tensor,
    queries: Features,
    answers: Tensor,
    generator: torch.Generator,
    recipe: LinearRecipe = CACHED,
) -> dict[str, float]:
    """`linear_score` on both kinds of features: {"linear_z", "lr_z", "linear_h", "lr_h"}.

    Args:
        bank, queries: features of M training and N test images.
        labels, answers: int64 [M] and [N], their classes.
        generator, recipe: as in `linear_score`.
    """
    scores: dict[str, float] = {}
    for name in Features._fields:
        score, rate = linear_score(getattr(bank, name), labels, getattr(queries, name), answers, generator, recipe)
        scores |= {f"linear_{name}": score, f"lr_{name}": rate}
    return scores


def linear_score(
    bank: Tensor,
    labels: Tensor,
    queries: Tensor,
    answers: Tensor,
    generator: torch.Generator,
    recipe: LinearRecipe = CACHED,
) -> tuple[float, float]:
    """Test accuracy in percent of the cached protocol, and the learning rate that was used.

    Args:
        bank, queries: [N, C] and [M, C] features of training and test images, on the generator's device.
        labels, answers: int64 [N] and [M] classes, from 0.
        generator: draws the weights and the order of the images.
        recipe: see `probe`.
    """
    layer, rate = probe(bank, labels, int(max(labels.max(), answers.max())) + 1, generator, recipe)
    return accuracy(predict(layer, queries), answers), rate


def sgd_score(
    network: Network,
    augment: Callable[[Tensor], Tensor],
    images: Images,
    labels: Tensor,
    test: Images,
    answers: Tensor,
    generator: torch.Generator,
    recipe: LinearRecipe = SGD,
    progress: Progress = lambda step, steps: None,
) -> dict[str, float]:
    """Test accuracy in percent of the full protocol on h: {"linear_h", "lr_h"}.

    Args:
        network: frozen, in evaluation mode.
        augment: uint8 images [B, 3, H, W] to random, normalised views.
        images, test: uint8 [N, 3, H, W] and [M, 3, H, W] on the generator's device, or in files.
        labels, answers: int64 [N] and [M] on the generator's device.
        generator: draws the weights and the order of the images.
        recipe: with several learning rates, layers are trained together on the same views; the best is chosen as in
            `probe`.
        progress: called after every epoch.
    """
    classes, rates = int(max(labels.max(), answers.max())) + 1, list(recipe.lrs)
    with evaluation_mode(network.encoder):
        if len(rates) > 1:
            training, held_out = split(len(images), generator)
            training_images = take(images, training)
            layers = fit_sgd(
                network, augment, training_images, labels[training], classes, recipe, rates, generator, progress
            )
            held_out_images = take(images, held_out)
            accuracies = [_test(network, layer, held_out_images, labels[held_out]) for layer in layers]
            rates = [rates[accuracies.index(max(accuracies))]]
        (layer,) = fit_sgd(network, augment, images, labels, classes, recipe, rates, generator, progress)
        return {"linear_h": _test(network, layer, test, answers), "lr_h": rates[0]}


def fit_sgd(
    network: Network,
    augment: Callable[[Tensor], Tensor],
    images: Images,
    labels: Tensor,
    classes: int,
    recipe: LinearRecipe,
    rates: Sequence[float],
    generator: torch.Generator,
    progress: Progress,
) -> list[nn.Linear]:
    """A layer per rate, all trained together, so that the encoder computes the features once.

    Args:
        network: frozen; in evaluation mode already.
        augment: uint8 images [B, 3, H, W] to random, normalised views.
        images: uint8 [N, 3, H, W] on the generator's device, or in files.
        labels: int64 [N].
        classes: number of classes.
        recipe: all options but its learning rates.
        rates: a learning rate per layer.
        generator: draws the weights and the order of the images.
        progress: called after every epoch.
    """
    width = network.encoder.backbone.out_channels
    layers = [new_layer(width, classes, generator) for _ in rates]
    groups = [{"params": list(layer.parameters()), "lr": rate} for layer, rate in zip(layers, rates, strict=True)]
    optimizer = torch.optim.SGD(groups, lr=rates[0], momentum=recipe.momentum, weight_decay=recipe.weight_decay)
    for epoch in range(recipe.epochs):
        factor = 0.1 ** sum(epoch >= share * recipe.epochs for share in recipe.drops)
        for group, rate in zip(optimizer.param_groups, rates, strict=True):
            group["lr"] = rate * factor
        order = torch.randperm(len(images), generator=generator, device=images.device)
        parts = order.split(recipe.batch_size)
        world = current()
        shared = [world.size > 1 and len(part) % world.groups == 0 for part in parts]  # the last part may be too small
        own_parts = [world.own(part) if is_shared else part for part, is_shared in zip(parts, shared, strict=True)]
        for index, is_shared, batch in zip(parts, shared, read(images, own_parts), strict=True):
            with torch.no_grad(), nullcontext() if is_shared else alone():
                h = current().ordered(network.encoder(augment(batch)).h.float())
            optimizer.zero_grad()
            torch.stack([F.cross_entropy(layer(h), labels[index]) for layer in layers]).sum().backward()
            optimizer.step()
        progress(epoch + 1, recipe.epochs)
    return layers


@torch.no_grad()
def _test(network: Network, layer: nn.Linear, images: Images, labels: Tensor, batch_size: int = 512) -> float:
    """Accuracy in percent of a layer on plain images."""

    def classes(batch: Tensor) -> tuple[Tensor]:
        return (predict(layer, network.encoder(network.normalise(batch)).h.float()),)

    (predicted,) = by_batches(images, batch_size, classes)
    return accuracy(predicted, labels)
