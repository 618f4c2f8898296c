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

import torch
from torch import Tensor

from mixfast.losses import Term, infonce_sum, unit
from mixfast.methods._momentum import MomentumConfig, MomentumMethod
from mixfast.methods.base import Step
from mixfast.models import Encoder
from mixfast.models.shuffle import encode_shuffled
from mixfast.rng import Generators


class MoCo(MomentumMethod):
    Config = MomentumConfig
    summary = "momentum contrast with a queue, no mixing: the baseline"
    config: MomentumConfig

    def __init__(self, config: MomentumConfig, make_encoder: Callable[[], Encoder], generators: Generators):
        super().__init__(config, make_encoder, generators, ["whole"])

    def views(self, images: Tensor, augment: Callable[[Tensor], Tensor], generators: Generators) -> dict[str, Tensor]:
        return {"query": augment(images), "key": augment(images)}

    def step(self, views: dict[str, Tensor], generators: Generators) -> Step:
        pairs = [("original", views["query"], views["key"])]
        if self.config.symmetric:
            pairs.append(("original_swapped", views["key"], views["query"]))
        terms = []
        for name, x_query, x_key in pairs:
            key = unit(encode_shuffled(self.key_encoder, x_key, generators["shuffle"]).z)
            terms.append(Term(name, unit(self.encoder(x_query).z), key, "whole"))
        loss, parts = infonce_sum(terms, self.negatives(), self.config.temperature)
        return Step(loss, parts, {"whole": torch.cat([term.positive for term in terms])})


METHOD = MoCo
PRESETS: dict[str, dict[str, object]] = {"moco": {}, "moco_sym": {"method.symmetric": True}}
