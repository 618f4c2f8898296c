"""One pass: regions of one query, often with a patch of a third view, must find the whole clean key of its image.

The paper's idea of regions at MoCo's cost. I(query, positive, queue) is InfoNCE.

    x1M = x1 outside box B, a third view x3 of the same image inside, in `p_mix` of the steps; x1 in the others
    G, L: outside, inside of the box, also where nothing is pasted

    loss = I(q, k, Q) + w [ I(qG, k, Q) + I(qL, k, Q) ]

    view 1 --+-- x1M -- f_q --+-- head ----------- q
    view 3 --+                `-- map --+-- mean outside B -- head -- qG
                                        `-- mean inside ----- head -- qL
    view 2 -- shuffle -- f_k ---- head -- k  -> Q

The key encoder f_k follows f_q by exponential moving average; the arrow names the queue that takes the keys. One head
serves the whole image and its regions. Means are over the bilinearly enlarged map inside and outside the box, computed
without that map (`mixfast.masked_upsample_pool`). A box is that of CutMix (Yun et al. 2019), one for the batch.

Approaches 1 and 2 encode clean views and mixtures on both sides, twice MoCo's encoder passes, and Approach 1 pastes
pixels of the key's own view. Here one query and one key are encoded, and no other vector shows the patch's crop and
colours. Every part of a query shows its image, so that all positives are right and no label is mixed. This loss and
its defaults are ours: no paper has them.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from mixfast.augment import Augment
from mixfast.losses import Term, infonce_sum, unit
from mixfast.methods import Method, Step
from mixfast.methods.bases import Queues, check_queue_size, encode_shuffled, follower, region_vectors, update_ema_
from mixfast.mix import MixtureConfig, draw, paste_in, place
from mixfast.models import Encoder
from mixfast.ranges import Count, Positive, Share, check_ranges
from mixfast.rng import Generators

CUTMIX = MixtureConfig()


@dataclass(frozen=True)
class OnePassConfig:
    temperature: Positive = 0.1  # cosines are divided by it
    queue_size: Count = 4096  # past keys in the queue
    ema: Share = 0.99  # share of the key encoder that survives one step
    p_mix: Share = 0.5  # share of the steps whose queries get a patch; 0: regions alone
    weight: Positive = 0.1  # of each region's term; the whole image's has 1

    def __post_init__(self) -> None:
        check_ranges(self, "method")


class OnePass(Method):
    Config = OnePassConfig
    summary = "regions of one query, often with a patch of a third view, meet the whole key"
    config: OnePassConfig

    def __init__(self, config: OnePassConfig, make_encoder: Callable[[], Encoder], generators: Generators):
        super().__init__(config, make_encoder, generators)
        self.encoder = make_encoder()
        self.key_encoder = follower(self.encoder)
        self.queues = Queues(("whole",), self.encoder.dim, config.queue_size, generators["queue"])

    def begin(self, progress: Tensor) -> None:
        update_ema_(self.key_encoder, self.encoder, self.config.ema)

    def views(self, images: Tensor, augment: Augment, generators: Generators) -> dict[str, Tensor]:
        x1, x2, x3 = augment(images, 3)
        generator = generators["mix"]
        boxes, outside = place(x3, draw(len(images), generator, CUTMIX).lam0, generator, CUTMIX)
        mixed = torch.rand(1, dtype=torch.float32, generator=generator, device=generator.device) < self.config.p_mix
        return {"query": paste_in(x1, x3, boxes, outside, mixed).images, "boxes_query": boxes, "key": x2}

    def step(self, views: dict[str, Tensor], generators: Generators) -> Step:
        size = (views["query"].shape[2], views["query"].shape[3])
        query = self.encoder(views["query"])
        q = unit(query.z)  # [B, D], as all vectors here
        qL, qG = region_vectors(query.map, views["boxes_query"], size, self.encoder.head)
        k = unit(encode_shuffled(self.key_encoder, views["key"], generators["shuffle"]).z)
        terms = [
            Term("original", q, k, "whole"),
            Term("global", qG, k, "whole", self.config.weight),
            Term("local", qL, k, "whole", self.config.weight),
        ]
        loss, parts = infonce_sum(terms, self.queues.keys(), self.config.temperature)
        return Step(loss, parts, {"whole": k}, terms)

    def update(self, carry: dict[str, Tensor]) -> None:
        self.queues.push_(carry)

    def negatives(self) -> dict[str, Tensor]:
        return self.queues.keys()

    @classmethod
    def check(cls, config: OnePassConfig, batch: int) -> None:
        check_queue_size(config, batch)

    @classmethod
    def candidates(cls, config: OnePassConfig, batch: int) -> int:
        return 1 + config.queue_size


METHOD = OnePass
PRESETS: dict[str, dict[str, object]] = {"one_pass": {}}
HELP = {"one_pass": ("1x", "none published; regions of one mixture meet the whole key")}
