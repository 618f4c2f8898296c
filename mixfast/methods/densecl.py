"""DenseCL: MoCo, and every cell of a query's map must find the most similar cell of the key's map.

A baseline for detection without mixtures (Wang et al. 2021). I(query, positive, queue) is InfoNCE.

    s: a cell of the last map, 1 ... S     m(s) = the cell t of the key's map with the largest cos(a_s, b_t)
    a, b: the last maps of f_q(x1) and f_k(x2)

    loss = (1 - w) I(q, k, whole) + w mean over s of I(qD_s, kD_m(s), dense)

    view 1 ------------- f_q --+-- head ---------- q
                               `-- map a -- d_q -- qD_1 ... qD_S
    view 2 -- shuffle -- f_k --+-- head ---------- k                              -> whole
                               `-- map b -- d_k --+-- kD_1 ... kD_S
                                                  `-- kP: mean over cells, of d_k -> dense

d is a dense head: Linear, ReLU, Linear on each cell, which is two 1 x 1 convolutions. The key encoder f_k and head d_k
follow f_q and d_q by exponential moving average; an arrow names the queue that takes a key. A step makes MoCo's two
encoder passes. Cells are matched by features of the backbone, without gradient; several cells of a query may be matched
with the same cell of the key. The negatives of a cell are whole images: the mean of an image's projected cells, then
normalised to a unit vector.

w is lambda of the paper, 0.5 there too. What differs from the paper: temperature, queue, moving average and the head
of the whole image are those of the method `moco` here (the paper has MoCo v2's: an MLP head, 0.2, 65,536 keys, 0.999);
and all cells of the last map take part, where the paper pools larger maps to 7 x 7 cells, the size of ResNet-50's at
224 pixels. Images of 32 pixels have 4 x 4. Written from the paper.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from mixfast.augment import Augment
from mixfast.losses import Term, infonce_sum, unit
from mixfast.methods import Method, Step
from mixfast.methods.bases import (
    Queues,
    build_head,
    check_queue_size,
    encode_shuffled,
    follower,
    initialise_,
    update_ema_,
)
from mixfast.models import Encoder
from mixfast.ranges import Count, InnerShare, Positive, Share, check_ranges
from mixfast.rng import Generators
from mixfast.spans import span


@dataclass(frozen=True)
class DenseCLConfig:
    temperature: Positive = 0.1  # cosines are divided by it
    queue_size: Count = 4096  # past keys in each queue
    ema: Share = 0.99  # share of the key networks that survives one step
    weight: InnerShare = 0.5  # of the dense term; the whole image's has the rest of 1

    def __post_init__(self) -> None:
        check_ranges(self, "method")


class DenseCL(Method):
    Config = DenseCLConfig
    summary = "MoCo, and cells of the maps that are matched by their features"
    config: DenseCLConfig

    def __init__(self, config: DenseCLConfig, make_encoder: Callable[[], Encoder], generators: Generators):
        super().__init__(config, make_encoder, generators)
        self.encoder = make_encoder()
        self.key_encoder = follower(self.encoder)
        self.queues = Queues(("whole", "dense"), self.encoder.dim, config.queue_size, generators["queue"])
        with torch.device(generators.device):
            self.dense_head = build_head("mlp", self.encoder.backbone.channels[-1], self.encoder.dim)
        initialise_(self.dense_head, generators["weights"])
        self.key_dense_head = follower(self.dense_head)

    def begin(self, progress: Tensor) -> None:
        update_ema_(self.key_encoder, self.encoder, self.config.ema)
        update_ema_(self.key_dense_head, self.dense_head, self.config.ema)

    def views(self, images: Tensor, augment: Augment, generators: Generators) -> dict[str, Tensor]:
        x1, x2 = augment(images)
        return {"query": x1, "key": x2}

    def step(self, views: dict[str, Tensor], generators: Generators) -> Step:
        query = self.encoder(views["query"])
        q = unit(query.z)  # [B, D]
        qD = projected(query.map, self.dense_head)  # [S, B, D]
        with torch.no_grad():
            key = encode_shuffled(self.key_encoder, views["key"], generators["shuffle"])
            k = unit(key.z)
            kD = projected(key.map, self.key_dense_head)
            kP = unit(kD.mean(dim=0))
            positives = kD.gather(0, matches(query.map, key.map)[..., None].expand_as(kD))
        weight = self.config.weight
        terms = [
            Term("original", q, k, "whole", 1 - weight),
            Term("dense", unit(qD.flatten(0, 1)), unit(positives.flatten(0, 1)), "dense", weight),
        ]
        loss, parts = infonce_sum(terms, self.queues.keys(), self.config.temperature)
        return Step(loss, parts, {"whole": k, "dense": kP}, terms)

    def update(self, carry: dict[str, Tensor]) -> None:
        self.queues.push_(carry)

    def negatives(self) -> dict[str, Tensor]:
        return self.queues.keys()

    @classmethod
    def check(cls, config: DenseCLConfig, batch: int) -> None:
        check_queue_size(config, batch)

    @classmethod
    def candidates(cls, config: DenseCLConfig, batch: int) -> int:
        return 1 + config.queue_size


def cells(features: Tensor) -> Tensor:
    """[S, B, C]: the first cell of every map [B, C, h, w], then the second, row by row; S = h w."""
    return features.flatten(2).permute(2, 0, 1)


@span("heads")
def projected(features: Tensor, head: nn.Module) -> Tensor:
    """[S, B, D]: every cell of maps [B, C, h, w] through a head of [N, C], not yet of unit length."""
    vectors: Tensor = head(cells(features).flatten(0, 1))
    return vectors.view(-1, len(features), vectors.shape[1])


@torch.no_grad()
def matches(first: Tensor, second: Tensor) -> Tensor:
    """int64 [S, B]: for each cell of the first maps the cell of the second with the largest cosine.

    Both are [B, C, h, w]. Products are float32: features of cells are alike, and 16 bits would not tell them apart.
    """
    a, b = (unit(cells(features).flatten(0, 1)).view(-1, *features.shape[:2]) for features in (first, second))
    with torch.autocast(first.device.type, enabled=False):
        return torch.einsum("sbc,tbc->sbt", a, b).argmax(dim=2)


METHOD = DenseCL
PRESETS: dict[str, dict[str, object]] = {"densecl": {}}
HELP = {"densecl": ("1x", "none published; cells of the maps, matched by features")}
