"""The stages of a network as the `backbone` of torchvision's detectors."""

from collections import OrderedDict
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from mixfast.errors import ConfigError
from mixfast.models import Backbone
from mixfast.models.adapters import Chain
from mixfast.models.resnet import ResNet
from mixfast.models.split_bn import SplitBatchNorm2d

FINEST = 8  # pixels per cell of the finest map that is used
_LEAST_CELLS = 7  # smallest side of a map that is used


class Body(nn.Module):
    """Maps of some stages of `backbone` as torchvision's detectors take them, after a neck if there is one.

    They are computed by `backbone.maps`: torchvision's IntermediateLayerGetter would skip functions that are not child
    modules. If `stored` is set, the next pass uses it in place of the stages' maps.

    Args:
        backbone: its batch norms no longer split a batch.
        layers: numbers of stages, 1 for the first, from fine to coarse.
        neck: from the dictionary of maps to another one; None: no neck.
        out_channels: channels of the output maps.
        frozen: whether the weights of the backbone and the statistics of its batch norms stay unchanged.
    """

    def __init__(
        self, backbone: Backbone, layers: Sequence[int], neck: nn.Module | None, out_channels: int, frozen: bool
    ):
        super().__init__()
        self.backbone, self.layers, self.neck = whole_batches(backbone), list(layers), neck
        self.out_channels, self.frozen = out_channels, frozen
        self.stored: list[Tensor] | None = None
        self.backbone.requires_grad_(not frozen)

    def forward(self, images: Tensor) -> "OrderedDict[str, Tensor]":
        maps, self.stored = self.stored, None
        if maps is None:
            maps = self.backbone.maps(images, self.layers)
        named = OrderedDict((str(number), features) for number, features in enumerate(maps))
        return named if self.neck is None else self.neck(named)

    def train(self, mode: bool = True) -> "Body":
        """Training mode for what is trained."""
        super().train(mode)
        self.backbone.train(mode and not self.frozen)
        return self


class LastStage(nn.Module):
    """The head of a C4 detector: the last stage on maps of regions, one more batch norm, and the mean over cells.

    Args:
        stage: from maps [n, C, h, w] of the stage before to [n, out_channels, h', w'].
        out_channels: of the stage.
        frozen: whether the stage's weights and statistics stay unchanged; the batch norm is trained anyway.
    """

    def __init__(self, stage: nn.Module, out_channels: int, frozen: bool):
        super().__init__()
        self.stage, self.norm, self.frozen = stage.requires_grad_(not frozen), nn.BatchNorm2d(out_channels), frozen

    def forward(self, regions: Tensor) -> Tensor:
        return self.norm(self.stage(regions)).mean((2, 3))

    def train(self, mode: bool = True) -> "LastStage":
        """Training mode for what is trained."""
        super().train(mode)
        self.stage.train(mode and not self.frozen)
        return self


def whole_batches(backbone: Backbone) -> Backbone:
    """Make the batch norms of a backbone use the statistics of the whole batch, in place; returns the backbone."""
    for module in backbone.modules():
        if isinstance(module, SplitBatchNorm2d):
            module.num_splits = 1
    return backbone


def pyramid_layers(backbone: Backbone, side: int) -> list[int]:
    """The last stage of each stride from 8 pixels on that leaves 7 cells or more a side; else of the coarsest stride.

    Args:
        backbone: its strides are read.
        side: of the images in pixels.
    """
    last = {stride: layer for layer, stride in enumerate(backbone.strides, 1) if side >= _LEAST_CELLS * stride}
    if not last:
        raise ConfigError(
            f"images of {side} pixels are too small for a detector on maps of {min(backbone.strides)} pixels per cell "
            f"and more: a map must have {_LEAST_CELLS} cells a side. Give a larger --size."
        )
    coarse = [layer for stride, layer in last.items() if stride >= FINEST]
    return coarse or [last[max(last)]]


def check_layers(backbone: Backbone, layers: Sequence[int]) -> None:
    """Raise a ConfigError unless `layers` are stages with a stride each, from fine to coarse."""
    count = len(backbone.strides)
    strides = [backbone.strides[layer - 1] for layer in layers if 1 <= layer <= count]
    if len(strides) < len(layers) or strides != sorted(set(strides)):
        raise ConfigError(
            f"--layers must be stages from 1 to {count}, each coarser than the one before it (their strides are "
            f"{', '.join(map(str, backbone.strides))}); got {' '.join(map(str, layers))}."
        )


def last_stage(backbone: Backbone) -> nn.Module:
    """The module that makes the last stage's map of the map before it.

    Raises:
        ConfigError: the backbone has no such module, as a transformer of timm has none.
    """
    if isinstance(backbone, ResNet):
        return backbone.get_submodule(f"layer{len(backbone.channels)}")
    if isinstance(backbone, Chain) and len(backbone.ends) > 1:
        first, end = (backbone.names.index(name) for name in backbone.ends[-2:])
        return nn.Sequential(*(backbone.network.get_submodule(name) for name in backbone.names[first + 1 : end + 1]))
    raise ConfigError(
        f"--detector c4 runs the last stage on every region, and {type(backbone).__name__} does not give its last "
        "stage as a module of its own. Use fcos, retinanet or fpn."
    )


@torch.no_grad()
def stage_maps(backbone: Backbone, images: Tensor, layers: Sequence[int], normalise: Any, batch: int) -> list[Tensor]:
    """The maps float32 [N, C, h, w] of `layers` for uint8 images [N, 3, H, W], in evaluation mode."""
    backbone.eval()
    batches = [backbone.maps(normalise(part), list(layers)) for part in images.split(batch)]
    return [torch.cat([part.float() for part in maps]) for maps in zip(*batches, strict=True)]
