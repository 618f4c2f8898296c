"""Approach 2, published code: the exact objective of the code that was published with the paper.

I(query, positive, queue) is InfoNCE; rho reverses the batch.

    x1M = x1 outside box B1, rho(x1) inside                x2M = x2 outside box B2, rho(x2) inside
    G, L: outside (global), inside (local) of the box      lam = share of x1M outside B1

    loss = I(q, k, whole) + lam     [ I(qM, k, whole)     + I(qG, k, whole)     + I(qL, kL, local) ]
                          + (1-lam) [ I(rho qM, k, whole) + I(rho qG, k, whole) + I(rho qL, kL, local) ]

    view 1 --+-- f_q --------------------------------------------- q
             +-- rho(x1) in B1: x1M -- f_q --+-- head ------------ qM: row n shows images n (lam) and N-1-n (1 - lam)
                                             `-- map -- g --+-- qG: outside B1, row n shows image n
                                                            `-- qL: inside B1, row n shows image N-1-n
    view 2 --+-- shuffle -- f_k ---------------------------------- k  -> whole
             +-- rho(x2) in B2: x2M -- f_k -- map -- g ----------- kL: inside B2 -> local

The key encoder f_k follows f_q by exponential moving average; g is one linear region head for queries and keys. What
differs from `approach2` and from the paper's text:

    the positives of the last two terms show another image than their queries
    the global term compares regions with whole clean images and their queue; there is no queue of global keys
    the region head of the keys is the trained one, not its moving average
    the mixtures of the key side are not encoded in shuffled order

Two parts of that code have no effect on the loss and are omitted: a third pass for reversed mixtures, which gives the
same bits as reversed outputs, and options that it ignores. Boxes are CutMix's, one size and two centres for a batch.

Loss and gradients do not depend on the third pass. But the running statistics of batch norm do, and evaluation and
export use them: with a momentum of 0.1 mixtures contribute 70 % of them in the published code (passes x1, x1M,
rho x1M), and 53 % here (x1, x1M). The effect on scores was not measured.

The optimiser is that of the published code, a rate of 0.06 with a weight decay of 5e-4; the paper's text states 3e-3
and 1e-4 (modifier `paper_literal`). The preset trains for 200 epochs, the paper for 1000 (`--train.epochs 1000`).
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
    build_region_head,
    check_queue_size,
    encode_shuffled,
    follower,
    region_vectors,
    update_ema_,
)
from mixfast.mix import MixtureConfig, draw, paste_in, place
from mixfast.models import Encoder
from mixfast.ranges import Count, Positive, Share, check_ranges
from mixfast.rng import Generators


@dataclass(frozen=True)
class Approach2ReferenceConfig:
    temperature: Positive = 0.1  # cosines are divided by it
    queue_size: Count = 4096  # past keys in each queue
    ema: Share = 0.99  # share of the key encoder that survives one step

    def __post_init__(self) -> None:
        check_ranges(self, "method")


class Approach2Reference(Method):
    Config = Approach2ReferenceConfig
    summary = "the published code of Approach 2, exact objective: some region terms pair different images"
    config: Approach2ReferenceConfig

    def __init__(self, config: Approach2ReferenceConfig, make_encoder: Callable[[], Encoder], generators: Generators):
        super().__init__(config, make_encoder, generators)
        self.encoder = make_encoder()
        self.key_encoder = follower(self.encoder)
        self.queues = Queues(("whole", "local"), self.encoder.dim, config.queue_size, generators["queue"])
        self.region_head = build_region_head(self.encoder, None, generators["weights"])

    def begin(self, progress: Tensor) -> None:
        update_ema_(self.key_encoder, self.encoder, self.config.ema)

    def views(self, images: Tensor, augment: Augment, generators: Generators) -> dict[str, Tensor]:
        x1, x2 = augment(images)
        cutmix = MixtureConfig()
        drawn = draw(len(images), generators["mix"], cutmix)
        box1, lam = place(x1.flip(0), drawn.lam0, generators["mix"], cutmix)
        box2, outside2 = place(x2.flip(0), drawn.lam0, generators["mix"], cutmix)
        return {
            "query": x1,
            "query_mixed": paste_in(x1, x1.flip(0), box1, lam, drawn.mixed).images,
            "boxes_query_mixed": box1,
            "lam_query_mixed": lam,
            "key": x2,
            "key_mixed": paste_in(x2, x2.flip(0), box2, outside2, drawn.mixed).images,
            "boxes_key_mixed": box2,
        }

    def step(self, views: dict[str, Tensor], generators: Generators) -> Step:
        size, lam = (views["query"].shape[2], views["query"].shape[3]), views["lam_query_mixed"]
        q = unit(self.encoder(views["query"]).z)  # [B, D], as all vectors here
        mixture = self.encoder(views["query_mixed"])
        qM = unit(mixture.z)
        qL, qG = region_vectors(mixture.map, views["boxes_query_mixed"], size, self.region_head)
        with torch.no_grad():
            k = unit(encode_shuffled(self.key_encoder, views["key"], generators["shuffle"]).z)
            kL, _ = region_vectors(
                self.key_encoder(views["key_mixed"]).map, views["boxes_key_mixed"], size, self.region_head
            )
        reverse = 1 - lam
        terms = [
            Term("original", q, k, "whole"),
            Term("mixed", qM, k, "whole", lam),
            Term("mixed_reverse", qM.flip(0), k, "whole", reverse),
            Term("global", qG, k, "whole", lam),
            Term("local", qL, kL, "local", lam),
            Term("global_reverse", qG.flip(0), k, "whole", reverse),
            Term("local_reverse", qL.flip(0), kL, "local", reverse),
        ]
        loss, parts = infonce_sum(terms, self.queues.keys(), self.config.temperature)
        return Step(loss, {**parts, "lam": lam.mean()}, {"whole": k, "local": kL}, terms)

    def update(self, carry: dict[str, Tensor]) -> None:
        self.queues.push_(carry)

    def negatives(self) -> dict[str, Tensor]:
        return self.queues.keys()

    @classmethod
    def check(cls, config: Approach2ReferenceConfig, batch: int) -> None:
        check_queue_size(config, batch)

    @classmethod
    def candidates(cls, config: Approach2ReferenceConfig, batch: int) -> int:
        return 1 + config.queue_size


METHOD = Approach2Reference
PRESETS: dict[str, dict[str, object]] = {"approach2_reference": {"augment.interpolation": "bicubic"}}
HELP = {"approach2_reference": ("2x", "the paper's code, exact objective")}
