"""BYOL: the prediction from one view must match the output of a slowly moving network for the other view.

There are no negatives. With c the cosine of a prediction and a target, as a mean over the batch:

    loss = d(p1, t2) + d(p2, t1)        p = predictor(f(x)), t = f'(x), f' follows f by exponential moving average

    loss       d              as in                          gradient
    cosine     -c / 2         lightly                        1
    distance   2 - 2 c        the paper (eq. 2), W-MSE       4 times as large: needs a lower rate under SGD

    view 1 -- f: encoder, projector -- predictor -- p1 --+-- d --+-- t2 -- f': target -- view 2
    view 2 -- f: encoder, projector -- predictor -- p2 --+-- d --+-- t1 -- f': target -- view 1

The projector is the encoder's head. The target f' has no predictor and gets no gradient. Where the options come from:
either the share `ema` of the target that survives a step is fixed, and the target moves before the step (lightly); or
the share grows to 1 by 1 - (1 - ema) (1 + cos(pi progress)) / 2, and the target moves after the optimiser (Grill et al.
2020, W-MSE; progress is counted in steps here, in epochs in W-MSE's code).

`byol` follows the benchmark of lightly, whose number is the highest of all epochs. `byol_wmse` follows W-MSE, whose
code is the origin of Un-Mix's baseline: the loss `distance`, a cosine schedule for the target's rate, and Adam with a
rate that falls 50 and 25 epochs before the end, whatever the number of epochs.

`byol` differs from that benchmark in normalisation (statistics of the data set here, of ImageNet there), first weights
(Kaiming's for convolutions here, PyTorch's defaults there), the stem (its ReLU is missing there) and the last bias of
the projector (fixed at 0 here; trained there, which only decays it, since the predictor's batch norm removes it).
Presets train for 200 epochs, the paper for 1000 (`--train.epochs 1000`).

The paper's 94.20 is probably not a kNN score of plain BYOL: lightly reports 91.0 (kNN, 800 epochs), solo-learn 92.58
(linear, 1000 epochs). It is about the score that Un-Mix shows for BYOL *with* Un-Mix under a linear classifier. The
paper's code contains no BYOL.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from mixfast.augment import Augment, recipe_options
from mixfast.losses import minus_cosine
from mixfast.methods import Method, Step
from mixfast.methods.bases import LIGHTLY, WMSE, build_head, follower, initialise_, update_ema_
from mixfast.models import Encoder
from mixfast.ranges import Share, Width, check_ranges
from mixfast.rng import Generators
from mixfast.spans import span


@dataclass(frozen=True)
class BYOLConfig:
    ema: Share = 0.99  # share of the target that survives one step
    ema_schedule: Literal["fixed", "cosine"] = "fixed"  # cosine: that share grows to 1 over the training
    ema_when: Literal["before", "after"] = "before"  # the target moves before a step's passes, or after the optimiser
    loss: Literal["cosine", "distance"] = "cosine"  # -cos / 2 in each direction, or 2 - 2 cos: four times the gradient
    predictor_hidden: Width = 1024  # size of the predictor's hidden layer

    def __post_init__(self) -> None:
        check_ranges(self, "method")


class BYOL(Method):
    Config = BYOLConfig
    summary = "one view's prediction meets the other view's target; no negatives, no mixing"
    config: BYOLConfig

    def __init__(self, config: BYOLConfig, make_encoder: Callable[[], Encoder], generators: Generators):
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
    def follows_progress(cls, config: BYOLConfig) -> bool:
        return config.ema_schedule == "cosine"

    def begin(self, progress: Tensor) -> None:
        if self.config.ema_schedule == "cosine":
            self._share = 1 - (1 - self.config.ema) * (1 + torch.cos(math.pi * progress)) / 2
        if self.config.ema_when == "before":
            update_ema_(self.target_encoder, self.encoder, self._share)

    def views(self, images: Tensor, augment: Augment, generators: Generators) -> dict[str, Tensor]:
        x1, x2 = augment(images)
        return {"first": x1, "second": x2}

    def step(self, views: dict[str, Tensor], generators: Generators) -> Step:
        p1, p2 = self.predict(views["first"]), self.predict(views["second"])
        t1, t2 = self.target(views["first"]), self.target(views["second"])
        loss = (distance(p1, t2, self.config.loss) + distance(p2, t1, self.config.loss)).mean()
        return Step(loss, {"original": loss.detach()}, {})

    @span("heads")
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


def freeze_last_shift_(projector: nn.Module) -> None:
    """Fix the projector's last bias at 0: the predictor's batch norm removes it, so it would never get a gradient."""
    shifts = [parameter for key, parameter in projector.named_parameters() if key.endswith("bias")]
    nn.init.zeros_(shifts[-1]).requires_grad_(False)


def distance(predictions: Tensor, targets: Tensor, kind: Literal["cosine", "distance"]) -> Tensor:
    """d of every row, [B]."""
    rows = minus_cosine(predictions, targets)
    return rows / 2 if kind == "cosine" else 2 + 2 * rows


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
