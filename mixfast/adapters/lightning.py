"""Any method of this package as a LightningModule."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from mixfast.augment import Augment
from mixfast.errors import ConfigError
from mixfast.methods import Method
from mixfast.rng import Generators


class LightningMethod:
    """The hooks of a LightningModule that trains a method: `class Training(LightningMethod, LightningModule)`.

    LightningModule is that of lightning.pytorch or of pytorch_lightning, whichever Trainer is used. The subclass must
    define `configure_optimizers`, for `self.parameters()`. A batch is uint8 images [B, 3, H, W], or a sequence that
    begins with them. Steps are those of the package's own loop: accumulated batches count as one step for moving
    averages and queues. The generators are part of Lightning's checkpoints. One process and one device are supported.

    Args:
        method: built on the device that trains.
        generators: the generators that it was built with.
        augment: makes random views of a batch, as `Method.views` describes.
    """

    trainer: Any  # of LightningModule
    log_dict: Callable[..., None]

    def __init__(self, method: Method, generators: Generators, augment: Augment):
        super().__init__()
        self.method, self.generators, self.augment = method, generators, augment
        self._carries: list[dict[str, Tensor]] = []  # of the batches since the last optimiser step
        self._steps = 0  # optimiser steps done

    def on_fit_start(self) -> None:
        """Raise ConfigError for several processes, or another device than the generators'."""
        device = next(self.method.parameters()).device
        if self.trainer.world_size > 1 or device.type != self.generators.device.type:
            raise ConfigError(
                "LightningMethod: a method trains in one process, on the device of its generators; got "
                f"{self.trainer.world_size} processes, {device} for the weights and {self.generators.device} for the "
                "generators. Give the Trainer devices=1, and Generators the device that it uses."
            )

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        """Update the networks that follow another by moving average, before the first batch of an optimiser step."""
        if not self._carries:
            self._steps = self.trainer.global_step
            share = self._steps / self.trainer.estimated_stepping_batches
            self.method.begin(torch.tensor(share, dtype=torch.float64, device=self.generators.device))

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        """The loss of a batch; logs it and its terms."""
        images = batch if isinstance(batch, Tensor) else batch[0]
        output = self.method.step(self.method.views(images, self.augment, self.generators), self.generators)
        self._carries.append(output.carry)
        self.log_dict({"loss": output.loss.detach(), **output.parts})
        return output.loss

    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Enqueue the keys of an optimiser step after its last batch."""
        if self.trainer.global_step > self._steps:
            carries, self._carries = self._carries, []
            self.method.update({name: torch.cat([carry[name] for carry in carries]) for name in carries[0]})

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Add the states of the generators to a checkpoint."""
        checkpoint["generators"] = self.generators.state_dict()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Load the states of the generators, in place."""
        self.generators.load_state_dict(checkpoint["generators"])
