"""The network that is exported: one of a method's encoders at a checkpoint of a run."""

from dataclasses import dataclass

import torch
from torch import Tensor

from mixfast.errors import ConfigError, NonFiniteError
from mixfast.models import Encoder
from mixfast.models.backbone import named_weights
from mixfast.run.folder import RunFolder
from mixfast.run.setup import Setup
from mixfast.run.tensors import not_finite


@dataclass(frozen=True)
class Snapshot:
    """One of a method's encoders after some steps."""

    setup: Setup  # with the weights of that step
    folder: RunFolder  # of the run
    epoch: int
    step: int
    encoder_name: str  # query or key

    @property
    def encoder(self) -> Encoder:
        """The network.

        Raises:
            ConfigError: the method has no such encoder.
        """
        method = self.setup.method
        if self.encoder_name == "query":
            return method.encoder
        followers = [child for child in method.children() if isinstance(child, Encoder) and child is not method.encoder]
        if len(followers) != 1:
            raise ConfigError(
                f"--encoder key: method {self.setup.config.method_name} must have exactly one encoder beside the "
                f"trained one; it has {len(followers) or 'none'}. Omit the option."
            )
        return followers[0]

    def weights(self) -> dict[str, Tensor]:
        """The weights of the backbone, contiguous and on the CPU.

        Raises:
            NonFiniteError: a weight is NaN or infinite.
        """
        state = named_weights(self.encoder.backbone).state_dict()
        if diverged := not_finite(state):
            raise NonFiniteError(f"the backbone is not exported: {', '.join(list(diverged)[:5])} of it is not finite.")
        layout = torch.contiguous_format
        return {name: value.detach().cpu().clone(memory_format=layout) for name, value in state.items()}

    def images(self) -> Tensor:
        """Four images [4, 3, S, S], normalised, on the encoder's device, for the comparison of maps."""
        return self.setup.normalise(self.setup.splits.test.images[:4])
