"""MoCo whose loss is infinite at the third step of a run."""

from typing import Any

import torch
from torch import Tensor

from mixfast.methods import Step, load

MoCo: Any = load("moco")


class Poisoned(MoCo):
    def begin(self, progress: Tensor) -> None:
        super().begin(progress)
        self.poison = torch.where((progress - 0.5).abs() < 1e-6, torch.inf, 1.0).float()  # step 2 of 4

    def step(self, views: dict[str, Tensor], generators: Any) -> Step:
        out = super().step(views, generators)
        factor = getattr(self, "poison", torch.tensor(torch.inf))  # a replay does not begin a step
        return Step(out.loss * factor, out.parts, out.carry, out.terms)


METHOD = Poisoned
