"""RegionCL: a patch of another image is pasted into a query; the rest and the patch must each find their image's key.

A baseline for detection with mixtures (Xu et al. 2022), its form for MoCo. I(query, positive, queue) is InfoNCE; rho
reverses the batch.

    first half of the batch:  x1M = x1 with a patch of rho(x1)     C: outside the patch (canvas), P: inside (paste)
    second half:              x1 as it is

    loss = I(q, k, Q) over the second half + [ I(qC, k, Q + qP) + I(qP, rho k, Q + qC) ] / 2 over the first

    x1 of the second half ----------+-- f_q --+-- head -------- q     of the second half
    x1M of the first half ----------+         `-- map --+------ mean outside the patch -- head -- qC
                                                        `------ mean inside ------------- head -- qP
    view 2 -- shuffle -- f_k --------- head -- k  -> Q

The key encoder f_k follows f_q by exponential moving average; the arrow names the queue that takes the keys, which come
from whole clean views only. One head serves whole images and regions. Q + qP: a region has one negative in addition to
the queue, the other region of its own query, without gradient. Means are over the bilinearly enlarged map inside and
outside the box, computed without that map (`mixfast.masked_upsample_pool`).

What differs from the paper and its code:

    cost      there every image is encoded as a query twice, whole and swapped: 1.75 times MoCo's encoder passes. Here
              half of the queries are whole and half are mixtures, in one pass, at MoCo's cost. A mixture takes a patch
              from an image of the second half and gives none, so that regions are not swapped but moved
    boxes     there one box for the batch, with sides of 3 to 5 of the 7 cells of the last map, on borders of cells.
              Here each mixture has its own, in pixels, whose share of the image is uniform in `area`: between the
              squares of 3/7 and 5/7 by default
    recipe    temperature, queue, moving average and a linear head are those of the method `moco` here; there MoCo v2's

The sum of the weights is 2, as in the paper's code. The loss follows the paper's description; sizes of boxes, weights
and the negative without gradient follow its code.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from mixfast.augment import Augment
from mixfast.losses import Term, infonce_sum, unit
from mixfast.methods import Method, Step
from mixfast.methods.bases import (
    Queues,
    check_option,
    check_queue_size,
    encode_shuffled,
    follower,
    region_vectors,
    update_ema_,
)
from mixfast.mix import boxes_of_area
from mixfast.models import Encoder
from mixfast.ops import mix_views
from mixfast.ranges import Count, InnerShare, Positive, Share, check_ranges
from mixfast.rng import Generators

PATCH_RATIO = (3 / 5, 5 / 3)  # width / height of a patch, in units of the view's


@dataclass(frozen=True)
class RegionCLConfig:
    temperature: Positive = 0.1  # cosines are divided by it
    queue_size: Count = 4096  # past keys in the queue
    ema: Share = 0.99  # share of the key encoder that survives one step
    area: tuple[InnerShare, InnerShare] = (0.18, 0.51)  # share of the query that a patch covers, uniform

    def __post_init__(self) -> None:
        check_ranges(self, "method")
        check_option(self.area[0] <= self.area[1], "area", "(low, high) with low <= high", self.area)


class RegionCL(Method):
    Config = RegionCLConfig
    summary = "patches of other images in half of the queries; both regions meet whole keys"
    config: RegionCLConfig

    def __init__(self, config: RegionCLConfig, make_encoder: Callable[[], Encoder], generators: Generators):
        super().__init__(config, make_encoder, generators)
        self.encoder = make_encoder()
        self.key_encoder = follower(self.encoder)
        self.queues = Queues(("whole",), self.encoder.dim, config.queue_size, generators["queue"])

    def begin(self, progress: Tensor) -> None:
        update_ema_(self.key_encoder, self.encoder, self.config.ema)

    def views(self, images: Tensor, augment: Augment, generators: Generators) -> dict[str, Tensor]:
        x1, x2 = augment(images)
        mixed, size = len(images) // 2, (x1.shape[2], x1.shape[3])
        boxes = boxes_of_area(mixed, size, self.config.area, PATCH_RATIO, generators["mix"])  # [B/2, 4]
        x1M = mix_views(x1[:mixed], x1.flip(0)[:mixed], boxes, x1.new_ones(mixed, dtype=torch.float32))
        none = boxes.new_zeros(len(images) - mixed, 4)
        return {"query": torch.cat([x1M, x1[mixed:]]), "boxes_query": torch.cat([boxes, none]), "key": x2}

    def step(self, views: dict[str, Tensor], generators: Generators) -> Step:
        mixed, size = len(views["query"]) // 2, (views["query"].shape[2], views["query"].shape[3])
        query = self.encoder(views["query"])
        q = unit(query.z[mixed:])  # [B/2, D]
        qP, qC = region_vectors(query.map[:mixed], views["boxes_query"][:mixed], size, self.encoder.head)
        k = unit(encode_shuffled(self.key_encoder, views["key"], generators["shuffle"]).z)  # [B, D]
        terms = [
            Term("original", q, k[mixed:], "whole"),
            Term("canvas", qC, k[:mixed], "whole", 0.5, negative=qP.detach()),
            Term("paste", qP, k.flip(0)[:mixed], "whole", 0.5, negative=qC.detach()),
        ]
        loss, parts = infonce_sum(terms, self.queues.keys(), self.config.temperature)
        return Step(loss, parts, {"whole": k}, terms)

    def update(self, carry: dict[str, Tensor]) -> None:
        self.queues.push_(carry)

    def negatives(self) -> dict[str, Tensor]:
        return self.queues.keys()

    @classmethod
    def check(cls, config: RegionCLConfig, batch: int) -> None:
        check_queue_size(config, batch)

    @classmethod
    def candidates(cls, config: RegionCLConfig, batch: int) -> int:
        return 1 + config.queue_size


METHOD = RegionCL
PRESETS: dict[str, dict[str, object]] = {"regioncl": {}}
HELP = {"regioncl": ("1x", "none published; patches of others, both meet whole keys")}
