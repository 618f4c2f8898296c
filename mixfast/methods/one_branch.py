"""One branch: the query side alone is mixed, and each region of the mixture must find the clean view of its image.

    x1M = x1 outside box B, a patch inside         q, k: clean view 1, clean view 2       qM: x1M
                                                   G, L: outside, inside of the box       kW: the whole of x2

    other_view      loss = I(q, k, whole) + lam I(qM, k, whole) + (1 - lam) [ I(qG, kW, global) + I(qL, kW, global) ]
    batch_reverse   loss = I(q, k, whole) + lam     [ I(qM, k, whole)     + I(qG, kW, global) ]
                                          + (1-lam) [ I(rho qM, k, whole) + I(rho qL, kW, global) ]

I is InfoNCE, rho reverses the batch, lam is the share of x1M outside B. A step makes three encoder passes instead of
the four of Approaches 1 and 2.

    vector   shows at row i                      from                                         queue that takes it
    q, qM    x1_i; x1M_i                         embedding, query encoder                     -
    qG, qL   x1_i; x2_i or x1_(N-1-i)            region head, outside and inside B of x1M     -
    k        x2_i                                embedding, key encoder, shuffled             whole
    kW       x2_i                                key region head, mean over the whole map     global

The paper weighs mixing in one branch against mixing in both and takes both (section 3.1); no loss, code or number is
given for the first, so the formulas above are our reading of it. A key branch without a mixture has no inside and no
outside. What the region terms of eq. 7 and 8 leave defined is the clean view as a whole, seen through the region head:
the global key of an empty box. So L meets G as in eq. 6, G meets G as in eq. 4, the L-L term has no key and is gone,
and the weights are those of eq. 7 with other_view. With batch_reverse each region has the weight of the image that it
shows; the reversed query is the only one whose patch shows image i.

Where the options come from:
    partner    whose patch, as in Approach 1 (other_view) or Approach 2 (batch_reverse)
    region_head    fc: kW = k, so that one queue is left
    lam, region_layer, mixture, alpha, box_per_sample, saliency_*, bn_stats    as in Approaches 1 and 2
    symmetric    the same with a mixture of x2, with a box of its own, against f_k(x1); ours

Without region terms, `moco_cutmix` is this method.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from mixfast.losses import Term, unit
from mixfast.methods.bases.mixing import Partner
from mixfast.methods.bases.regions import RegionConfig, RegionMethod, Vectors, check_lam
from mixfast.models import Encoder
from mixfast.models.shuffle import encode_shuffled
from mixfast.rng import Generators


@dataclass(frozen=True)
class OneBranchConfig(RegionConfig):
    partner: Partner = "other_view"  # whose patch: that of the image's other view, or of the reversed batch
    lam: Literal["ratio"] | float = "ratio"  # share outside the box, or a constant

    def __post_init__(self) -> None:
        super().__post_init__()
        check_lam(self.lam, "ratio")


class OneBranch(RegionMethod):
    Config = OneBranchConfig
    summary = "CutMix on the query branch alone; its regions meet whole clean views"
    config: OneBranchConfig
    shared_box = False

    def __init__(self, config: OneBranchConfig, make_encoder: Callable[[], Encoder], generators: Generators):
        queues = ["whole"] if config.region_head == "fc" else ["whole", "global"]
        super().__init__(config, make_encoder, generators, queues)
        self.partner = config.partner

    @property
    def mixed_branches(self) -> tuple[str, ...]:
        return ("query", "key") if self.config.symmetric else ("query",)

    def terms(self, query: Vectors, key: Vectors, lam: Tensor) -> list[Term]:
        rest, queue = 1 - lam, "whole" if self.config.region_head == "fc" else "global"
        terms = [
            Term("original", query.whole, key.whole, "whole"),
            Term("mixed", query.mixed, key.whole, "whole", lam),
        ]
        if self.config.partner == "other_view":
            return [
                *terms,
                Term("global", query.outside, key.outside, queue, rest),
                Term("local_global", query.inside, key.outside, queue, rest),
            ]
        back = rest.flip(0)  # a reversed query keeps the weights of the mixture that it came from
        return [
            *terms,
            Term("global", query.outside, key.outside, queue, lam),
            Term("mixed_reverse", query.mixed.flip(0), key.whole, "whole", back),
            Term("local_global", query.inside.flip(0), key.outside, queue, back),
        ]

    @torch.no_grad()
    def _keys(self, views: dict[str, Tensor], name: str, generator: torch.Generator) -> Vectors:
        encoded = encode_shuffled(self.key_encoder, views[name], generator, self.config.region_layer)
        whole = unit(encoded.z)
        everywhere = unit(self._heads()[1](encoded.map.mean(dim=(2, 3))))
        return Vectors(whole, whole, outside=everywhere, inside=everywhere)


METHOD = OneBranch
PRESETS: dict[str, dict[str, object]] = {
    "one_branch": {},
    "one_branch_batch": {"method.partner": "batch_reverse"},
}
HELP = {
    "one_branch": ("1.75x", "none published; mixes the query's side alone"),
    "one_branch_batch": ("1.75x", "none published; patches of the reversed batch"),
}
