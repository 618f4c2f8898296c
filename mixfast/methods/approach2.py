"""Approach 2: each view gets a patch of another image of its batch; regions of the mixtures meet (eq. 8).

    rho reverses the batch                      q, k: clean view 1, clean view 2      qM: x1M
    x1M = x1 outside box B1, rho(x1) inside     G, L: outside, inside of the box      lam: share of x1M outside B1
    x2M = x2 outside box B2, rho(x2) inside

    loss = I(q, k, whole) + lam     [ I(qM, k, whole)      + I(qG, kG, global) + I(qL, kL, local) ]
                          + (1-lam) [ I(rho qM, k, whole)  + GG^R + LL^R ]

I(query, positive, queue) is InfoNCE. Mixture N-1-i holds image i with share 1 - lam, hence rho qM against k. Outputs
are reversed, never inputs: batch-norm groups are n mod S, so encode(rho x) = rho(encode x) and no pass is needed.

    vector   shows at row i      from                                        queue that takes it
    q, qM    x1_i; x1M_i         embedding, query encoder                    -
    qG, qL   x1_i; x1_(N-1-i)    region head, outside and inside B1 of x1M   -
    k        x2_i                embedding, key encoder, shuffled            whole
    kG, kL   x2_i; x2_(N-1-i)    key region head, B2 of x2M; shuffled        global, local

Where the options come from:
    reverse_regions    what GG^R and LL^R are; the paper's sentence and its code pair different images
        paired   both sides reversed: right pairs, but the same as in GG and LL, which then weigh lam + 1 - lam
        cross    I(rho qL, kG, global) and I(rho qG, kL, local): right pairs, local against global
        literal  I(rho qG, kG, global) and I(rho qL, kL, local), as printed: every positive is another image
    ll_weight    eq. 8 gives the local term lam, though the patch that it shows has the share 1 - lam
    gg_key, queues, region_head, shuffle_mixed    second value: the published code, whose exact objective is the preset
                 approach2_reference; there, terms without a queue of their own read the whole images' keys
    box_mode     code and figures draw two positions from one size
    lam, mixed_key    as in Approach 1
    mixture      as in Approach 1; both branches of a step are mixed or neither. What is not mixed shows one image, so
                 that lam = 1 and no reversed term counts
    symmetric, alpha, region_layer, saliency_*, bn_stats    ours
    box_per_sample    ours; a reversed query keeps the lam of its own mixture
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from mixfast.losses import Term
from mixfast.methods.bases.regions import RegionMethod, TwoBranchConfig, Vectors
from mixfast.models import Encoder
from mixfast.rng import Generators


@dataclass(frozen=True)
class Approach2Config(TwoBranchConfig):
    reverse_regions: Literal["paired", "cross", "literal"] = "paired"  # which vectors the reversed region terms compare
    ll_weight: Literal["lam", "share"] = "lam"  # weight of the local term: lam (eq. 8), or the patch's share 1 - lam


class Approach2(RegionMethod):
    Config = Approach2Config
    summary = "CutMix with another image of the batch, on both branches, with region terms (eq. 8)"
    config: Approach2Config
    partner = "batch_reverse"

    def __init__(self, config: Approach2Config, make_encoder: Callable[[], Encoder], generators: Generators):
        reads_global = config.queues == 3 and (config.gg_key == "region" or config.reverse_regions == "cross")
        queues = ["whole", "global", "local"] if reads_global else ["whole", "local"]
        super().__init__(config, make_encoder, generators, queues)

    def terms(self, query: Vectors, key: Vectors, lam: Tensor) -> list[Term]:
        config = self.config
        mixed_key = key.mixed if config.mixed_key == "mixed" else key.whole
        global_key = key.whole if config.gg_key == "whole" else key.outside
        key_queue = "global" if config.queues == 3 else "whole"
        global_queue = "whole" if config.gg_key == "whole" else key_queue
        back = 1 - lam.flip(0)  # a reversed query keeps the weights of the mixture that it came from
        local_weight = 1 - lam if config.ll_weight == "share" else lam
        terms = [
            Term("original", query.whole, key.whole, "whole"),
            Term("mixed", query.mixed, mixed_key, "whole", lam),
            Term("mixed_reverse", query.mixed.flip(0), mixed_key, "whole", back),
        ]
        if config.reverse_regions == "paired":
            # The mean over rows does not see a common reversal, so GG^R = GG and LL^R = LL: computed once.
            both = local_weight + 1 - lam
            return [
                *terms,
                Term("global", query.outside, global_key, global_queue),
                Term("local", query.inside, key.inside, "local", both),
            ]
        terms += [
            Term("global", query.outside, global_key, global_queue, lam),
            Term("local", query.inside, key.inside, "local", local_weight),
        ]
        inside, outside = query.inside.flip(0), query.outside.flip(0)
        if config.reverse_regions == "cross":
            return [
                *terms,
                Term("local_global", inside, key.outside, key_queue, back),
                Term("global_local", outside, key.inside, "local", back),
            ]
        return [
            *terms,
            Term("global_reverse", outside, global_key, global_queue, back),
            Term("local_reverse", inside, key.inside, "local", back),
        ]


METHOD = Approach2
PRESETS: dict[str, dict[str, object]] = {
    "approach2": {},
    "approach2_reference": {
        "method.queues": 2,
        "method.gg_key": "whole",
        "method.region_head": "shared_live",
        "method.reverse_regions": "literal",
        "method.shuffle_mixed": False,
        "augment.interpolation": "bicubic",
    },
}
HELP = {
    "approach2": ("2x", "89.97 after 1000 epochs (paper)"),
    "approach2_reference": ("2x", "the paper's code, exact objective"),
}
