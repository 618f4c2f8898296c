"""MoCo + Un-Mix: a mixture of two images must find the keys of both, each as strongly as its share.

    rho reverses the batch      x1M = mixture of x1 and rho(x1); lam: share of x1
    loss = I(q, k, Q) + lam I(qM, k, Q) + (1 - lam) I(rho qM, k, Q)

I is InfoNCE. A step mixes whole images with probability p_global (lam0 x1 + (1 - lam0) rho(x1), lam = lam0), otherwise
regions (CutMix, lam = share outside the box). Mixture N-1-i holds image i with share 1 - lam, hence rho qM against k.
Outputs are reversed, never inputs: batch-norm groups are n mod S, so encode(rho x) = rho(encode x) and no pass is
needed. Keys come from clean views, and mixtures are never enqueued.

    vector   from                               queue that takes it
    q, qM    x1, x1M; query encoder             -
    k        x2; key encoder, shuffled          whole

Where the options come from (Shen et al. 2022, defaults as for CIFAR-10):
    p_global     0.5; 0 mixes regions only, as Un-Mix does on ImageNet and the paper's published code here
    symmetric    adds the query x2 against f_k(x1), and the same mixture of x1 against f_k(x1): six terms; x2 is never
                 mixed, both key sets are enqueued
    mixture      how a step mixes that is not global: cutmix; saliency; mixup: every step mixes whole images; none: no
                 step mixes at all, x1M = x1, and the loss is counted twice
    alpha        1
    box_per_sample, saliency_*, bn_stats    ours
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from mixfast.methods.bases.mixing import MixingConfig, MixingMoCo
from mixfast.mix import Mixture, UnMixConfig, mix


@dataclass(frozen=True)
class MoCoUnMixConfig(MixingConfig, UnMixConfig):
    def __post_init__(self) -> None:
        MixingConfig.__post_init__(self)
        UnMixConfig.__post_init__(self)


class MoCoUnMix(MixingMoCo):
    Config = MoCoUnMixConfig
    summary = "MoCo, and mixtures of the batch with its reverse that must find both images"
    config: MoCoUnMixConfig

    def mixture(self, first: Tensor, second: Tensor, generator: torch.Generator) -> Mixture:
        return mix(first, first.flip(0), generator, self.config, p_global=self.config.p_global)


METHOD = MoCoUnMix
PRESETS: dict[str, dict[str, object]] = {"moco_unmix": {}}
HELP = {"moco_unmix": ("1.75x", "91.34 after 1000 epochs (Un-Mix; symmetric 92.25)")}
