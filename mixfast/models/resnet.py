"""ResNet backbones with torchvision's parameter names, for small and large images."""

from collections.abc import Sequence

from torch import Tensor, nn

from mixfast.models.backbone import Backbone
from mixfast.models.split_bn import SplitBatchNorm2d, relu_of


class BasicBlock(nn.Module):
    """Two 3x3 convolutions beside a shortcut."""

    expansion = 1

    def __init__(self, in_channels: int, channels: int, stride: int, num_splits: int):
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, channels, 3, stride, 1, bias=False)
        self.bn1 = SplitBatchNorm2d(channels, num_splits)
        self.conv2 = nn.Conv2d(channels, channels, 3, 1, 1, bias=False)
        self.bn2 = SplitBatchNorm2d(channels, num_splits)
        self.downsample = _shortcut(in_channels, channels, stride, num_splits)

    def forward(self, x: Tensor) -> Tensor:
        y = relu_of(self.bn1, self.conv1(x))
        y = self.conv2(y)
        return relu_of(self.bn2, y, x if self.downsample is None else self.downsample(x))


class Bottleneck(nn.Module):
    """1x1, 3x3 (which carries the stride), 1x1 to four times the channels, beside a shortcut."""

    expansion = 4

    def __init__(self, in_channels: int, channels: int, stride: int, num_splits: int):
        super().__init__()
        out_channels = channels * self.expansion
        self.conv1 = nn.Conv2d(in_channels, channels, 1, bias=False)
        self.bn1 = SplitBatchNorm2d(channels, num_splits)
        self.conv2 = nn.Conv2d(channels, channels, 3, stride, 1, bias=False)
        self.bn2 = SplitBatchNorm2d(channels, num_splits)
        self.conv3 = nn.Conv2d(channels, out_channels, 1, bias=False)
        self.bn3 = SplitBatchNorm2d(out_channels, num_splits)
        self.downsample = _shortcut(in_channels, out_channels, stride, num_splits)

    def forward(self, x: Tensor) -> Tensor:
        y = relu_of(self.bn1, self.conv1(x))
        y = relu_of(self.bn2, self.conv2(y))
        y = self.conv3(y)
        return relu_of(self.bn3, y, x if self.downsample is None else self.downsample(x))


def _shortcut(in_channels: int, out_channels: int, stride: int, num_splits: int) -> nn.Sequential | None:
    if stride == 1 and in_channels == out_channels:
        return None
    return nn.Sequential(
        nn.Conv2d(in_channels, out_channels, 1, stride, bias=False), SplitBatchNorm2d(out_channels, num_splits)
    )


# depth: (block, blocks per stage)
LAYOUTS: dict[int, tuple[type[BasicBlock] | type[Bottleneck], tuple[int, ...]]] = {
    8: (BasicBlock, (1, 1, 1)),
    18: (BasicBlock, (2, 2, 2, 2)),
    20: (BasicBlock, (3, 3, 3)),
    34: (BasicBlock, (3, 4, 6, 3)),
    50: (Bottleneck, (3, 4, 6, 3)),
}

# stem: (kernel, stride, max-pool)
STEMS = {"cifar": (3, 1, False), "cifar_s2": (3, 2, False), "imagenet": (7, 2, True)}


class ResNet(Backbone):
    """A residual network up to its last map; stages 2, 3, ... halve the map and double the channels.

    Parameter names are torchvision's (conv1, bn1, layer1 ... ), so weights travel both ways. The forward pass is the
    children one after the other (conv1, bn1, relu, maxpool, layer1 ... ): torchvision's IntermediateLayerGetter assumes
    it. Depth 18 at width 64 with the "cifar" stem maps [B, 3, 32, 32] to [B, 512, 4, 4].

    Args:
        depth: a key of `LAYOUTS`.
        width: channels of the first stage.
        stem: "cifar": 3x3, stride 1; "cifar_s2": 3x3, stride 2; "imagenet": 7x7, stride 2, then 3x3 max-pool, stride 2.
        num_splits: groups of samples with separate batch statistics in training; 1 gives ordinary batch norm.
    """

    def __init__(self, depth: int = 18, width: int = 64, stem: str = "cifar", num_splits: int = 8):
        super().__init__()
        block, counts = LAYOUTS[depth]
        kernel, stride, max_pool = STEMS[stem]
        self.conv1 = nn.Conv2d(3, width, kernel, stride, kernel // 2, bias=False)
        self.bn1 = SplitBatchNorm2d(width, num_splits)
        self.relu = nn.ReLU()
        self.maxpool = nn.MaxPool2d(3, 2, 1) if max_pool else None
        in_channels, self.channels, self.strides = width, [], []
        total = stride * (2 if max_pool else 1)
        for stage, count in enumerate(counts):
            channels = width * 2**stage
            blocks: list[nn.Module] = []
            for index in range(count):
                stride = 2 if stage > 0 and index == 0 else 1
                blocks.append(block(in_channels, channels, stride, num_splits))
                in_channels = channels * block.expansion
            self.add_module(f"layer{stage + 1}", nn.Sequential(*blocks))
            total *= 2 if stage > 0 else 1
            self.channels.append(in_channels)  # of layer1, layer2, ...
            self.strides.append(total)

    def maps(self, images: Tensor, layers: Sequence[int]) -> list[Tensor]:
        x = self.conv1(images)
        own = type(self.relu) is nn.ReLU and not self.relu._forward_hooks  # not replaced, and nobody watches it
        x = relu_of(self.bn1, x) if own else self.relu(self.bn1(x))
        if self.maxpool is not None:
            x = self.maxpool(x)
        found = {}
        for layer in range(1, max(layers) + 1):  # no further: statistics of later stages would move
            x = getattr(self, f"layer{layer}")(x)
            if layer in layers:
                found[layer] = x
        return [found[layer] for layer in layers]
