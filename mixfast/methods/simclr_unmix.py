"""SimCLR + Un-Mix: a mixture of two images finds both, each as strongly as its share says.

    rho reverses the batch         xM = mixture of x1 and rho(x1); lam: share of x1
    loss = X(z1, z2) + lam X(zM, z2) + (1 - lam) X(rho zM, z2)

X is NT-Xent with both directions, as in SimCLR; x2 is never mixed. Mixture N-1-i holds image i with share 1 - lam,
hence rho zM: outputs are reversed, never inputs, since batch statistics do not see the order.

    vector   shows at row i            from
    z1, z2   x1_i; x2_i                encoder, head
    zM       x1_i and x1_(N-1-i)       encoder, head; a pass of its own

Where the options come from (the loss for SimCLR was only described, its code never released):
    naive_calls              SimCLR called three times, as one would write it first: x2 goes through the encoder three
                             times and the mixture twice. The same loss, twice the cost, other running statistics
    mask_reverse_negative    ours: in the mixed terms row N-1-i of either view is a negative of row i of the other,
                             though both show the same image in part; this leaves it out
    mixture, alpha, box_per_sample, saliency_*, p_global    as in MoCo + Un-Mix
    bn_stats                 ours
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from mixfast.augment import Augment
from mixfast.losses import PairTerm, nt_xent_sum
from mixfast.methods.bases.method import Step
from mixfast.methods.bases.recipes import LIGHTLY
from mixfast.methods.bases.unmix import PairUnMixConfig, mixed_statistics, unmix_views
from mixfast.methods.simclr import SimCLR, SimCLRConfig
from mixfast.rng import Generators

Pair = tuple[Tensor, Tensor]


@dataclass(frozen=True)
class SimCLRUnMixConfig(SimCLRConfig, PairUnMixConfig):
    naive_calls: bool = False  # encode each of the three pairs anew instead of each view once
    mask_reverse_negative: bool = False  # a mixture's second image is no negative of it

    def __post_init__(self) -> None:
        SimCLRConfig.__post_init__(self)
        PairUnMixConfig.__post_init__(self)


class SimCLRUnMix(SimCLR):
    Config = SimCLRUnMixConfig
    summary = "SimCLR and mixtures of the batch with its reverse, on one view"
    config: SimCLRUnMixConfig

    def views(self, images: Tensor, augment: Augment, generators: Generators) -> dict[str, Tensor]:
        return unmix_views(images, augment, generators, self.config)

    def step(self, views: dict[str, Tensor], generators: Generators) -> Step:
        lam = views["lam_first_mixed"]
        original, mixed, reverse = (self._naive_pairs if self.config.naive_calls else self._pairs)(views)
        excluded = reverse_rows(len(lam), lam.device) if self.config.mask_reverse_negative else None
        terms = [
            PairTerm("original", *original),
            PairTerm("mixed", *mixed, lam, excluded),
            PairTerm("mixed_reverse", *reverse, (1 - lam).flip(0), excluded),
        ]
        loss, parts = nt_xent_sum(terms, self.config.temperature)
        return Step(loss, {**parts, "lam": lam.mean()}, {})

    def _pairs(self, views: dict[str, Tensor]) -> tuple[Pair, Pair, Pair]:
        """(z1, z2), (zM, z2) and (rho zM, z2), every view encoded once."""
        first, second = self.encoder.pool(views["first"]), self.encoder.pool(views["second"])
        z1, z2 = self.embed(first, second)
        with mixed_statistics(self.config, self.encoder):
            mixture = self.encoder.pool(views["first_mixed"])
            # A joint head sees pairs, so it embeds view 2 once more beside the mixture.
            zm, z2_beside = self.embed(mixture, second) if self.config.joint_head else (*self.embed(mixture), z2)
        return (z1, z2), (zm, z2_beside), (zm.flip(0), z2_beside)

    def _naive_pairs(self, views: dict[str, Tensor]) -> tuple[Pair, Pair, Pair]:
        """The same by three calls of SimCLR's model."""
        mixed = views["first_mixed"]
        original = self._pair(views["first"], views["second"])
        with mixed_statistics(self.config, self.encoder):
            return original, self._pair(mixed, views["second"]), self._pair(mixed.flip(0), views["second"])

    def _pair(self, first: Tensor, second: Tensor) -> Pair:
        z1, z2 = self.embed(self.encoder.pool(first), self.encoder.pool(second))
        return z1, z2


def reverse_rows(batch: int, device: torch.device) -> Tensor:
    """int64 [2 N]: for row i of either of two views, row N-1-i of the other; -1 where that is its positive."""
    anchors = torch.arange(2 * batch, device=device)
    rows = 2 * batch - 1 - anchors
    return torch.where(rows == (anchors + batch) % (2 * batch), -1, rows)


METHOD = SimCLRUnMix
PRESETS: dict[str, dict[str, object]] = {"simclr_unmix": {**LIGHTLY, "model.head": "mlp_bn2"}}
HELP = {"simclr_unmix": ("2.25x", "92.3 linear after 1000 epochs (Un-Mix; SimCLR 91.8)")}
