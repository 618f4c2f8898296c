"""A checkpoint for mmdet's ResNets (style="pytorch"), whose names are torchvision's."""

from pathlib import Path

from torch import Tensor

import mixfast
from mixfast.formats.source import Source, bytes_of_255, layout_of, outputs_of
from mixfast.formats.to_torchvision import saved

FILE = "backbone.pth"


def files(source: Source) -> dict[str, bytes]:
    """The file by its name."""
    depth = layout_of(source, "mmdet", ["imagenet"]).depth
    meta = {"mixfast": mixfast.__version__, "depth": depth, **_preprocessor(source)}
    return {FILE: saved({"state_dict": source.weights, "meta": meta})}


def _preprocessor(source: Source) -> dict[str, object]:
    """Arguments of mmdet's data_preprocessor, which gets BGR images."""
    return {"mean": bytes_of_255(source.mean), "std": bytes_of_255(source.std), "bgr_to_rgb": True}


def maps(folder: Path, source: Source) -> list[Tensor]:
    """The maps of mmdet's network with the file's weights."""
    from mmdet.models.backbones import ResNet
    from mmengine.runner import load_checkpoint

    network = ResNet(layout_of(source, "mmdet", ["imagenet"]).depth, style="pytorch")
    load_checkpoint(network, str(folder / FILE), map_location="cpu", strict=True)
    network.eval()  # mmdet's returns nothing
    return outputs_of(network, [f"layer{stage}" for stage in source.stages], source.images)


def usage(source: Source) -> str:
    """A configuration of mmdet that loads the file."""
    depth = layout_of(source, "mmdet", ["imagenet"]).depth
    preprocessor = ", ".join(f"{key}={value}" for key, value in _preprocessor(source).items())
    pretrained = f'dict(type="Pretrained", checkpoint="{FILE}")'
    return f"""_base_ = "mmdet::faster_rcnn/faster-rcnn_r50_fpn_1x_coco.py"
model = dict(
    data_preprocessor=dict({preprocessor}),
    backbone=dict(depth={depth}, style="pytorch", init_cfg={pretrained}),
    neck=dict(in_channels={source.backbone.channels}),
)"""
