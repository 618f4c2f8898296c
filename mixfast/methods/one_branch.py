"""One branch: the query side alone is mixed, and each region of the mixture must find the clean view of its image.

I(query, positive, queue) is InfoNCE; rho reverses the batch.

    x1M = x1 outside box B, a patch inside                 lam = share of x1M outside B
    G, L: outside (global), inside (local) of the box      kW: the whole of x2 through the region head

    other_view      loss = I(q, k, whole) + lam I(qM, k, whole) + (1 - lam) [ I(qG, kW, global) + I(qL, kW, global) ]
    batch_reverse   loss = I(q, k, whole) + lam     [ I(qM, k, whole)     + I(qG, kW, global) ]
                                          + (1-lam) [ I(rho qM, k, whole) + I(rho qL, kW, global) ]

    view 1 --+----------------- f_q --------------------- q
             +-- paste: x1M --- f_q --+-- head ---------- qM
                                      `-- map -- g_q --+-- qG: outside B
                                                       `-- qL: inside B, shows x2 (other_view) or rho(x1)
    view 2 ------ shuffle ----- f_k --+-- head ---------- k  -> whole
                                      `-- map -- g_k ---- kW: mean over the whole map -> global

g is a linear region head. The key encoder f_k and head g_k follow f_q and g_q by exponential moving average; an arrow
names the queue that takes a key. A step makes three encoder passes instead of the four of Approaches 1 and 2.

The paper discusses mixing in one branch and in both, and chooses both (section 3.1). It gives no loss, code or number
for one branch, so the formulas are our interpretation. A key branch without a mixture has no box, and so no inside. Its
global region is the whole clean view, the outside of an empty box. So local is compared with global as in equation 6,
global with global as in equation 4, and the local-local term has no key and is omitted. With other_view the weights are
those of equation 7. With batch_reverse each region has the weight of the image that it shows, and only the patch of the
reversed query shows image n.

Where the options come from:

    partner     whose patch, as in Approach 1 (other_view) or Approach 2 (batch_reverse)
    symmetric   the same with a mixture of x2, with a box of its own, against f_k(x1); ours
    mixture, alpha, box_per_sample, region_layer    as in Approaches 1 and 2

Without region terms, `moco_cutmix` is this method.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from mixfast.augment import Augment
from mixfast.losses import Term, infonce_sum, unit
from mixfast.methods import Method, Step
from mixfast.methods.bases import (
    Queues,
    build_region_head,
    check_option,
    check_queue_size,
    concatenated,
    directions,
    encode_shuffled,
    follower,
    region_vectors,
    update_ema_,
)
from mixfast.mix import MixtureConfig, draw, paste_in, place
from mixfast.models import Encoder
from mixfast.ranges import Count, Positive, Share
from mixfast.rng import Generators


@dataclass(frozen=True)
class OneBranchConfig(MixtureConfig):
    temperature: Positive = 0.1  # cosines are divided by it
    queue_size: Count = 4096  # past keys in each queue
    ema: Share = 0.99  # share of the key networks that survives one step
    symmetric: bool = False  # add the loss with the views' roles exchanged; doubles the cost
    partner: Literal["batch_reverse", "other_view"] = "other_view"  # whose patch: image N-1-n, or the other view
    region_layer: int | None = None  # stage whose map gives the region vectors, 1 is the first; none: the last

    def __post_init__(self) -> None:
        super().__post_init__()
        check_option(
            self.mixture != "mixup", "mixture", "cutmix, saliency or none (mixup has no regions)", self.mixture
        )


class OneBranch(Method):
    Config = OneBranchConfig
    summary = "CutMix on the query branch alone; its regions meet whole clean views"
    config: OneBranchConfig

    def __init__(self, config: OneBranchConfig, make_encoder: Callable[[], Encoder], generators: Generators):
        super().__init__(config, make_encoder, generators)
        self.encoder = make_encoder()
        self.key_encoder = follower(self.encoder)
        self.queues = Queues(("whole", "global"), self.encoder.dim, config.queue_size, generators["queue"])
        self.region_head = build_region_head(self.encoder, config.region_layer, generators["weights"])
        self.key_region_head = follower(self.region_head)

    def begin(self, progress: Tensor) -> None:
        update_ema_(self.key_encoder, self.encoder, self.config.ema)
        update_ema_(self.key_region_head, self.region_head, self.config.ema)

    def views(self, images: Tensor, augment: Augment, generators: Generators) -> dict[str, Tensor]:
        x1, x2 = augment(images)
        views = {"query": x1, "key": x2}
        drawn = draw(len(images), generators["mix"], self.config)
        for _, name, other in directions(self.config.symmetric):
            donor = views[other] if self.config.partner == "other_view" else views[name].flip(0)
            boxes, outside = place(donor, drawn.lam0, generators["mix"], self.config)
            mixture = paste_in(views[name], donor, boxes, outside, drawn.mixed)
            views[f"{name}_mixed"] = mixture.images
            views[f"boxes_{name}_mixed"] = boxes  # also where nothing is pasted: the regions stay
            views[f"lam_{name}_mixed"] = outside if self.config.partner == "other_view" else mixture.lam
        return views

    def step(self, views: dict[str, Tensor], generators: Generators) -> Step:
        layer, size = self.config.region_layer, (views["query"].shape[2], views["query"].shape[3])
        terms: list[Term] = []
        keys: list[dict[str, Tensor]] = []
        for suffix, query, key in directions(self.config.symmetric):
            q = unit(self.encoder(views[query]).z)  # [B, D], as all vectors here
            mixture = self.encoder(views[f"{query}_mixed"], layer)
            qM = unit(mixture.z)
            qL, qG = region_vectors(mixture.map, views[f"boxes_{query}_mixed"], size, self.region_head)
            with torch.no_grad():
                clean = encode_shuffled(self.key_encoder, views[key], generators["shuffle"], layer)
                k = unit(clean.z)
                kW = unit(self.key_region_head(clean.map.mean(dim=(2, 3))))
            lam = views[f"lam_{query}_mixed"]
            terms += [
                Term(f"original{suffix}", q, k, "whole"),
                Term(f"mixed{suffix}", qM, k, "whole", lam),
            ]
            if self.config.partner == "other_view":
                terms += [
                    Term(f"global{suffix}", qG, kW, "global", 1 - lam),
                    Term(f"local_global{suffix}", qL, kW, "global", 1 - lam),
                ]
            else:
                reverse = (1 - lam).flip(0)  # a reversed query keeps the weight of the mixture that it came from
                terms += [
                    Term(f"global{suffix}", qG, kW, "global", lam),
                    Term(f"mixed_reverse{suffix}", qM.flip(0), k, "whole", reverse),
                    Term(f"local_global{suffix}", qL.flip(0), kW, "global", reverse),
                ]
            keys.append({"whole": k, "global": kW})
        loss, parts = infonce_sum(terms, self.queues.keys(), self.config.temperature)
        return Step(loss, {**parts, "lam": views["lam_query_mixed"].mean()}, concatenated(keys), terms)

    def update(self, carry: dict[str, Tensor]) -> None:
        self.queues.push_(carry)

    def negatives(self) -> dict[str, Tensor]:
        return self.queues.keys()

    @classmethod
    def check(cls, config: OneBranchConfig, batch: int) -> None:
        check_queue_size(config, batch)

    @classmethod
    def candidates(cls, config: OneBranchConfig, batch: int) -> int:
        return 1 + config.queue_size


METHOD = OneBranch
PRESETS: dict[str, dict[str, object]] = {
    "one_branch": {},
    "one_branch_batch": {"method.partner": "batch_reverse"},
}
HELP = {
    "one_branch": ("1.75x", "none published; only queries are mixed"),
    "one_branch_batch": ("1.75x", "none published; patches come from the reversed batch"),
}
