"""The network whose weights are written for other libraries, and the ResNet of these libraries that it equals."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from mixfast.errors import ConfigError
from mixfast.models import Backbone, adapters
from mixfast.models.backbone import named_weights
from mixfast.models.resnet import STEMS

WIDTH = 64  # of the first stage of every ResNet of the libraries
DEPTHS = (18, 34, 50)  # that the libraries and this package have


@dataclass(frozen=True)
class Source:
    """A network to write for another library, and the images that it takes."""

    backbone: Backbone  # on the CPU, contiguous, in evaluation mode; its batch norms are ordinary ones
    architecture: dict[str, Any]  # as in export.json
    mean: tuple[float, ...]  # of the three channels R, G, B, in units of [0, 1]
    std: tuple[float, ...]
    images: Tensor  # float32 [n, 3, S, S], normalised, on which maps are compared

    @property
    def weights(self) -> dict[str, Tensor]:
        """The weights and statistics, under the names that an export has."""
        return named_weights(self.backbone).state_dict()

    @property
    def side(self) -> int:
        """Side of the training images, in pixels."""
        return self.images.shape[-1]

    @property
    def stages(self) -> Sequence[int]:
        """The numbers of the stages; 1 is the first."""
        return range(1, len(self.backbone.channels) + 1)

    @torch.no_grad()
    def maps(self) -> list[Tensor]:
        """The maps of `images` after all stages."""
        return self.backbone.maps(self.images, self.stages)

    def named(self) -> adapters.Named | None:
        """The network that `model.backbone` names; None for the ResNet of this package."""
        return adapters.parse(self.architecture["backbone"]) if "backbone" in self.architecture else None


class Layout(NamedTuple):
    """A ResNet that torchvision, timm, detectron2 and mmdet know."""

    depth: int
    stem: str  # a key of `STEMS`

    @property
    def name(self) -> str:
        """The name in torchvision and timm."""
        return f"resnet{self.depth}"


def layout_of(source: Source, target: str, stems: Sequence[str]) -> Layout:
    """The ResNet of other libraries that a network equals.

    Args:
        source: the network.
        target: the library, as --to names it.
        stems: keys of `STEMS` that the library has.

    Raises:
        ConfigError: the library has no such network, or none with this stem.
    """
    supported = f"{target} has ResNets {', '.join(map(str, DEPTHS))} of width {WIDTH}"
    named = source.named()
    if named is None:
        depth, width, stem = (source.architecture[key] for key in ("depth", "width", "stem"))
        if depth not in DEPTHS or width != WIDTH:
            raise ConfigError(
                f"--to {target}: {supported}, and no ResNet-{depth} of width {width}. Use --to onnx, or "
                "mixfast.export.load_backbone of the plain export."
            )
    else:
        layouts = {f"resnet{depth}": depth for depth in DEPTHS}
        if named.source != "torchvision" or named.options or named.name not in layouts:
            raise ConfigError(
                f"--to {target}: {supported}, and this is {source.architecture['backbone']}. The plain export, without "
                "--to, has the names of its own library; --to onnx takes any network."
            )
        depth, stem = layouts[named.name], "imagenet"
    if stem not in stems:
        raise ConfigError(
            f"--to {target}: its ResNets begin with the stem {' or '.join(map(stem_words, stems))}, and this one with "
            f"{stem_words(stem)}. Use --to torchvision or --to onnx, or mixfast.export.load_backbone of the plain "
            "export."
        )
    return Layout(depth, stem)


def stem_words(stem: str) -> str:
    """A key of `STEMS` with the sizes of the stem."""
    kernel, stride, max_pool = STEMS[stem]
    return f"{stem} ({kernel}x{kernel}, stride {stride}, {'' if max_pool else 'no '}max-pool)"


def bytes_of_255(values: Sequence[float]) -> list[float]:
    """Numbers in units of [0, 1] as numbers in [0, 255], the unit of mean and deviation in detectron2 and mmdet."""
    return [255 * value for value in values]


@torch.no_grad()
def outputs_of(network: nn.Module, names: Sequence[str], images: Tensor) -> list[Tensor]:
    """The outputs of the children with these names in the network's own forward pass."""
    outputs: dict[str, Tensor] = {}

    def store(name: str, output: Tensor) -> None:
        outputs[name] = output

    hooks = [
        network.get_submodule(name).register_forward_hook(lambda _, __, output, name=name: store(name, output))
        for name in names
    ]
    network(images)
    for hook in hooks:
        hook.remove()
    return [outputs[name] for name in names]
