"""Layers are trained as the recipes say, learning rates are chosen on held-out data; the encoder stays as it is."""

import copy
import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from mixfast.models import ModelConfig, build_encoder
from mixfast.scoring.features import Features
from mixfast.scoring.linear import (
    CACHED,
    SGD,
    LinearRecipe,
    fit_cached,
    fit_sgd,
    linear_score,
    linear_scores,
    probe,
    sgd_score,
    split,
)
from mixfast.scoring.maps import Network

QUICK = LinearRecipe(epochs=30, batch_size=64, lrs=(0.1,))


def clouds(generator: torch.Generator, count: int = 300, spread: float = 0.3) -> tuple[Tensor, Tensor]:
    """Points around the corners of a simplex."""
    labels = torch.arange(count) % 4
    return torch.eye(8)[labels] + spread * torch.randn(count, 8, generator=generator), labels


def test_recipes_are_those_of_the_literature() -> None:
    assert (CACHED.epochs, CACHED.batch_size, CACHED.lrs, CACHED.lr_end) == (500, 1000, (1e-2,), 1e-6)
    assert CACHED.weight_decay == 5e-6 and (SGD.epochs, SGD.batch_size, SGD.lrs) == (100, 256, (30.0,))
    assert SGD.drops == (0.6, 0.8) and SGD.momentum == 0.9 and SGD.weight_decay == 0


def test_cached_training_equals_adam_by_hand(rng: torch.Generator) -> None:
    features, labels = clouds(rng, 50)
    recipe = LinearRecipe(epochs=4, batch_size=20, lrs=(0.05,), lr_end=1e-3, weight_decay=0.01)
    layer = fit_cached(features, labels, 4, recipe, 0.05, torch.Generator().manual_seed(1))
    draw = torch.Generator().manual_seed(1)
    weight, bias = torch.empty(4, 8).normal_(std=0.01, generator=draw).double(), torch.zeros(4).double()
    values = [weight, bias]
    first, second, step = [torch.zeros_like(v) for v in values], [torch.zeros_like(v) for v in values], 0
    for epoch in range(4):
        lr = 0.05 * (1e-3 / 0.05) ** (epoch / 3)
        for index in torch.randperm(50, generator=draw).split(20):
            x, y, step = features[index].double(), F.one_hot(labels[index], 4).double(), step + 1
            delta = (torch.softmax(x @ values[0].T + values[1], 1) - y) / len(index)
            for i, gradient in enumerate((delta.T @ x, delta.sum(0))):
                gradient = gradient + 0.01 * values[i]
                first[i] = 0.9 * first[i] + 0.1 * gradient
                second[i] = 0.999 * second[i] + 0.001 * gradient**2
                scale = (second[i] / (1 - 0.999**step)).sqrt() + 1e-8
                values[i] = values[i] - lr * first[i] / (1 - 0.9**step) / scale
    torch.testing.assert_close(layer.weight.double(), values[0], rtol=1e-3, atol=1e-5)
    torch.testing.assert_close(layer.bias.double(), values[1], rtol=1e-3, atol=1e-5)


def test_separable_features_are_learned_and_noise_is_not(rng: torch.Generator) -> None:
    bank, labels = clouds(rng)
    queries, answers = clouds(rng, 200)
    assert linear_score(bank, labels, queries, answers, rng, QUICK)[0] > 93
    noise = linear_score(torch.randn(300, 8, generator=rng), labels, queries, answers, rng, QUICK)[0]
    assert abs(noise - 25) < 4 * 100 * math.sqrt(0.25 * 0.75 / 200)  # 4 standard errors around chance level
    both = linear_scores(Features(bank, bank), labels, Features(queries, queries), answers, rng, QUICK)
    assert set(both) == {"linear_z", "lr_z", "linear_h", "lr_h"} and both["linear_h"] > 93 and both["lr_z"] == 0.1


