"""What the tests of methods share: tiny methods, and the pieces of the losses as plain loops in float64."""

import dataclasses
import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mixfast.augment import Augment, Views
from mixfast.methods import Method
from mixfast.models import ModelConfig, build_encoder
from mixfast.rng import Generators

Rows = list[list[float]]
BATCH, SIDE = 8, 16
TEMPERATURE = 0.2
MIXED, UNMIXED = 2, 0  # seeds with which the first step of kind "saliency" is mixed, and is not


def build(method: type[Method], model: ModelConfig, seed: int = 0, **options: Any) -> tuple[Method, Generators]:
    """A method on the CPU and its generators; a method with queues gets short ones unless told otherwise."""
    generators = Generators(seed)
    if has(method, "queue_size"):
        options = {"queue_size": 4 * BATCH, **options}
    built = method(method.Config(**options), lambda: build_encoder(model, generators["weights"]), generators)
    return built.train(), generators


def has(method: type[Method], option: str) -> bool:
    """Whether a method has an option of this name."""
    return any(field.name == option for field in dataclasses.fields(method.Config))


def double(
    method: type[Method], head: str = "linear", seed: int = 0, **options: Any
) -> tuple[Method, Generators, dict[str, Tensor]]:
    """A float64 method whose key side and BN differ from the query side, with views to step on.

    One BN group: the order in which keys are encoded then changes nothing but rounding.
    """
    model = ModelConfig(depth=8, width=8, dim=6, head=head, bn_splits=1)  # type: ignore[arg-type]
    if has(method, "temperature"):
        options = {"temperature": TEMPERATURE, **options}
    built, generators = build(method, model, seed, **options)
    built.double()
    noise = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for parameter in built.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=noise, dtype=torch.float64))
    images = torch.randint(0, 256, (BATCH, 3, SIDE, SIDE), generator=noise, dtype=torch.uint8)
    return built, generators, built.views(images, augmentation(generators, torch.float64), generators)


def augmentation(generators: Generators, dtype: torch.dtype = torch.float32) -> Augment:
    """A view is the whole image under noise."""

    def augment(images: Tensor, count: int = 2) -> Views:
        noise = torch.randn((count, *images.shape), generator=generators["augment"], dtype=dtype)
        return Views(images.to(dtype) / 128 - 1 + 0.5 * noise, whole_crops(images, count))

    return augment


def whole_crops(images: Tensor, count: int) -> Tensor:
    """[count, B, 5] of views that show the whole of their images."""
    return torch.tensor([0.0, 0.0, *images.shape[2:], 0.0]).expand(count, len(images), 5)


def rows(vectors: Tensor) -> Rows:
    """[B, D] as lists of unit length."""
    return [[v / math.sqrt(sum(w * w for w in row)) for v in row] for row in vectors.tolist()]


def cosine(a: list[float], b: list[float]) -> float:
    """Of two vectors of any length."""
    lengths = math.sqrt(sum(x * x for x in a) * sum(y * y for y in b))
    return sum(x * y for x, y in zip(a, b, strict=True)) / lengths


def nt_xent(first: Rows, second: Rows, *, without_reverse: bool = False) -> list[float]:
    """-log( e^{cos(a, b)/T} / sum_c e^{cos(a, c)/T} ) for the rows a of both views, in this order: b is the same row of
    the other view and c every row but a itself; `without_reverse`, nor row N-1-n of the other view unless that is b."""
    vectors, count = first + second, len(first)
    losses = []
    for a, anchor in enumerate(vectors):
        good = (a + count) % (2 * count)
        left_out = {a, 2 * count - 1 - a} - {good} if without_reverse else {a}
        others = [math.exp(cosine(anchor, v) / TEMPERATURE) for c, v in enumerate(vectors) if c not in left_out]
        losses.append(-math.log(math.exp(cosine(anchor, vectors[good]) / TEMPERATURE) / sum(others)))
    return losses


def head_rows(head: nn.Module, features: Tensor) -> Rows:
    """A head on [N, C] features, which give its batch norms' statistics: linear layers by torch, the rest here."""
    vectors = features.detach()
    for layer in head if isinstance(head, nn.Sequential) else [head]:
        if isinstance(layer, nn.BatchNorm1d):
            centred = vectors - vectors.sum(dim=0) / len(vectors)
            variance = (centred**2).sum(dim=0) / len(vectors)
            vectors = centred / (variance + layer.eps).sqrt() * layer.weight.detach() + layer.bias.detach()
        else:
            vectors = vectors.clamp(min=0) if isinstance(layer, nn.ReLU) else layer(vectors).detach()
    rows_: Rows = vectors.tolist()
    return rows_


def infonce(queries: Rows, positives: Rows, queue: Tensor) -> list[float]:
    """-log( e^{q.k/T} / (e^{q.k/T} + sum_j e^{q.queue_j/T}) ) for each row."""

    def similarity(a: list[float], b: list[float]) -> float:
        return math.exp(sum(x * y for x, y in zip(a, b, strict=True)) / TEMPERATURE)

    losses = []
    for q, k in zip(queries, positives, strict=True):
        good = similarity(q, k)
        losses.append(-math.log(good / (good + sum(similarity(q, key) for key in queue.tolist()))))
    return losses


def mean(losses: list[float], weights: list[float] | None = None) -> float:
    """Mean over the batch of the weighted rows."""
    weights = weights or [1.0] * len(losses)
    return sum(w * v for w, v in zip(weights, losses, strict=True)) / len(losses)


@torch.no_grad()
def region_rows(features: Tensor, boxes: Tensor, head: nn.Linear) -> tuple[Rows, Rows]:
    """(inside, outside): 1x1 convolution, bilinear upsampling to the image, mean over the pixels, unit length."""
    projected = F.conv2d(features, head.weight[:, :, None, None], head.bias)
    large = F.interpolate(projected, (SIDE, SIDE), mode="bilinear", align_corners=False)
    inside, outside = [], []
    for image, (x0, y0, x1, y1) in zip(large, boxes.tolist(), strict=True):
        within = [(y, x) for y in range(y0, y1) for x in range(x0, x1)]
        beyond = [(y, x) for y in range(SIDE) for x in range(SIDE) if (y, x) not in set(within)]
        for pixels, collected in [(within, inside), (beyond, outside)]:
            collected.append(torch.stack([image[:, y, x] for y, x in pixels]).mean(dim=0))
    return rows(torch.stack(inside)), rows(torch.stack(outside))


@torch.no_grad()
def branch(method: Any, side: str, view: str, views: dict[str, Tensor]) -> dict[str, Rows]:
    """Vectors of one branch by the definition: "whole", "mixed", "outside", "inside"; side is "query" or "key"."""
    encoder = method.encoder if side == "query" else method.key_encoder
    head = method.region_head if side == "query" else method.key_region_head
    mixture = encoder(views[f"{view}_mixed"], method.config.region_layer)
    inside, outside = region_rows(mixture.map, views[f"boxes_{view}_mixed"], head)
    return {"whole": rows(encoder(views[view]).z), "mixed": rows(mixture.z), "outside": outside, "inside": inside}
