"""BYOL + Un-Mix: a mixture of two images predicts the targets of both, each as strongly as its share.

B is BYOL's loss of two views: d, p and t are as in BYOL. rho reverses the batch.

    xM   = mixture of x1 and rho(x1)                 lam = share of x1
    loss = B(1, 2) + lam B(M, 2) + (1 - lam) B(rho M, 2)         B(a, b) = d(p_a, t_b) + d(p_b, t_a)

    view 1 --+------------------- online, target -- p1, t1 -----------------+
             +-- mix with rho: xM online, target -- pM, tM --+-- as it is --+-- B with view 2, weights 1, lam, 1 - lam
             |                                               `-- reversed --+
    view 2 ---------------------- online, target -- p2, t2 -----------------+

View 2 is never mixed. Mixture N-1-n holds image n with share 1 - lam, so the reversed outputs rho pM and rho tM are
compared with view 2. Outputs are reversed, never inputs, since batch statistics do not see the order of a batch.

The author of Un-Mix described the loss for BYOL but never released its code. Un-Mix's two numbers are read from a
figure and are scores of a linear classifier, which cannot be compared with kNN. The paper has no row of this name, but
the score in its BYOL row is about the published score of this method. Where the options come from:

    mix_online_only    B(M, 2) and B(rho M, 2) keep their first direction only: no mixture goes through the target.
                       No source says which branch is mixed; the author's description has the full B
    ema, ema_schedule, ema_when, loss, predictor_hidden    as in BYOL
    p_global, mixture, alpha, box_per_sample               as in MoCo + Un-Mix
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from mixfast.augment import Augment
from mixfast.methods import Method, Step
from mixfast.methods.bases import build_head, follower, initialise_, update_ema_
from mixfast.methods.byol import PRESETS as BYOL_PRESETS
from mixfast.methods.byol import distance, freeze_last_shift_
from mixfast.mix import MixtureConfig, mix
from mixfast.models import Encoder
from mixfast.ranges import Share, Width
from mixfast.rng import Generators


@dataclass(frozen=True)
class BYOLUnMixConfig(MixtureConfig):
    ema: Share = 0.99  # share of the target that survives one step
    ema_schedule: Literal["fixed", "cosine"] = "fixed"  # cosine: that share grows to 1 over the training
    ema_when: Literal["before", "after"] = "before"  # the target moves before a step's passes, or after the optimiser
    loss: Literal["cosine", "distance"] = "cosine"  # -cos / 2 in each direction, or 2 - 2 cos: four times the gradient
    predictor_hidden: Width = 1024  # size of the predictor's hidden layer
    p_global: Share = 0.5  # share of the steps that mix whole images (mixup); the others mix as `mixture` says
    mix_online_only: bool = False  # mixtures predict and are not predicted: none goes through the target


class BYOLUnMix(Method):
    Config = BYOLUnMixConfig
    summary = "BYOL and mixtures of the batch with its reverse, on one view"
    config: BYOLUnMixConfig

    def __init__(self, config: BYOLUnMixConfig, make_encoder: Callable[[], Encoder], generators: Generators):
        super().__init__(config, make_encoder, generators)
        self.encoder = make_encoder()
        freeze_last_shift_(self.encoder.head)
        self.target_encoder = follower(self.encoder)
        dim = self.encoder.dim
        with torch.device(generators.device):
            self.predictor = build_head("mlp_bn", dim, dim, config.predictor_hidden)
        initialise_(self.predictor, generators["weights"])
        self._share: float | Tensor = config.ema  # of this step; `begin` sets it

    @classmethod
    def follows_progress(cls, config: BYOLUnMixConfig) -> bool:
        return config.ema_schedule == "cosine"

    def begin(self, progress: Tensor) -> None:
        if self.config.ema_schedule == "cosine":
            self._share = 1 - (1 - self.config.ema) * (1 + torch.cos(math.pi * progress)) / 2
        if self.config.ema_when == "before":
            update_ema_(self.target_encoder, self.encoder, self._share)

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
        kind, lam = self.config.loss, views["lam_first_mixed"]
        p1, p2 = self.predict(views["first"]), self.predict(views["second"])
        t1, t2 = self.target(views["first"]), self.target(views["second"])
        pM = self.predict(views["first_mixed"])
        mixed, reverse = distance(pM, t2, kind), distance(pM.flip(0), t2, kind)  # [B]
        if not self.config.mix_online_only:
            tM = self.target(views["first_mixed"])
            mixed, reverse = mixed + distance(p2, tM, kind), reverse + distance(p2, tM.flip(0), kind)
        original = distance(p1, t2, kind) + distance(p2, t1, kind)
        loss = (original + lam * mixed + (1 - lam).flip(0) * reverse).mean()
        rows = {"original": original, "mixed": mixed, "mixed_reverse": reverse, "lam": lam}
        means = {name: values.detach().mean() for name, values in rows.items()}
        return Step(loss, means, {}, weight=2.0)  # 1 + lam + (1 - lam)

    def predict(self, images: Tensor) -> Tensor:
        """p [B, D] of a view."""
        prediction: Tensor = self.predictor(self.encoder(images).z)
        return prediction

    @torch.no_grad()
    def target(self, images: Tensor) -> Tensor:
        """t [B, D] of a view."""
        projection: Tensor = self.target_encoder(images).z
        return projection

    def update(self, carry: dict[str, Tensor]) -> None:
        if self.config.ema_when == "after":
            update_ema_(self.target_encoder, self.encoder, self._share)


METHOD = BYOLUnMix
PRESETS: dict[str, dict[str, object]] = {"byol_unmix": BYOL_PRESETS["byol"]}
HELP = {"byol_unmix": ("3x", "94.1 linear after 1000 epochs (Un-Mix; BYOL 92.4)")}