def test_a_rate_is_chosen_on_held_out_training_images(rng: torch.Generator) -> None:
    bank, labels = clouds(rng)
    recipe = LinearRecipe(epochs=5, batch_size=64, lrs=(1e-7, 0.1, 1e-6), lr_end=1e-8)
    assert probe(bank, labels, 4, rng, recipe)[1] == 0.1


def test_held_out_images_are_a_tenth_and_apart(rng: torch.Generator) -> None:
    for count, held in ((300, 30), (5, 1), (2, 1)):
        used, chosen = split(count, rng)
        assert len(chosen) == held and torch.cat([used, chosen]).sort().values.tolist() == list(range(count))


@pytest.fixture
def network(rng: torch.Generator) -> Network:
    encoder = build_encoder(ModelConfig(depth=8, width=8, dim=4, bn_splits=2), rng).train()
    return Network(encoder, lambda images: images.float() / 255 - 0.5)


def coloured(count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Images whose class is their brightest channel."""
    labels = torch.arange(count) % 3
    images = torch.randint(90, (count, 3, 16, 16), generator=generator)
    images[torch.arange(count), labels] += 120
    return images.to(torch.uint8), labels


def test_the_full_protocol_trains_on_views_and_tests_on_plain_images(network: Network, rng: torch.Generator) -> None:
    before = copy.deepcopy(network.encoder.state_dict())
    (images, labels), (test, answers) = coloured(60, rng), coloured(30, rng)
    seen, told = [], []

    def augment(batch: Tensor) -> Tensor:
        seen.append(len(batch))
        return network.normalise(batch.flip(3))

    recipe = LinearRecipe(epochs=30, batch_size=25, lrs=(10.0,), drops=(0.5,), weight_decay=0.0)
    scores = sgd_score(
        network, augment, images, labels, test, answers, rng, recipe, lambda done, of: told.append((done, of))
    )
    assert scores["linear_h"] > 80 and scores["lr_h"] == 10
    assert seen == [25, 25, 10] * 30 and told[-1] == (30, 30)
    assert network.encoder.training
    assert all(torch.equal(value, before[name]) for name, value in network.encoder.state_dict().items())


def test_the_full_protocol_chooses_a_rate_too(network: Network, rng: torch.Generator) -> None:
    (images, labels), (test, answers) = coloured(60, rng), coloured(30, rng)
    recipe = LinearRecipe(epochs=30, batch_size=30, lrs=(1e-6, 10.0), weight_decay=0.0)
    scores = sgd_score(network, network.normalise, images, labels, test, answers, rng, recipe)
    assert scores["lr_h"] == 10 and scores["linear_h"] > 50


def test_sgd_equals_the_rule_by_hand(network: Network, rng: torch.Generator) -> None:
    """Momentum, the drops, and the layer's start: one layer on one batch of features, in float64."""
    images, labels = coloured(12, rng)
    recipe = LinearRecipe(epochs=5, batch_size=12, lrs=(0.5,), drops=(0.6, 0.8), weight_decay=0.0)
    network.encoder.eval()
    (layer,) = fit_sgd(
        network, network.normalise, images, labels, 3, recipe, [0.5], torch.Generator().manual_seed(2), lambda *_: None
    )
    with torch.no_grad():
        h = network.encoder(network.normalise(images)).h.double()
    draw = torch.Generator().manual_seed(2)
    weight, bias = torch.empty(3, 32).normal_(std=0.01, generator=draw).double(), torch.zeros(3).double()
    speed = [torch.zeros_like(weight), torch.zeros_like(bias)]
    for lr in (0.5, 0.5, 0.5, 0.05, 0.005):
        delta = (torch.softmax(h @ weight.T + bias, 1) - F.one_hot(labels, 3)) / 12
        speed = [0.9 * v + g for v, g in zip(speed, (delta.T @ h, delta.sum(0)), strict=True)]
        weight, bias = weight - lr * speed[0], bias - lr * speed[1]
    torch.testing.assert_close(layer.weight.double(), weight, rtol=1e-3, atol=1e-5)
    torch.testing.assert_close(layer.bias.double(), bias, rtol=1e-3, atol=1e-5)
