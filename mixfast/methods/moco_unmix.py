"""MoCo + Un-Mix: a mixture of two images must find the keys of both, each as strongly as its share.

I(query, positive, queue) is InfoNCE; rho reverses the batch.

    x1M  = mixture of x1 and rho(x1)                 lam = share of x1
    loss = I(q, k, Q) + lam I(qM, k, Q) + (1 - lam) I(rho qM, k, Q)

    view 1 --+---------------------- f_q -- q  ------------------+
             +-- mix with rho: x1M - f_q -- qM --+-- as it is ---+-- InfoNCE against Q, weights 1, lam, 1 - lam
             |                                   `-- reversed ---+
    view 2 ------ shuffle ---------- f_k -- k  ------------------+
                                            `-- enqueued after the step; mixtures never are

The key encoder f_k follows f_q by exponential moving average. A step mixes whole images with probability p_global
(lam0 x1 + (1 - lam0) rho(x1), lam = lam0), otherwise regions (CutMix, lam = share outside the box). Mixture N-1-n holds
image n with share 1 - lam, so the reversed query rho qM is compared with k. Outputs are reversed, never inputs:
batch-norm groups are n mod S, so encode(rho x) = rho(encode x), and no further pass is needed.

Where the options come from (Shen et al. 2022, defaults as for CIFAR-10):

    p_global    0.5; 0 mixes regions only, as Un-Mix does on ImageNet and the paper's published code does here
    symmetric   adds the query x2 against f_k(x1), and the same mixture of x1 against f_k(x1): six terms; x2 is never
                mixed, both key sets are enqueued
    mixture     the mixture of steps that are not global: cutmix; saliency; mixup: every step mixes whole images; none:
                no step mixes at all, x1M = x1, and the loss counts twice
    alpha       1
    box_per_sample    ours

Where this differs from Un-Mix's code, with the same loss and gradients:

    symmetric   the mixture is encoded once, as the last of x1, x2, x1M; Un-Mix encodes it once per direction (x1, x1M,
                x2, x1M). Running statistics of batch norm, which evaluation and export use, are therefore 37 % of
                mixtures here and 53 % there (momentum 0.1); the effect on scores was not measured
    queue       both key sets are enqueued as [k2, k1], in Un-Mix as [k1, k2]; every key lives equally long
    boxes       one without a pixel (0.4 % of Un-Mix's draws at 32 pixels) is widened to one pixel

Un-Mix reports a gain of 2.2 points over MoCo at 1000 epochs (89.11 to 91.34). The paper's 91.34 has the same digits, so
it is probably quoted from Un-Mix: the published code parses the probability of mixing whole images but never uses it.

The optimiser is that of the published code, a rate of 0.06 with a weight decay of 5e-4; the paper's text states 3e-3
and 1e-4 (modifier `paper_literal`). The preset trains for 200 epochs, the paper for 1000 (`--train.epochs 1000`).
"""

from collections.abc import Callable
from dataclasses import dataclass

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
class MoCoUnMixConfig(MixtureConfig):
    temperature: Positive = 0.1  # cosines are divided by it
    queue_size: Count = 4096  # past keys in the queue
    ema: Share = 0.99  # share of the key encoder that survives one step
    symmetric: bool = False  # add the loss with the views' roles exchanged; the same view is mixed
    p_global: Share = 0.5  # share of the steps that mix whole images (mixup); the others mix as `mixture` says


class MoCoUnMix(Method):
    Config = MoCoUnMixConfig
    summary = "MoCo, and mixtures of the batch with its reverse that must find both images"
    config: MoCoUnMixConfig

    def __init__(self, config: MoCoUnMixConfig, make_encoder: Callable[[], Encoder], generators: Generators):
        super().__init__(config, make_encoder, generators)
        self.encoder = make_encoder()
        self.key_encoder = follower(self.encoder)
        self.queues = Queues(("whole",), self.encoder.dim, config.queue_size, generators["queue"])

    def begin(self, progress: Tensor) -> None:
        update_ema_(self.key_encoder, self.encoder, self.config.ema)

    def views(self, images: Tensor, augment: Augment, generators: Generators) -> dict[str, Tensor]:
        x1, x2 = augment(images)
        mixture = mix(x1, x1.flip(0), generators["mix"], self.config, p_global=self.config.p_global)
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
                Term(f"mixed_reverse{suffix}", qM.flip(0), k, "whole", (1 - lam).flip(0)),
            ]
        loss, parts = infonce_sum(terms, self.queues.keys(), self.config.temperature)
        return Step(loss, {**parts, "lam": lam.mean()}, concatenated([{"whole": k} for _, _, k in pairs]), terms)

    def update(self, carry: dict[str, Tensor]) -> None:
        self.queues.push_(carry)

    def negatives(self) -> dict[str, Tensor]:
        return self.queues.keys()

    @classmethod
    def check(cls, config: MoCoUnMixConfig, batch: int) -> None:
        check_queue_size(config, batch)

    @classmethod
    def candidates(cls, config: MoCoUnMixConfig, batch: int) -> int:
        return 1 + config.queue_size


METHOD = MoCoUnMix
PRESETS: dict[str, dict[str, object]] = {"moco_unmix": {}}
HELP = {"moco_unmix": ("1.75x", "91.34 after 1000 epochs (Un-Mix; symmetric 92.25)")}
