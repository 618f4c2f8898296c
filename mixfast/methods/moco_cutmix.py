"""MoCo + CutMix: beside the clean view, a mixture of it must find the key of its image, as strongly as its share.

    x1M = x1 outside a box, a patch inside; lam: share of x1M that is x1
    loss = I(q, k, Q) + lam I(qM, k, Q)   [ + (1 - lam) I(rho qM, k, Q) with reverse_term ]

I is InfoNCE, rho reverses the batch. Keys come from clean views, and mixtures are never enqueued.

    vector   from                               queue that takes it
    q, qM    x1, x1M; query encoder             -
    k        x2; key encoder, shuffled          whole

Where the options come from (the paper's section 4.1 has the loss without the last term):
    partner          batch_reverse: the patch shows x1 of the reversed batch, as in the published code. other_view: it
                     shows x2 of the same image, which makes the loss eq. 7 without region terms; the paper's remark
                     on this row fits that reading too
    reverse_term     the published code always has it: the image that the patch shows must be found as well. With
                     other_view it would pair different images
    mixture          cutmix; saliency is the paper's future work; mixup; none: x1M = x1, and the loss is counted twice
    symmetric        adds the same terms of the same mixture against f_k(x1), and the original term of x2; ours, as in
                     MoCo + Un-Mix
    alpha, box_per_sample, saliency_*, bn_stats    ours
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from mixfast.errors import ConfigError
from mixfast.methods.bases.mixing import MixingConfig, MixingMoCo, Partner, donor
from mixfast.mix import Mixture, mix
from mixfast.models import Encoder
from mixfast.rng import Generators


@dataclass(frozen=True)
class MoCoCutMixConfig(MixingConfig):
    partner: Partner = "batch_reverse"  # whose patch: that of the reversed batch, or of the image's other view
    reverse_term: bool = False  # the mixture must find the image of its patch too (published code)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.reverse_term and self.partner == "other_view":
            raise ConfigError(
                "method.reverse_term needs method.partner batch_reverse; got other_view: its mixtures show one image, "
                "and a reversed mixture would meet the key of another"
            )


class MoCoCutMix(MixingMoCo):
    Config = MoCoCutMixConfig
    summary = "MoCo, and CutMix of the queries with the reversed batch or with the other view"
    config: MoCoCutMixConfig

    def __init__(self, config: MoCoCutMixConfig, make_encoder: Callable[[], Encoder], generators: Generators):
        super().__init__(config, make_encoder, generators)
        self.reverse = config.reverse_term

    def mixture(self, first: Tensor, second: Tensor, generator: torch.Generator) -> Mixture:
        return mix(first, donor(self.config.partner, first, second), generator, self.config)


METHOD = MoCoCutMix
PRESETS: dict[str, dict[str, object]] = {"moco_cutmix": {}}
HELP = {"moco_cutmix": ("1.75x", "91.31 after 1000 epochs (paper)")}
