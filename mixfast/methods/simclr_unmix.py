"""SimCLR + Un-Mix: a mixture of two images must find both, each as strongly as its share.

X is NT-Xent with both directions, as in SimCLR; rho reverses the batch.

    xM   = mixture of x1 and rho(x1)                 lam = share of x1
    loss = X(z1, z2) + lam X(zM, z2) + (1 - lam) X(rho zM, z2)

    view 1 --+------------------- f -- z1 -----------------+
             +-- mix with rho: xM f -- zM --+-- as it is --+-- NT-Xent with z2, weights 1, lam, 1 - lam
             |                              `-- reversed --+
    view 2 ---------------------- f -- z2 -----------------+

f is the encoder with its head; each of the three images passes it once, with batch statistics of its own. View 2 is
never mixed. Mixture N-1-n holds image n with share 1 - lam, so the reversed vectors rho zM are compared with z2.
Outputs are reversed, never inputs, since batch statistics do not see the order of a batch.

The author of Un-Mix described the loss for SimCLR but never released its code. Un-Mix's two numbers are read from a
figure and are scores of a linear classifier, which cannot be compared with kNN. Where the options come from:

    mask_reverse_negative    ours: in the mixed terms, row N-1-n of either view is a negative of row n of the other
                             although both partly show the same image; this option omits that negative
    p_global, mixture, alpha, box_per_sample    as in MoCo + Un-Mix
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from mixfast.augment import Augment
from mixfast.losses import PairTerm, nt_xent_sum, unit
from mixfast.methods import Method, Step
from mixfast.methods.bases import LIGHTLY
from mixfast.mix import MixtureConfig, mix
from mixfast.models import Encoder
from mixfast.ranges import Positive, Share
from mixfast.rng import Generators


@dataclass(frozen=True)
class SimCLRUnMixConfig(MixtureConfig):
    temperature: Positive = 0.5  # cosines are divided by it
    p_global: Share = 0.5  # share of the steps that mix whole images (mixup); the others mix as `mixture` says
    mask_reverse_negative: bool = False  # a mixture's second image is no negative of it


class SimCLRUnMix(Method):
    Config = SimCLRUnMixConfig
    summary = "SimCLR and mixtures of the batch with its reverse, on one view"
    config: SimCLRUnMixConfig

    def __init__(self, config: SimCLRUnMixConfig, make_encoder: Callable[[], Encoder], generators: Generators):
        super().__init__(config, make_encoder, generators)
        self.encoder = make_encoder()

    def views(self, images: Tensor, augment: Augment, generators: Generators) -> dict[str, Tensor]:
        x1, x2 = augment(images)
        mixture = mix(x1, x1.flip(0), generators["mix"], self.config, p_global=self.config.p_global)
        return {
            "first": x1,
            "second": x2,
            "first_mixed": mixture.images,
            "boxes_first_mixed": mixture.boxes,
            "lam_first_mixed": mixture.lam,
        }

    def step(self, views: dict[str, Tensor], generators: Generators) -> Step:
        lam = views["lam_first_mixed"]
        z1 = unit(self.encoder(views["first"]).z)  # [B, D]
        z2 = unit(self.encoder(views["second"]).z)
        zM = unit(self.encoder(views["first_mixed"]).z)
        excluded = reverse_rows(len(lam), lam.device) if self.config.mask_reverse_negative else None
        terms = [
            PairTerm("original", z1, z2),
            PairTerm("mixed", zM, z2, lam, excluded),
            PairTerm("mixed_reverse", zM.flip(0), z2, (1 - lam).flip(0), excluded),
        ]
        loss, parts = nt_xent_sum(terms, self.config.temperature)
        return Step(loss, {**parts, "lam": lam.mean()}, {}, weight=2.0)  # 1 + lam + (1 - lam)

    @classmethod
    def candidates(cls, config: SimCLRUnMixConfig, batch: int) -> int:
        return 2 * batch - 1


def reverse_rows(batch: int, device: torch.device) -> Tensor:
    """int64 [2 N]: for row i of either of two views, row N-1-i of the other; -1 where that is its positive."""
    anchors = torch.arange(2 * batch, device=device)
    rows = 2 * batch - 1 - anchors
    return torch.where(rows == (anchors + batch) % (2 * batch), -1, rows)


METHOD = SimCLRUnMix
PRESETS: dict[str, dict[str, object]] = {"simclr_unmix": {**LIGHTLY, "model.head": "mlp_bn2"}}
HELP = {"simclr_unmix": ("2.25x", "92.3 linear after 1000 epochs (Un-Mix; SimCLR 91.8)")}
