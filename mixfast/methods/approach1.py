"""Approach 1: each view gets a patch of the other view of the same image; regions of the mixtures meet (eq. 7).

    x1M = x1 outside box B1, x2 inside          q, k: clean view 1, clean view 2      qM: x1M
    x2M = x2 outside box B2, x1 inside          G, L: outside, inside of the box      lam: share of x1M outside B1

    loss = I(q, k, whole) + lam I(qM, k, whole)
         + (1 - lam) [ I(qL, kG, global) + I(qL, kL, local) + I(qG, kG, global) ]

I(query, positive, queue) is InfoNCE (eq. 3 to 6). Every part of every mixture shows image i, so all five positives are
right and lam is a balance, not a label.

    vector   from                                          queue that takes it
    q, qM    embedding of x1, x1M; query encoder           -
    qG, qL   region head, outside and inside B1 in x1M     -
    k        embedding of x2; key encoder, shuffled        whole
    kG, kL   key region head, B2 in x2M; shuffled          global, local

Where the options come from (defaults follow the paper's text):
    box_mode    the text is silent, the figures draw two positions
    lam         "a hyperparameter" beside eq. 7, an area ratio beside eq. 1
    mixed_key   eq. 3 has the clean key, the figures let mixture meet mixture
    eq7_pdf     the printed equation has the local term twice and no global one
    lg_both     adds the mirror image of the local-global term, I(qG, kL, local); ours
    gg_key, queues, region_head, shuffle_mixed    second value: the published code of Approach 2
    mixture     cutmix; saliency centres each box on its own donor (the paper's future work); none pastes nothing and
                keeps boxes, regions and weights, which stay right. mixup has no regions and is refused
    symmetric, box_per_sample, alpha, region_layer, saliency_*, bn_stats    ours
"""

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from mixfast.errors import ConfigError
from mixfast.losses import Term
from mixfast.methods.bases.regions import RegionMethod, TwoBranchConfig, Vectors
from mixfast.models import Encoder
from mixfast.rng import Generators


@dataclass(frozen=True)
class Approach1Config(TwoBranchConfig):
    lg_both: bool = False  # also compare the query's global with the key's local vector
    eq7_pdf: bool = False  # twice the local term instead of the global one, as printed

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.eq7_pdf and self.gg_key != "region":
            raise ConfigError("method.gg_key: with eq7_pdf there is no global term, so leave gg_key at region")


class Approach1(RegionMethod):
    Config = Approach1Config
    summary = "CutMix between the two views of an image, on both branches, with region terms (eq. 7)"
    config: Approach1Config
    partner = "other_view"

    def __init__(self, config: Approach1Config, make_encoder: Callable[[], Encoder], generators: Generators):
        queues = ["whole", "global", "local"] if config.queues == 3 else ["whole", "local"]
        super().__init__(config, make_encoder, generators, queues)

    def terms(self, query: Vectors, key: Vectors, lam: Tensor) -> list[Term]:
        config, rest = self.config, 1 - lam
        mixed_key = key.mixed if config.mixed_key == "mixed" else key.whole
        global_queue = "global" if config.queues == 3 else "whole"
        terms = [
            Term("original", query.whole, key.whole, "whole"),
            Term("mixed", query.mixed, mixed_key, "whole", lam),
            Term("local_global", query.inside, key.outside, global_queue, rest),
            Term("local", query.inside, key.inside, "local", 2 * rest if config.eq7_pdf else rest),
        ]
        if config.gg_key == "whole":
            terms.append(Term("global", query.outside, key.whole, "whole", rest))
        elif not config.eq7_pdf:
            terms.append(Term("global", query.outside, key.outside, global_queue, rest))
        if config.lg_both:
            terms.append(Term("global_local", query.outside, key.inside, "local", rest))
        return terms


METHOD = Approach1
PRESETS: dict[str, dict[str, object]] = {"approach1": {}}
HELP = {"approach1": ("2x", "90.15 after 1000 epochs (paper)")}
