"""Approach 1: each view gets a patch of the other view of the same image, and regions of the two mixtures are compared.

This is the paper's equation 7. I(query, positive, queue) is InfoNCE (equations 3 to 6).

    x1M = x1 outside box B1, x2 inside      x2M = x2 outside box B2, x1 inside      lam = share of x1M outside B1
    G, L: outside (global), inside (local) of the box of a mixture

    loss = I(q, k, whole) + lam I(qM, k, whole)
         + (1 - lam) [ I(qL, kG, global) + I(qL, kL, local) + I(qG, kG, global) ]

    view 1 --+-- f_q ----------------------------------------- q
             +-- x2 in B1: x1M -- f_q --+-- head ------------- qM
                                        `-- map -- g_q --+-- qG: outside B1, shows view 1
                                                         `-- qL: inside B1, shows view 2
    view 2 --+-- shuffle -- f_k ------------------------------ k   -> whole
             +-- x1 in B2: x2M -- shuffle -- f_k -- map -- g_k --+-- kG: outside B2, shows view 2 -> global
                                                                 `-- kL: inside B2, shows view 1  -> local

g is a linear region head. The key encoder f_k and head g_k follow f_q and g_q by exponential moving average; an arrow
names the queue that takes a key. Region vectors are means over the bilinearly enlarged map inside and outside the box,
computed without that map (`mixfast.masked_upsample_pool`).

Every part of every mixture shows image n. So all five positives show the image of their query, no label is mixed, and
lam only balances the terms. With two independent boxes, the pixels of the query's patch usually lie inside the key's
region of the local-global term, so that query and key contain the same pixels; with `box_mode shared` they never do.

No code of this method was published. Where the paper leaves a choice, the default follows its text:

    box_mode    the text is silent, the figures draw two positions
    lam         "a hyperparameter" beside equation 7, an area ratio beside equation 1
    mixed_key   equation 3 has the clean key, the figures compare mixture with mixture
    mixture     cutmix; saliency centres each box on its own donor (the paper's future work); none pastes nothing and
                keeps boxes, regions and weights. mixup has no regions and is refused
    symmetric, box_per_sample, region_layer, patch    ours

The patch of a query shows pixels of the key's view, and the patch of a key shows pixels of the query's view. A network
can then find positives by the colours and the crop that both sides share, without knowing what the image shows. The
diagnostics `top1_fresh` of a run measure how often a positive is still found when the patches come from views that no
other vector shares. `patch fresh` uses such patches in training.

The printed equation 7 has the local term twice and no global term; the paper's text has the loss above. The paper
reports one run, without a spread.

The optimiser is that of the paper's code for its other methods, a rate of 0.06 with a weight decay of 5e-4; the paper's
text states 3e-3 and 1e-4 (modifier `paper_literal`). The preset trains for 200 epochs, the paper for 1000
(`--train.epochs 1000`).
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
class Approach1Config(MixtureConfig):
    temperature: Positive = 0.1  # cosines are divided by it
    queue_size: Count = 4096  # past keys in each queue
    ema: Share = 0.99  # share of the key networks that survives one step
    symmetric: bool = False  # add the loss with the views' roles exchanged; doubles the cost
    patch: Literal["other_view", "fresh"] = "other_view"  # the patch shows the other view, or a third and fourth one
    box_mode: Literal["independent", "shared"] = "independent"  # the key's box has its own centre, or is the query's
    lam: Literal["ratio", "mean"] | Share = "ratio"  # share outside the query's box, mean of both boxes', or a constant
    mixed_key: Literal["clean", "mixed"] = "clean"  # key of the mixed term: the clean view, or its mixture
    region_layer: int | None = None  # stage whose map gives the region vectors, 1 is the first; none: the last

    def __post_init__(self) -> None:
        super().__post_init__()
        check_option(
            self.mixture != "mixup", "mixture", "cutmix, saliency or none (mixup has no regions)", self.mixture
        )


class Approach1(Method):
    Config = Approach1Config
    summary = "CutMix between the two views of an image, on both branches, with region terms (eq. 7)"
    config: Approach1Config

    def __init__(self, config: Approach1Config, make_encoder: Callable[[], Encoder], generators: Generators):
        super().__init__(config, make_encoder, generators)
        self.encoder = make_encoder()
        self.key_encoder = follower(self.encoder)
        self.queues = Queues(("whole", "global", "local"), self.encoder.dim, config.queue_size, generators["queue"])
        self.region_head = build_region_head(self.encoder, config.region_layer, generators["weights"])
        self.key_region_head = follower(self.region_head)

    def begin(self, progress: Tensor) -> None:
        update_ema_(self.key_encoder, self.encoder, self.config.ema)
        update_ema_(self.key_region_head, self.region_head, self.config.ema)

    def views(self, images: Tensor, augment: Augment, generators: Generators) -> dict[str, Tensor]:
        fresh = self.config.patch == "fresh"
        x1, x2, *others = augment(images, 4 if fresh else 2)
        patch1, patch2 = others if fresh else (x2, x1)
        drawn = draw(len(images), generators["mix"], self.config)
        box1, outside1 = place(patch1, drawn.lam0, generators["mix"], self.config)
        box2, outside2 = box1, outside1
        if self.config.box_mode == "independent":
            box2, outside2 = place(patch2, drawn.lam0, generators["mix"], self.config)
        return {
            "query": x1,
            "query_mixed": paste_in(x1, patch1, box1, outside1, drawn.mixed).images,
            "boxes_query_mixed": box1,
            "lam_query_mixed": outside1,
            "key": x2,
            "key_mixed": paste_in(x2, patch2, box2, outside2, drawn.mixed).images,
            "boxes_key_mixed": box2,
            "lam_key_mixed": outside2,
        }

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
                k = unit(encode_shuffled(self.key_encoder, views[key], generators["shuffle"]).z)
                mixture = encode_shuffled(self.key_encoder, views[f"{key}_mixed"], generators["shuffle"], layer)
                kM = unit(mixture.z)
                kL, kG = region_vectors(mixture.map, views[f"boxes_{key}_mixed"], size, self.key_region_head)
            lam = self.balance(views[f"lam_{query}_mixed"], views[f"lam_{key}_mixed"])
            terms += [
                Term(f"original{suffix}", q, k, "whole"),
                Term(f"mixed{suffix}", qM, kM if self.config.mixed_key == "mixed" else k, "whole", lam),
                Term(f"local_global{suffix}", qL, kG, "global", 1 - lam),
                Term(f"local{suffix}", qL, kL, "local", 1 - lam),
                Term(f"global{suffix}", qG, kG, "global", 1 - lam),
            ]
            keys.append({"whole": k, "global": kG, "local": kL})
        loss, parts = infonce_sum(terms, self.queues.keys(), self.config.temperature)
        lam = self.balance(views["lam_query_mixed"], views["lam_key_mixed"])
        return Step(loss, {**parts, "lam": lam.mean()}, concatenated(keys), terms)

    def balance(self, query_outside: Tensor, key_outside: Tensor) -> Tensor:
        """lam [B], from the shares [B] of both mixtures outside their boxes."""
        if self.config.lam == "ratio":
            return query_outside
        if self.config.lam == "mean":
            return (query_outside + key_outside) / 2
        return torch.full_like(query_outside, self.config.lam)

    def update(self, carry: dict[str, Tensor]) -> None:
        self.queues.push_(carry)

    def negatives(self) -> dict[str, Tensor]:
        return self.queues.keys()

    @classmethod
    def check(cls, config: Approach1Config, batch: int) -> None:
        check_queue_size(config, batch)

    @classmethod
    def candidates(cls, config: Approach1Config, batch: int) -> int:
        return 1 + config.queue_size


METHOD = Approach1
PRESETS: dict[str, dict[str, object]] = {"approach1": {}}
HELP = {"approach1": ("2x", "90.15 after 1000 epochs (paper)")}
