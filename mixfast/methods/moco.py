"""MoCo: the query of one view of an image must find the key of the other view among the keys of past images.

The baseline of every method with a queue. I(query, positive, queue) is InfoNCE.

    loss = I(q, k, Q) = mean over the batch of -log( e^(q.k/T) / (e^(q.k/T) + sum over keys c in Q of e^(q.c/T)) )
    symmetric adds I(f_q(x2), f_k(x1), Q)

    view 1 -- f_q (trained) ------------------ q --+
                                                   +-- InfoNCE against the keys in Q
    view 2 -- shuffle -- f_k (follows f_q) --- k --+
                                               `-- enqueued into Q after the step

The key encoder f_k follows f_q by exponential moving average. This is the CIFAR-10 recipe published with MoCo's code:
the cosine schedule and colour jitter of version 2, but a linear head, no blur and T = 0.1, with split and shuffled
batch norm. Its kNN curve: 48 % after 10 epochs, 73 % after 50, 82.6 % after 200, 86.3 % after 400, 88.7 % after 800.

The demo counts epochs from 1 in its cosine, so that its last epoch runs at rate 0, and a run of one epoch trains
nothing. Presets count from 0, as torch's CosineAnnealingLR does; the modifier `moco_demo` takes the demo's schedule to
the letter.

`symmetric` is a sum of two terms, not a mean; both sets of keys are enqueued, as [k2, k1] where the demo has [k1, k2].
`moco_v1` is what version 1 did otherwise on ImageNet: T = 0.07, a rate that falls to a tenth after 60 and 80 % of the
epochs (120 and 160 of 200, counted from 0 as in its script), colour jitter in its strength and order. `moco_v2` is
this recipe with version 2's head and augmentation. `moco_v2_imagenet` is version 2 as published (Chen et al. 2020) but
for the images, which are squares of 224 pixels before a crop is cut from them: ResNet-50, batch 256 in 8 groups, 65,536
keys, m = 0.999, T = 0.2, rate 0.03 with a cosine, weight decay 1e-4, 200 epochs.

The paper reports 88.97 % after 1000 epochs, which agrees with others' runs (Un-Mix: 89.11). Its text states a learning
rate of 3e-3 and a weight decay of 1e-4; its code and MoCo's have 0.06 and 5e-4, and so has this preset (the modifier
`paper_literal` takes the text's). The preset trains for 200 epochs, as the demo does.
"""

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from mixfast.augment import Augment, recipe_options
from mixfast.losses import Term, infonce_sum, unit
from mixfast.methods import MODIFIERS, Method, Step
from mixfast.methods.bases import (
    Queues,
    check_queue_size,
    concatenated,
    directions,
    encode_shuffled,
    follower,
    update_ema_,
)
from mixfast.models import Encoder
from mixfast.ranges import Count, Positive, Share, check_ranges
from mixfast.rng import Generators


@dataclass(frozen=True)
class MoCoConfig:
    temperature: Positive = 0.1  # cosines are divided by it
    queue_size: Count = 4096  # past keys in the queue
    ema: Share = 0.99  # share of the key encoder that survives one step
    symmetric: bool = False  # add the loss with the views' roles exchanged; doubles the cost

    def __post_init__(self) -> None:
        check_ranges(self, "method")


class MoCo(Method):
    Config = MoCoConfig
    summary = "momentum contrast with a queue, no mixing: the baseline"
    config: MoCoConfig

    def __init__(self, config: MoCoConfig, make_encoder: Callable[[], Encoder], generators: Generators):
        super().__init__(config, make_encoder, generators)
        self.encoder = make_encoder()
        self.key_encoder = follower(self.encoder)
        self.queues = Queues(("whole",), self.encoder.dim, config.queue_size, generators["queue"])

    def begin(self, progress: Tensor) -> None:
        update_ema_(self.key_encoder, self.encoder, self.config.ema)

    def views(self, images: Tensor, augment: Augment, generators: Generators) -> dict[str, Tensor]:
        x1, x2 = augment(images)
        return {"query": x1, "key": x2}

    def step(self, views: dict[str, Tensor], generators: Generators) -> Step:
        terms: list[Term] = []
        keys: list[dict[str, Tensor]] = []
        for suffix, query, key in directions(self.config.symmetric):
            k = unit(encode_shuffled(self.key_encoder, views[key], generators["shuffle"]).z)  # [B, D]
            q = unit(self.encoder(views[query]).z)
            terms.append(Term(f"original{suffix}", q, k, "whole"))
            keys.append({"whole": k})
        loss, parts = infonce_sum(terms, self.queues.keys(), self.config.temperature)
        return Step(loss, parts, concatenated(keys), terms)

    def update(self, carry: dict[str, Tensor]) -> None:
        self.queues.push_(carry)

    def negatives(self) -> dict[str, Tensor]:
        return self.queues.keys()

    @classmethod
    def check(cls, config: MoCoConfig, batch: int) -> None:
        check_queue_size(config, batch)

    @classmethod
    def candidates(cls, config: MoCoConfig, batch: int) -> int:
        return 1 + config.queue_size


METHOD = MoCo
_V2: dict[str, object] = {"model.head": "mlp", **recipe_options("v2")}
PRESETS: dict[str, dict[str, object]] = {
    "moco": {},
    "moco_sym": {"method.symmetric": True},
    "moco_v1": {
        "method.temperature": 0.07,
        "optim.schedule": "step",
        "optim.steps": (0.6, 0.8),
        **recipe_options("v1"),
    },
    "moco_v2": _V2,
    "moco_v2_imagenet": {**MODIFIERS["imagenet"], **_V2, "method.temperature": 0.2},
}
HELP = {
    "moco": ("1x", "82.6 after 200 epochs (MoCo's CIFAR demo)"),
    "moco_sym": ("2x", "85.3 after 200 epochs (MoCo's CIFAR demo)"),
    "moco_v1": ("1x", "none published for CIFAR-10"),
    "moco_v2": ("1x", "none published for CIFAR-10"),
    "moco_v2_imagenet": ("1x", "67.5 linear after 200 epochs (MoCo v2, on ImageNet)"),
}
