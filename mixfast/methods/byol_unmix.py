"""BYOL + Un-Mix: a mixture of two images predicts the targets of both, each as strongly as its share says.

    rho reverses the batch         xM = mixture of x1 and rho(x1); lam: share of x1
    loss = B(1, 2) + lam B(M, 2) + (1 - lam) B(rho M, 2)         B(a, b) = d(p_a, t_b) + d(p_b, t_a)

d, p and t as in BYOL; x2 is never mixed. Mixture N-1-i holds image i with share 1 - lam, hence rho pM and rho tM:
outputs are reversed, never inputs, since batch statistics do not see the order.

    vector       shows at row i            from
    p1, p2       x1_i; x2_i                online encoder and projector, predictor
    pM           x1_i and x1_(N-1-i)       the same; a pass of its own
    t1, t2, tM   as p                      target encoder and projector, no gradient

Where the options come from (the loss for BYOL was only described, its code never released):
    mix_online_only    B(M, 2) and B(rho M, 2) keep their first direction only: no mixture goes through the target.
                       Which branch to mix was asked and never answered; the description has the full B
    mixture, alpha, box_per_sample, saliency_*, p_global    as in MoCo + Un-Mix
    bn_stats           ours
"""

from dataclasses import dataclass

from torch import Tensor

from mixfast.augment import Augment
from mixfast.methods.bases.method import Step
from mixfast.methods.bases.unmix import PairUnMixConfig, mixed_statistics, unmix_views
from mixfast.methods.byol import BYOL, BYOLConfig
from mixfast.methods.byol import PRESETS as BYOL_PRESETS
from mixfast.rng import Generators


@dataclass(frozen=True)
class BYOLUnMixConfig(BYOLConfig, PairUnMixConfig):
    mix_online_only: bool = False  # mixtures predict and are not predicted

    def __post_init__(self) -> None:
        BYOLConfig.__post_init__(self)
        PairUnMixConfig.__post_init__(self)


class BYOLUnMix(BYOL):
    Config = BYOLUnMixConfig
    summary = "BYOL and mixtures of the batch with its reverse, on one view"
    config: BYOLUnMixConfig

    def views(self, images: Tensor, augment: Augment, generators: Generators) -> dict[str, Tensor]:
        return unmix_views(images, augment, generators, self.config)

    def step(self, views: dict[str, Tensor], generators: Generators) -> Step:
        lam = views["lam_first_mixed"]
        p1, p2 = (self.predict(views[name]) for name in ("first", "second"))
        t1, t2 = (self.target(views[name]) for name in ("first", "second"))
        with mixed_statistics(self.config, self):
            pm = self.predict(views["first_mixed"])
            mixed, reverse = self.distance(pm, t2), self.distance(pm.flip(0), t2)
            if not self.config.mix_online_only:
                tm = self.target(views["first_mixed"])
                mixed, reverse = mixed + self.distance(p2, tm), reverse + self.distance(p2, tm.flip(0))
        original = self.distance(p1, t2) + self.distance(p2, t1)
        loss = (original + lam * mixed + (1 - lam).flip(0) * reverse).mean()
        rows = {"original": original, "mixed": mixed, "mixed_reverse": reverse, "lam": lam}
        return Step(loss, {name: values.detach().mean() for name, values in rows.items()}, {})


METHOD = BYOLUnMix
PRESETS: dict[str, dict[str, object]] = {"byol_unmix": BYOL_PRESETS["byol"]}
HELP = {"byol_unmix": ("3x", "94.1 linear after 1000 epochs (Un-Mix; BYOL 92.4)")}
