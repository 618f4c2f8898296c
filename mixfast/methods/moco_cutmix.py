"""MoCo + CutMix: beside the clean view, a mixture of it must find the key of its image, as strongly as its share.

I(query, positive, queue) is InfoNCE.

    x1M  = x1 outside a box, a patch inside          lam = share of x1M that is x1
    loss = I(q, k, Q) + lam I(qM, k, Q)

    view 1 --+------------------------ f_q -- q  --+
             +-- paste a patch: x1M -- f_q -- qM --+-- InfoNCE against Q, weights 1 and lam
    view 2 ------ shuffle ------------ f_k -- k  --+
                                              `-- enqueued after the step; mixtures never are

The key encoder f_k follows f_q by exponential moving average. The paper's section 4.1 has this loss. Where the options
come from:

    partner     batch_reverse: the patch shows x1 of the reversed batch, as in the published code. other_view: it shows
                x2 of the same image, so that the loss is equation 7 without region terms; that variant fits the paper's
                remark that mixing within the batch is not always better
    mixture     cutmix; saliency is the paper's future work; mixup; none: x1M = x1, and the loss is counted twice
    symmetric   adds the same mixture against f_k(x1), and the original term of x2; ours, as in MoCo + Un-Mix
    alpha       as in CutMix and mixup
    box_per_sample    ours

The published code has a further term, (1 - lam) I(rho qM, k, Q) with rho the reversal of the batch: the mixture must
find the image of its patch too. That is Un-Mix with regions only: `moco_unmix --method.p_global 0`.

The optimiser is that of the published code, a rate of 0.06 with a weight decay of 5e-4; the paper's text states 3e-3
and 1e-4 (modifier `paper_literal`). The preset trains for 200 epochs, the paper for 1000 (`--train.epochs 1000`).
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from mixfast.augment import Augment
from mixfast.losses import Term, infonce_sum, unit
from mixfast.methods import Method, Step
from mixfast.methods.bases import (
    Queues,
    check_queue_size,
    concatenated,
    directions,
    encode_shuffled,
    follower,
    update_ema_,
)
from mixfast.mix import MixtureConfig, mix
from mixfast.models import Encoder
from mixfast.ranges import Count, Positive, Share
from mixfast.rng import Generators


@dataclass(frozen=True)
class MoCoCutMixConfig(MixtureConfig):
    temperature: Positive = 0.1  # cosines are divided by it
    queue_size: Count = 4096  # past keys in the queue
    ema: Share = 0.99  # share of the key encoder that survives one step
    symmetric: bool = False  # add the loss with the views' roles exchanged; the same view is mixed
    partner: Literal["batch_reverse", "other_view"] = "batch_reverse"  # whose patch: image N-1-n, or the other view


class MoCoCutMix(Method):
    Config = MoCoCutMixConfig
    summary = "MoCo, and CutMix of the queries with the reversed batch or with the other view"
    config: MoCoCutMixConfig

    def __init__(self, config: MoCoCutMixConfig, make_encoder: Callable[[], Encoder], generators: Generators):
        super().__init__(config, make_encoder, generators)
        self.encoder = make_encoder()
        self.key_encoder = follower(self.encoder)
        self.queues = Queues(("whole",), self.encoder.dim, config.queue_size, generators["queue"])

    def begin(self, progress: Tensor) -> None:
        update_ema_(self.key_encoder, self.encoder, self.config.ema)

    def views(self, images: Tensor, augment: Augment, generators: Generators) -> dict[str, Tensor]:
        x1, x2 = augment(images)
        donor = x2 if self.config.partner == "other_view" else x1.flip(0)
        mixture = mix(x1, donor, generators["mix"], self.config)
        return {
            "query": x1,
            "query_mixed": mixture.images,
            "boxes_query_mixed": mixture.boxes,
            "lam_query_mixed": mixture.lam,
            "key": x2,
        }

    def step(self, views: dict[str, Tensor], generators: Generators) -> Step:
        pairs = [
            (
                suffix,
                unit(self.encoder(views[query]).z),  # q [B, D]
                unit(encode_shuffled(self.key_encoder, views[key], generators["shuffle"]).z),  # k
            )
            for suffix, query, key in directions(self.config.symmetric)
        ]
        qM, lam = unit(self.encoder(views["query_mixed"]).z), views["lam_query_mixed"]
        terms: list[Term] = []
        for suffix, q, k in pairs:
            terms += [
                Term(f"original{suffix}", q, k, "whole"),
                Term(f"mixed{suffix}", qM, k, "whole", lam),
            ]
        loss, parts = infonce_sum(terms, self.queues.keys(), self.config.temperature)
        return Step(loss, {**parts, "lam": lam.mean()}, concatenated([{"whole": k} for _, _, k in pairs]), terms)

    def update(self, carry: dict[str, Tensor]) -> None:
        self.queues.push_(carry)

    def negatives(self) -> dict[str, Tensor]:
        return self.queues.keys()

    @classmethod
    def check(cls, config: MoCoCutMixConfig, batch: int) -> None:
        check_queue_size(config, batch)

    @classmethod
    def candidates(cls, config: MoCoCutMixConfig, batch: int) -> int:
        return 1 + config.queue_size


METHOD = MoCoCutMix
PRESETS: dict[str, dict[str, object]] = {"moco_cutmix": {}}
HELP = {"moco_cutmix": ("1.75x", "91.31 after 1000 epochs (paper)")}
