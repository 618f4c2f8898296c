"""A configuration turned into objects: what scoring a network needs, and what a training begins with."""

from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mixfast import methods
from mixfast.augment import Augment, AugmentConfig, Views, augment, normalise
from mixfast.config.options import RunConfig
from mixfast.data import Images, Splits
from mixfast.methods import Method
from mixfast.models import Encoder, build_encoder
from mixfast.models.backbone import named_weights
from mixfast.rng import Generators
from mixfast.run import machine, restore
from mixfast.run.precision import autocast, pick_precision
from mixfast.spans import span


@dataclass
class Setup:
    """A method with fresh or loaded weights, the images, and how both are used. `set_up` makes one."""

    config: RunConfig[Any]
    splits: Splits
    train_images: Images  # uint8 [N, 3, H, W], on the device if they are in memory
    device: torch.device
    precision: str  # fp32 or bf16
    memory_format: torch.memory_format
    generators: Generators
    method: Method

    def augmenter(self, generators: Generators, recipe: AugmentConfig | None = None) -> Augment:
        """A function that makes random views of images on the device, by `recipe`, or the configuration's if None."""
        cfg, state = recipe or self.config.augment, generators.counter("augment")
        given = (cfg, state, self.splits.mean, self.splits.std)

        @span("augment")
        def views(images: Tensor, count: int = 2) -> Views:
            return augment(images, *given, count, memory_format=self.memory_format)

        return views

    @span("mix")
    def views(self, images: Tensor, generators: Generators | None = None) -> dict[str, Tensor]:
        """The method's views of uint8 images [B, 3, H, W] on the device, by its own generators or others."""
        draws = self.generators if generators is None else generators
        return self.method.views(images, self.augmenter(draws), draws)

    def normalise(self, images: Tensor) -> Tensor:
        """uint8 images [B, 3, H, W] from anywhere, as the encoder takes them, without randomness."""
        plain = normalise(images.to(self.device), self.splits.mean, self.splits.std)
        return plain.contiguous(memory_format=self.memory_format)

    def autocast(self) -> AbstractContextManager[Any]:
        """The precision of the forward passes."""
        return autocast(self.device, self.precision)

    def load_method(self, state: dict[str, Any], path: Path) -> None:
        """Weights, statistics and queues of a checkpoint read from `path`.

        Raises:
            CheckpointError: of another architecture, or an entry is not as it must be.
        """
        restore.check_fields(state, path)
        restore.load_method(self.method, state, path)


def set_up(
    config: RunConfig[Any], splits: Splits, device: torch.device, initial: Mapping[str, Tensor] | None = None
) -> Setup:
    """The method with fresh weights; every random number from here on follows from `config.seed`.

    Args:
        config: of the run.
        splits: its images.
        device: where it trains.
        initial: weights of the whole backbone, in place of the drawn ones.
    """
    if device.type == "cuda" and device.index is not None:
        torch.cuda.set_device(device)  # for events, and for the generators of a CUDA graph, which take no device
    torch.manual_seed(config.seed)  # for a method from elsewhere that draws without a generator
    generators = Generators(config.seed, device)
    memory_format = machine.pick_memory_format(config.train.memory_format)

    def make_encoder() -> Encoder:
        encoder = build_encoder(config.model, generators["weights"])
        if initial is not None:
            named_weights(encoder.backbone).load_state_dict(initial)
        return encoder

    precision = pick_precision(config.train.precision, device)
    with autocast(device, precision):  # which decides the dtype of queues
        method: Method = methods.load(config.method_name)(config.method, make_encoder, generators)
    return Setup(
        config=config,
        splits=splits,
        train_images=splits.train.images.to(device),
        device=device,
        precision=precision,
        memory_format=memory_format,
        generators=generators,
        method=method.to(memory_format=memory_format).train(),  # type: ignore[call-overload]
    )
