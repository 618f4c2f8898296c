"""BYOL: one view's prediction must meet what a following network says of the other view. No negatives.

    loss = d(p1, t2) + d(p2, t1)        p = predictor(f(x)), t = f'(x), f' follows f by exponential moving average

f and f' are encoder and projector (the encoder's head). With c the cosine, as a mean over the batch:

    loss       d              as in                          gradient
    cosine     -c / 2         lightly                        1
    distance   2 - 2 c        the paper (eq. 2), W-MSE       4

    vector   from
    p1, p2   view 1, view 2; online encoder and projector, predictor
    t1, t2   view 1, view 2; target encoder and projector, no gradient

Where the options come from: either the share `ema` of the target that survives a step is fixed, and the target moves
before the step (lightly); or the share grows to 1 by 1 - (1 - ema) (1 + cos(pi progress)) / 2, and the target moves
after the optimiser (the paper, W-MSE; progress counted in steps here, in epochs in W-MSE's code).
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from mixfast.augment import Augment, recipe_options
from mixfast.losses import minus_cosine
from mixfast.methods.bases.method import Method, Step
from mixfast.methods.bases.momentum import check
from mixfast.methods.bases.recipes import LIGHTLY, WMSE
from mixfast.models import Encoder
from mixfast.models.ema import follower, update_ema_
from mixfast.models.heads import build_head
from mixfast.models.initialise import initialise_
from mixfast.rng import Generators
from mixfast.spans import span


@dataclass(frozen=True)
class BYOLConfig:
    ema: float = 0.99  # share of the target that survives one step
    ema_schedule: Literal["fixed", "cosine"] = "fixed"  # cosine: that share grows to 1 over the training
    ema_when: Literal["before", "after"] = "before"  # the target moves before a step's passes, or after the optimiser
    loss: Literal["cosine", "distance"] = "cosine"  # -cos / 2 in each direction, or 2 - 2 cos: four times the gradient
    predictor_hidden: int = 1024  # size of the predictor's hidden layer

    def __post_init__(self) -> None:
        check(0 <= self.ema <= 1, "ema", "in [0, 1]", self.ema)
        check(self.predictor_hidden >= 1, "predictor_hidden", "at least 1", self.predictor_hidden)


class BYOL(Method):
    Config: type[BYOLConfig] = BYOLConfig
    summary = "one view's prediction meets the other view's target; no negatives, no mixing"
    config: BYOLConfig

    def __init__(self, config: BYOLConfig, make_encoder: Callable[[], Encoder], generators: Generators):
        super().__init__(config, make_encoder, generators)
        self.encoder = make_encoder()
        # The predictor's batch norm takes away what is added to every z, so the last shift would never get a gradient.
        shifts = [parameter for key, parameter in self.encoder.head.named_parameters() if key.endswith("bias")]
        nn.init.zeros_(shifts[-1]).requires_grad_(False)
        self.target_encoder = follower(self.encoder)
        dim = self.encoder.dim
        with torch.device(generators.device):
            self.predictor = build_head("mlp_bn", dim, dim, config.predictor_hidden)
        initialise_(self.predictor, generators["weights"])
        self._share: float | Tensor = config.ema  # of this step; `begin` sets it

    def views(self, images: Tensor, augment: Augment, generators: Generators) -> dict[str, Tensor]:
        first, second = augment(images)
        return {"first": first, "second": second}

    def begin(self, progress: Tensor) -> None:
        if self.config.ema_schedule == "cosine":
            self._share = 1 - (1 - self.config.ema) * (1 + torch.cos(math.pi * progress)) / 2
        if self.config.ema_when == "before":
            update_ema_(self.target_encoder, self.encoder, self._share)

    def step(self, views: dict[str, Tensor], generators: Generators) -> Step:
        first, second = (self.predict(views[name]) for name in ("first", "second"))
        target1, target2 = (self.target(views[name]) for name in ("first", "second"))
        loss = (self.distance(first, target2) + self.distance(second, target1)).mean()
        return Step(loss, {"original": loss.detach()}, {})

    def update(self, carry: dict[str, Tensor]) -> None:
        if self.config.ema_when == "after":
            update_ema_(self.target_encoder, self.encoder, self._share)

    @span("heads")
    def predict(self, images: Tensor) -> Tensor:
        """p [B, D] of a view."""
        prediction: Tensor = self.predictor(self.encoder(images).z)
        return prediction

    @torch.no_grad()
    def target(self, images: Tensor) -> Tensor:
        """t [B, D] of a view."""
        encoding: Tensor = self.target_encoder(images).z
        return encoding

    def distance(self, predictions: Tensor, targets: Tensor) -> Tensor:
        """d of every row, [B]."""
        rows = minus_cosine(predictions, targets)
        return rows / 2 if self.config.loss == "cosine" else 2 + 2 * rows


METHOD = BYOL
PRESETS: dict[str, dict[str, object]] = {
    "byol": {
        **LIGHTLY,
        **recipe_options("byol"),
        "model.head": "mlp_bn",
        "model.hidden": 1024,
        "model.dim": 256,
    },
    "byol_wmse": {
        **WMSE,
        "model.head": "mlp_bn",
        "method.ema_schedule": "cosine",
        "method.ema_when": "after",
        "method.loss": "distance",
    },
}
HELP = {
    "byol": ("2x", "86.8 on h after 200 epochs (lightly)"),
    "byol_wmse": ("2x", "92.4 linear after 1000 epochs (Un-Mix)"),
}
