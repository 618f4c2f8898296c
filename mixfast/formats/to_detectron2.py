"""A pickle of weights under detectron2's names, and the options with which they mean the same network.

The names are those of `detectron2.modeling.backbone.resnet`, the file is what its DetectionCheckpointer reads: arrays
under "model", which it matches to a detector's longer names where "matching_heuristics" is set.
"""

import pickle
import re
from pathlib import Path

import torch
from torch import Tensor

from mixfast.formats.source import Source, bytes_of_255, layout_of

FILE, OPTIONS = "backbone.pkl", "backbone.yaml"


def files(source: Source) -> dict[str, bytes]:
    """The files by their names."""
    depth = layout_of(source, "detectron2", ["imagenet"]).depth
    arrays = {renamed(name): value.numpy() for name, value in source.weights.items() if not _counter(name)}
    content = {"model": arrays, "__author__": "mixfast", "matching_heuristics": True}
    return {FILE: pickle.dumps(content, protocol=4), OPTIONS: _options(source, depth).encode()}


def _counter(name: str) -> bool:
    """Whether an entry counts batches, which detectron2's frozen norms do not have."""
    return name.endswith(".num_batches_tracked")


def renamed(name: str) -> str:
    """The name of an entry in detectron2: layer1.0.bn2.weight is res2.0.conv2.norm.weight.

    Args:
        name: of torchvision.
    """
    name = re.sub(r"\bbn(\d)", r"conv\1.norm", name)
    name = name.replace("downsample.0", "shortcut").replace("downsample.1", "shortcut.norm")
    stage = re.match(r"layer(\d)", name)
    return f"res{int(stage[1]) + 1}{name[stage.end() :]}" if stage else f"stem.{name}"


def _options(source: Source, depth: int) -> str:
    mean, std = bytes_of_255(source.mean), bytes_of_255(source.std)
    return f"""VERSION: 2
INPUT:
  FORMAT: RGB  # the order of the channels in training; detectron2's default is BGR
MODEL:
  PIXEL_MEAN: {mean}
  PIXEL_STD: {std}
  RESNETS:
    DEPTH: {depth}
    RES2_OUT_CHANNELS: {source.backbone.channels[0]}
    STRIDE_IN_1X1: False  # with True the weights load without a word, and give other maps
"""


def maps(folder: Path, source: Source) -> list[Tensor]:
    """The maps of detectron2's network with the files' weights and options."""
    from detectron2.checkpoint import DetectionCheckpointer
    from detectron2.config import get_cfg
    from detectron2.layers import ShapeSpec
    from detectron2.modeling.backbone import build_resnet_backbone

    config = get_cfg()
    config.merge_from_file(str(folder / OPTIONS))
    stages = [f"res{stage + 1}" for stage in source.stages]
    config.MODEL.RESNETS.OUT_FEATURES = stages
    network = build_resnet_backbone(config, ShapeSpec(channels=3)).eval()
    DetectionCheckpointer(network).load(str(folder / FILE))
    with torch.no_grad():
        outputs = network(source.images)
    return [outputs[stage] for stage in stages]


def usage(source: Source) -> str:
    """Python that loads the files into a detector."""
    depth = layout_of(source, "detectron2", ["imagenet"]).depth
    base = "COCO-Detection/faster_rcnn_R_50_FPN_1x.yaml"
    return f"""from detectron2 import config, model_zoo

cfg = config.get_cfg()
cfg.merge_from_file(model_zoo.get_config_file("{base}"))
cfg.merge_from_file("{OPTIONS}")  # depth {depth}, normalisation, order of the channels
cfg.MODEL.WEIGHTS = "{FILE}\""""
