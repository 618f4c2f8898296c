"""A folder that timm's create_model takes as "local-dir:FOLDER", and, uploaded, as "hf-hub:USER/NAME"."""

import json
from pathlib import Path
from typing import Any

from torch import Tensor

from mixfast.formats.source import Source, layout_of
from mixfast.models import adapters
from mixfast.models.backbone import named_weights

CONFIG, FILE = "config.json", "model.safetensors"  # the names that timm looks for


def files(source: Source) -> dict[str, bytes]:
    """The files by their names."""
    from safetensors.torch import save

    weights = {name: value.contiguous() for name, value in source.weights.items()}
    config = json.dumps(_config(source), indent=2) + "\n"
    return {CONFIG: config.encode(), FILE: save(weights, metadata={"format": "pt"})}


def _config(source: Source) -> dict[str, Any]:
    named = source.named()
    if named is not None and named.source == "timm":
        name, options = named.name, named.options
        network: Any = named_weights(source.backbone)
        layers = {key: network.pretrained_cfg[key] for key in ("first_conv", "classifier")}
    else:
        name, options = layout_of(source, "timm", ["imagenet"]).name, {}
        layers = {"first_conv": "conv1", "classifier": "fc"}
    image = {"input_size": [3, source.side, source.side], "mean": list(source.mean), "std": list(source.std)}
    pretrained = {**image, "interpolation": "bilinear", "crop_pct": 1.0, "num_classes": 0, **layers}
    channels = source.backbone.out_channels
    return {
        "architecture": name,
        "num_classes": 0,
        "num_features": channels,
        "model_args": options,
        "pretrained_cfg": pretrained,
    }


def maps(folder: Path, source: Source) -> list[Tensor]:
    """The maps of the network that timm makes of the folder; its ResNets count the stem as a stage."""
    import timm
    import torch

    with torch.random.fork_rng(devices=[]):  # timm draws weights before it reads them
        network = timm.create_model(f"local-dir:{folder}", pretrained=True, num_classes=0).eval()
    backbone = adapters.adapted(network, f"timm:{folder}")
    with torch.no_grad():
        stage_maps = backbone.maps(source.images, range(1, len(backbone.channels) + 1))
    return stage_maps[-len(source.stages) :]


def usage(source: Source) -> str:
    """Python that loads the folder."""
    return """import timm

network = timm.create_model("local-dir:.", pretrained=True, num_classes=0)  # the folder of this file
config = timm.data.resolve_model_data_config(network)  # its normalisation and side"""
