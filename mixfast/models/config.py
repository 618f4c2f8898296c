"""The network of a run: the `model` section of its configuration, and the function that builds the encoder."""

from dataclasses import dataclass
from typing import Annotated, Any, Literal

import torch
from torch import nn

from mixfast.errors import ConfigError
from mixfast.models import adapters
from mixfast.models.backbone import Backbone
from mixfast.models.encoder import Encoder
from mixfast.models.heads import Head, build_head
from mixfast.models.initialise import initialise_
from mixfast.models.resnet import LAYOUTS, ResNet
from mixfast.models.split_bn import convert_split_bn
from mixfast.ranges import Count, Range, Width, check_ranges
from mixfast.world import current

RESNET = "resnet"  # the backbone of this package, with options of its own
RESNET_OPTIONS = ("depth", "width", "stem")


# Below 8 channels, oneDNN's strided 1x1 convolution writes outside its buffer on processors with AVX2 alone
# (torch 2.14, channels_last).
Channels = Annotated[int, Range(8, 2**16)]


@dataclass(frozen=True)
class ModelConfig:
    """The `model` section: backbone, head and the size of the embedding."""

    backbone: str = RESNET  # or torchvision:NAME, timm:NAME, package.module:factory (docs/backbones.md)
    depth: int = 18  # ResNet: 18, 34, 50 (four stages), or 8, 20 (three stages, for small images and budgets)
    width: Channels = 64  # channels of the first stage; each further stage doubles them
    stem: Literal["cifar", "cifar_s2", "imagenet"] = "cifar"  # 3x3 stride 1, 3x3 stride 2, or 7x7 stride 2 + max-pool
    dim: Width = 128  # size of the embedding z
    head: Head = "linear"  # average pool -> z; mlp: with a hidden layer; bn: batch norm after it; bn2: after z too
    hidden: Width | None = None  # size of the head's hidden layer; none: the features'
    bn_splits: Count = 8  # groups of samples with separate batch statistics in the backbone; 1: ordinary batch norm

    def __post_init__(self) -> None:
        if self.backbone != RESNET:
            adapters.parse(self.backbone)
            if foreign := [name for name in RESNET_OPTIONS if getattr(self, name) != getattr(ModelConfig, name)]:
                raise ConfigError(
                    f"model.{', model.'.join(foreign)}: options of the backbone {RESNET}, not of {self.backbone}; omit "
                    "them. Options of its factory follow its name as ,key=value"
                )
        if self.depth not in LAYOUTS:
            raise ConfigError(
                f"model.depth must be one of {', '.join(map(str, LAYOUTS))}; got {self.depth}. For another network "
                "omit it and give --model.backbone, such as torchvision:resnet101"
            )
        check_ranges(self, "model")

    @property
    def architecture(self) -> dict[str, Any]:
        """The options that decide the backbone's structure."""
        names = RESNET_OPTIONS if self.backbone == RESNET else ("backbone",)
        return {name: getattr(self, name) for name in names}

    @property
    def title(self) -> str:
        """The name of the backbone in messages and tables, such as "ResNet-18 of width 64"."""
        return f"ResNet-{self.depth} of width {self.width}" if self.backbone == RESNET else self.backbone


def build_encoder(config: ModelConfig, generator: torch.Generator) -> Encoder:
    """A freshly initialised encoder of `config` on the generator's device; the generator alone decides the weights."""
    backbone: Backbone
    if config.backbone == RESNET:
        with torch.device(generator.device):
            backbone = resnet = ResNet(config.depth, config.width, config.stem, config.bn_splits)
        # PyTorch's own initialisation for the 3x3 stem that replaces torchvision's 7x7 stem
        initialise_(backbone, generator, uniform=[] if config.stem == "imagenet" else [resnet.conv1])
    else:
        backbone = adapters.draw(config.backbone, generator)
        _split_norms(backbone, config)
    with torch.device(generator.device):
        head = build_head(config.head, backbone.out_channels, config.dim, config.hidden)
    initialise_(head, generator)
    return Encoder(backbone, head)


def _split_norms(backbone: Backbone, config: ModelConfig) -> None:
    """Give the batch norms `config.bn_splits` groups; with several processes also for 1, to share their statistics."""
    shared = current().size > 1 and any(isinstance(norm, nn.BatchNorm2d) for norm in backbone.modules())
    if config.bn_splits == 1 and not shared:
        return
    cure = "Give --model.bn_splits 1, for its norms as they are."
    cure = "Train it with one process." if config.bn_splits == 1 else cure
    try:
        convert_split_bn(backbone, config.bn_splits, name=config.backbone)
    except ConfigError as error:
        raise ConfigError(f"model.bn_splits {config.bn_splits}: {error} {cure}") from error
