"""A state dict for torchvision's ResNets, without the classifier."""

import io
from pathlib import Path

import torch
from torch import Tensor, nn

from mixfast.formats.source import WIDTH, Layout, Source, layout_of, outputs_of
from mixfast.models.resnet import STEMS

FILE = "backbone.pth"


def files(source: Source) -> dict[str, bytes]:
    """The file by its name."""
    _layout(source)
    return {FILE: saved(source.weights)}


def saved(content: object) -> bytes:
    """The bytes that torch.save writes for tensors and primitives."""
    buffer = io.BytesIO()
    torch.save(content, buffer)
    return buffer.getvalue()


def maps(folder: Path, source: Source) -> list[Tensor]:
    """The maps of torchvision's network with the file's weights."""
    from torchvision import models

    layout = _layout(source)
    network = models.get_model(layout.name, weights=None)
    network.fc = nn.Identity()
    kernel, stride, max_pool = STEMS[layout.stem]
    if not max_pool:
        network.conv1 = nn.Conv2d(3, WIDTH, kernel, stride, kernel // 2, bias=False)
        network.maxpool = nn.Identity()
    network.load_state_dict(torch.load(folder / FILE, weights_only=True))
    return outputs_of(network.eval(), [f"layer{stage}" for stage in source.stages], source.images)


def usage(source: Source) -> str:
    """Python that loads the file."""
    layout = _layout(source)
    kernel, stride, max_pool = STEMS[layout.stem]
    stem = f"""network.conv1 = torch.nn.Conv2d(3, {WIDTH}, {kernel}, {stride}, {kernel // 2}, bias=False)
network.maxpool = torch.nn.Identity()
"""
    return f"""import torch, torchvision

network = torchvision.models.{layout.name}()
network.fc = torch.nn.Identity()
{"" if max_pool else stem}network.load_state_dict(torch.load("{FILE}", weights_only=True))"""


def _layout(source: Source) -> Layout:
    return layout_of(source, "torchvision", list(STEMS))
