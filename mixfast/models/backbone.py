"""The interface of a backbone: a network that turns images into feature maps."""

from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor, nn

from mixfast.errors import ConfigError


class Backbone(nn.Module):
    """A network of stages, each ending in a feature map; a subclass sets both attributes and defines `maps`.

    Attributes:
        channels: C_s, the channels of the map after each stage.
        strides: pixels of the image per cell of that map, along a side.
    """

    channels: list[int]
    strides: list[int]

    def maps(self, images: Tensor, layers: Sequence[int]) -> list[Tensor]:
        """The maps after some stages, from one pass.

        Args:
            images: [B, 3, H, W], normalised.
            layers: numbers of stages, 1 for the first; in any order, repetitions allowed.

        Returns:
            A map [B, C_s, h, w] for each of `layers`, in their order.
        """
        raise NotImplementedError

    @property
    def out_channels(self) -> int:
        """Channels of the last map."""
        return self.channels[-1]

    def forward(self, images: Tensor) -> Tensor:
        """The last stage's map [B, C, h, w] of images [B, 3, H, W]."""
        return self.maps(images, [len(self.channels)])[0]


class Adapted(Backbone):
    """A network of another library as a `Backbone`. Exports contain its weights under that library's names."""

    def __init__(self, network: nn.Module):
        super().__init__()
        self.network = network


def named_weights(backbone: Backbone) -> nn.Module:
    """The module whose state dict has the names that the weights have in exports and in other programs."""
    return backbone.network if isinstance(backbone, Adapted) else backbone


def check_maps(backbone: Backbone, images: Tensor, layers: Sequence[int], maps: object) -> None:
    """Raise a ConfigError unless `maps` agree with `backbone.channels` and `backbone.strides` for `layers`."""
    shapes = [getattr(features, "shape", None) for features in maps] if isinstance(maps, list | tuple) else []
    if len(shapes) == len(layers) and all(map(partial(_agrees, backbone, images), layers, shapes)):
        return
    count, channels, strides = len(images), backbone.channels, backbone.strides
    promised = [f"[{count}, {channels[n - 1]}, h, w] at stride {strides[n - 1]}" for n in layers]
    returned = ", ".join("no tensor" if shape is None else str(list(shape)) for shape in shapes)
    raise ConfigError(
        f"backbone {type(backbone).__name__}: maps(images, {list(layers)}) of images {list(images.shape)} must return "
        f"the list that its channels and strides promise, {', '.join(promised)}; got "
        f"{returned or type(maps).__name__}. Correct maps, or the two lists."
    )


def _agrees(backbone: Backbone, images: Tensor, layer: int, shape: torch.Size | None) -> bool:
    """Whether batch and channels are equal, and the sides within a factor of 2, which allows for padding."""
    if shape is None or len(shape) != 4 or shape[:2] != (len(images), backbone.channels[layer - 1]):
        return False
    cells = [side / backbone.strides[layer - 1] for side in images.shape[2:]]
    return all(n / 2 < side and (side < 2 * n or side == 1) for side, n in zip(shape[2:], cells, strict=True))
