"""MoCo: an image's query must find the key of its other view among the keys of past images.

    loss = I(q, k, Q)         q = f_q(x1), k = f_k(x2), f_k follows f_q by exponential moving average

I is InfoNCE. This is the CIFAR recipe published with MoCo's code: v2's cosine schedule and colour jitter, but a linear
head and T = 0.1; `--model.head mlp` gives v2's head. `symmetric` adds I(f_q(x2), f_k(x1), Q): a sum, not a mean, both
terms before the 2 B keys are enqueued.

    vector   from                             queue that takes it
    q        view 1, query encoder            -
    k        view 2, key encoder, shuffled    whole
"""

from collections.abc import Callable

from torch import Tensor

from mixfast.augment import Augment, recipe_options
from mixfast.losses import Term
from mixfast.methods.bases.method import Step
from mixfast.methods.bases.momentum import MomentumConfig, MomentumMethod
from mixfast.models import Encoder
from mixfast.rng import Generators


class MoCo(MomentumMethod):
    Config = MomentumConfig
    summary = "momentum contrast with a queue, no mixing: the baseline"
    config: MomentumConfig

    def __init__(self, config: MomentumConfig, make_encoder: Callable[[], Encoder], generators: Generators):
        super().__init__(config, make_encoder, generators, ["whole"])

    def views(self, images: Tensor, augment: Augment, generators: Generators) -> dict[str, Tensor]:
        query, key = augment(images)
        return {"query": query, "key": key}

    def step(self, views: dict[str, Tensor], generators: Generators) -> Step:
        terms, keys = [], []
        for suffix, query, key in self.directions():
            keys.append({"whole": self.key(views[key], generators["shuffle"])})
            terms.append(Term(f"original{suffix}", self.query(views[query]), keys[-1]["whole"], "whole"))
        return self.total(terms, keys)


METHOD = MoCo
PRESETS: dict[str, dict[str, object]] = {
    "moco": {},
    "moco_sym": {"method.symmetric": True},
    # What v1 did otherwise on ImageNet; its rate fell after 120 and 160 of 200 epochs.
    "moco_v1": {"method.temperature": 0.07, "optim.schedule": "step", **recipe_options("v1")},
}
HELP = {
    "moco": ("1x", "82.6 after 200 epochs (MoCo's CIFAR demo)"),
    "moco_sym": ("2x", "85.3 after 200 epochs (MoCo's CIFAR demo)"),
    "moco_v1": ("1x", "none published for CIFAR-10"),
}
