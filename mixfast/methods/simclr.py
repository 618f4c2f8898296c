"""SimCLR: each view of an image must find the other one among both views of all images of the batch.

    loss = X(z1, z2)         z1 = f(x1), z2 = f(x2), both trained

X is NT-Xent: the mean over 2 B anchors of -log( e^{cos(a, b)/T} / sum e^{cos(a, c)/T} ), where b is the anchor's other
view and c runs over all rows but the anchor. No queue and no second network.

    vector   from
    z1       view 1, encoder and head
    z2       view 2, encoder and head, with batch statistics of its own; joint_head: the head's over both views

Recipes: `simclr` follows the benchmark of lightly, `simclr_wmse` the code of W-MSE. Google's for CIFAR-10 is
`simclr --optim.name lars --optim.lr 1 --optim.weight_decay 1e-4 --optim.warmup_epochs 10 --augment.brightness 0.4`.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from mixfast.augment import Augment
from mixfast.losses import PairTerm, nt_xent_sum, unit
from mixfast.methods.bases.method import Method, Step
from mixfast.methods.bases.momentum import check
from mixfast.methods.bases.recipes import LIGHTLY, WMSE
from mixfast.models import Encoder
from mixfast.models.encoder import QUERY
from mixfast.rng import Generators
from mixfast.spans import span


@dataclass(frozen=True)
class SimCLRConfig:
    temperature: float = 0.5  # cosines are divided by it
    joint_head: bool = False  # one pass of the head over both views of a pair: its batch norms see 2 B rows (W-MSE)

    def __post_init__(self) -> None:
        check(self.temperature > 0, "temperature", "above 0", self.temperature)


class SimCLR(Method):
    Config: type[SimCLRConfig] = SimCLRConfig
    summary = "two views find each other among all views of the batch; no queue, no mixing"
    config: SimCLRConfig

    def __init__(self, config: SimCLRConfig, make_encoder: Callable[[], Encoder], generators: Generators):
        super().__init__(config, make_encoder, generators)
        self.encoder = make_encoder()

    @classmethod
    def candidates(cls, config: SimCLRConfig, batch: int) -> int:
        return 2 * batch - 1

    def views(self, images: Tensor, augment: Augment, generators: Generators) -> dict[str, Tensor]:
        first, second = augment(images)
        return {"first": first, "second": second}

    def step(self, views: dict[str, Tensor], generators: Generators) -> Step:
        first, second = self.embed(self.encoder.pool(views["first"]), self.encoder.pool(views["second"]))
        loss, parts = nt_xent_sum([PairTerm("original", first, second)], self.config.temperature)
        return Step(loss, parts, {})

    @span(QUERY)
    def embed(self, *features: Tensor) -> list[Tensor]:
        """Unit vectors [B, D] of the pooled features [B, C] of some views."""
        if self.config.joint_head:
            return list(unit(self.encoder.head(torch.cat(features))).chunk(len(features)))
        return [unit(self.encoder.head(one)) for one in features]


METHOD = SimCLR
PRESETS: dict[str, dict[str, object]] = {
    "simclr": {**LIGHTLY, "model.head": "mlp_bn2"},
    "simclr_wmse": {**WMSE, "model.head": "mlp_bn2", "method.joint_head": True},
}
HELP = {
    "simclr": ("1.5x", "84.8 on h after 200 epochs (lightly)"),
    "simclr_wmse": ("1.5x", "88.42 after 1000 epochs (paper; by 5 neighbours on h)"),
}
