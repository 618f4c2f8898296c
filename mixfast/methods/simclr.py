"""SimCLR: each view of an image must find the other one among both views of all images of the batch.

X is NT-Xent (Chen et al. 2020), with both directions.

    loss = X(z1, z2) = mean over the 2 N rows a of both views of
                       -log( e^(cos(a, b)/T) / sum over all rows c but a of e^(cos(a, c)/T) ),  b: a's other view

    view 1 -- f -- z1 --+
                        +-- NT-Xent over the 2 N rows of the batch
    view 2 -- f -- z2 --+

f is the encoder with its head; each view passes it with batch statistics of its own. There is no queue and no second
network. Recipes:

    simclr         the benchmark of lightly, whose score after 200 epochs can be checked (its highest of all epochs)
    simclr_wmse    the code of W-MSE; its head sees both views of a pair at once (`joint_head`)
    Google's       simclr --optim.name lars --optim.lr 1 --optim.weight_decay 1e-4 --optim.warmup_epochs 10
                   --augment.brightness 0.4

`simclr` differs from lightly's benchmark in normalisation (statistics of the data set here, of ImageNet there), first
weights (Kaiming's for convolutions here, PyTorch's defaults there) and the stem (its ReLU is missing there). In
`simclr_wmse` the rate falls 50 and 25 epochs before the end, whatever the number of epochs, as in W-MSE's code. Presets
train for 200 epochs, the paper for 1000 (`--train.epochs 1000`).

The paper's 88.42 equals, as far as can be told, the entry of a table by W-MSE, which classifies by the majority of 5
neighbours after training with Adam at 3e-3: the learning rate that the paper states. It is not a score of the weighted
kNN used here. The paper's code holds no SimCLR.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from mixfast.augment import Augment
from mixfast.losses import PairTerm, nt_xent_sum, unit
from mixfast.methods import Method, Step
from mixfast.methods.bases import LIGHTLY, WMSE
from mixfast.models import Encoder
from mixfast.ranges import Positive, check_ranges
from mixfast.rng import Generators


@dataclass(frozen=True)
class SimCLRConfig:
    temperature: Positive = 0.5  # cosines are divided by it
    joint_head: bool = False  # one pass of the head over both views: its batch norms see 2 N rows (W-MSE)

    def __post_init__(self) -> None:
        check_ranges(self, "method")


class SimCLR(Method):
    Config = SimCLRConfig
    summary = "two views find each other among all views of the batch; no queue, no mixing"
    config: SimCLRConfig

    def __init__(self, config: SimCLRConfig, make_encoder: Callable[[], Encoder], generators: Generators):
        super().__init__(config, make_encoder, generators)
        self.encoder = make_encoder()

    def views(self, images: Tensor, augment: Augment, generators: Generators) -> dict[str, Tensor]:
        x1, x2 = augment(images)
        return {"first": x1, "second": x2}

    def step(self, views: dict[str, Tensor], generators: Generators) -> Step:
        if self.config.joint_head:
            h1, h2 = self.encoder.pool(views["first"]), self.encoder.pool(views["second"])
            z1, z2 = self.encoder.head(torch.cat([h1, h2])).chunk(2)
        else:
            z1, z2 = self.encoder(views["first"]).z, self.encoder(views["second"]).z
        loss, parts = nt_xent_sum([PairTerm("original", unit(z1), unit(z2))], self.config.temperature)
        return Step(loss, parts, {})

    @classmethod
    def candidates(cls, config: SimCLRConfig, batch: int) -> int:
        return 2 * batch - 1


METHOD = SimCLR
PRESETS: dict[str, dict[str, object]] = {
    "simclr": {**LIGHTLY, "model.head": "mlp_bn2"},
    "simclr_wmse": {**WMSE, "model.head": "mlp_bn2", "method.joint_head": True},
}
HELP = {
    "simclr": ("1.5x", "84.8 on h after 200 epochs (lightly)"),
    "simclr_wmse": ("1.5x", "88.42 after 1000 epochs (paper; by 5 neighbours on h)"),
}
