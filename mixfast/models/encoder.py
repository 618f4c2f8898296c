"""Encoder: a backbone and the head that turns its average pool into an embedding."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from mixfast.models.backbone import Backbone, check_maps
from mixfast.spans import span

QUERY, KEY = "query forward", "key forward"  # spans of passes with and without gradient


def _kind() -> str:
    return QUERY if torch.is_grad_enabled() else KEY


class Encoding(NamedTuple):
    """The outputs of an encoder for a batch of images."""

    z: Tensor  # [B, D] embedding, not normalised
    h: Tensor  # [B, C] average pool of the last map
    map: Tensor  # [B, C', h, w] feature map of the requested layer; the last by default


class Encoder(nn.Module):
    """z = head(mean over pixels of backbone(x))."""

    def __init__(self, backbone: Backbone, head: nn.Module):
        super().__init__()
        self.backbone = backbone
        self.head = head
        self._compiled: Callable[[Tensor, Sequence[int]], list[Tensor]] | None = None

    @property
    def layers(self) -> int:
        """Number of the backbone's last layer; 1 is the first."""
        return len(self.backbone.channels)

    @property
    def dim(self) -> int:
        """D, the size of the embedding."""
        return [m for m in self.head.modules() if isinstance(m, nn.Linear)][-1].out_features

    def compile_training(self) -> None:
        """Run the backbone by torch.compile in training mode from now on; weights and their names do not change.

        In evaluation, where batch sizes differ, the backbone is not compiled. A copy of the encoder that is made later
        would run the compiled backbone of this one.
        """
        self._compiled = torch.compile(self.backbone.maps, dynamic=False)

    def maps(self, images: Tensor, layers: Sequence[int]) -> list[Tensor]:
        """The backbone's maps [B, C, h, w] of images [B, 3, H, W] after each of some layers, from one pass."""
        compiled = self._compiled if self.training else None
        maps = (compiled or self.backbone.maps)(images, layers)
        check_maps(self.backbone, images, layers, maps)
        return maps

    @span(_kind)
    def pool(self, images: Tensor) -> Tensor:
        """h alone, [B, C], of images [B, 3, H, W]; for a head that takes several views at once."""
        (features,) = self.maps(images, [self.layers])
        return features.mean(dim=(2, 3))

    @span(_kind)
    def forward(self, images: Tensor, layer: int | None = None) -> Encoding:
        """[B, 3, H, W] normalised images to their `Encoding`; `layer` (1 ... `layers`) chooses the map."""
        last = self.layers
        features, chosen = self.maps(images, [last, layer or last])
        h = features.mean(dim=(2, 3))
        return Encoding(self.head(h), h, chosen)
