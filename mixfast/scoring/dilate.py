"""Finer maps from a trained ResNet: the last stages keep their weights, without stride and with dilated kernels."""

import copy

from torch import nn

from mixfast.models import Backbone, Encoder
from mixfast.models.backbone import named_weights
from mixfast.models.resnet import ResNet

CELLS = 14  # of a map along a side: 224 pixels at stride 16


def dilated(encoder: Encoder, stride: int | None, layer: int | None = None) -> Encoder:
    """A copy of `encoder` whose map after `layer` has the given total stride.

    From that layer downwards, the strides of stages become 1 until the total stride is reached; the kernels behind a
    removed stride are dilated, so that they read the same positions as in training. Every second (fourth, ...) cell of
    the new map, from the first, is therefore a cell of the old one (as `replace_stride_with_dilation` of torchvision's
    ResNets).

    Args:
        encoder: not changed; returned itself if it has the stride already.
        stride: pixels per cell; None: the encoder's own.
        layer: 1 is the first stage; None: the last.

    Raises:
        ValueError: removing the strides of whole stages cannot give the stride, or the backbone is not a `ResNet`.
    """
    backbone = encoder.backbone
    last = layer or encoder.layers
    own_stride = backbone.strides[last - 1]
    if stride is None or stride == own_stride:
        return encoder
    if not isinstance(backbone, ResNet):
        raise ValueError(
            f"stride: dilation is for the ResNets of this package; this {type(named_weights(backbone)).__name__} has "
            f"{own_stride} pixels per cell after layer {last}, got {stride}. Omit it, or use another layer"
        )
    reachable, steps = [own_stride], {}
    for number in range(last, 0, -1):
        step = _stride(getattr(backbone, f"layer{number}"))
        if step > 1 and reachable[-1] != stride:
            reachable.append(reachable[-1] // step)
            steps[number] = step
    if reachable[-1] != stride:
        raise ValueError(
            f"stride: this network's map has {own_stride} pixels per cell after layer {last}, and dilation can make "
            f"that {' or '.join(map(str, reachable[1:])) or 'nothing else'}; got {stride}"
        )
    encoder = copy.deepcopy(encoder)
    dilation = 1
    for number in range(min(steps), len(backbone.channels) + 1):
        dilation = _dilate(getattr(encoder.backbone, f"layer{number}"), dilation, steps.get(number, 1))
        encoder.backbone.strides[number - 1] //= dilation
    return encoder


def fine_stride(backbone: Backbone, side: int, layer: int | None = None, cells: int = CELLS) -> int:
    """The largest stride that dilation can give with at least `cells` cells along `side` pixels, or else the smallest.

    128 pixels and a total stride of 8 give the 16 x 16 cells of the paper's figure. Only a `ResNet` can be dilated; for
    another backbone it is the backbone's own stride.
    """
    last = layer or len(backbone.channels)
    stride = backbone.strides[last - 1]
    for number in range(last, 0, -1) if isinstance(backbone, ResNet) else ():
        if side // stride >= cells:
            break
        stride //= _stride(getattr(backbone, f"layer{number}"))
    return stride


def _stride(stage: nn.Module) -> int:
    return max(m.stride[0] for m in stage.modules() if isinstance(m, nn.Conv2d))


def _dilate(stage: nn.Module, before: int, step: int) -> int:
    """Divide the stride of a stage by `step`; `before` is the dilation of its input. Returns that of its output.

    The convolution that had the stride reads a grid as in training; those after it read a grid `step` times finer.
    """
    dilation = before
    for conv in (m for m in stage.modules() if isinstance(m, nn.Conv2d)):  # in the order of the forward pass
        strided = conv.stride[0] > 1 and step > 1
        if strided:
            conv.stride = (1, 1)
        if conv.kernel_size[0] > 1:
            conv.dilation = (dilation, dilation)
            conv.padding = (dilation * (conv.kernel_size[0] // 2),) * 2
            if strided:
                dilation = before * step
    return dilation
