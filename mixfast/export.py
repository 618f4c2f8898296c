"""The trained backbone as a file that other programs read: safetensors with torchvision's parameter names."""

import hashlib
import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import mixfast
from mixfast.errors import CheckpointError
from mixfast.models import Encoder
from mixfast.models.config import ModelConfig
from mixfast.models.resnet import ResNet
from mixfast.run.folder import write_json
from mixfast.run.state import Run
from mixfast.scoring.features import evaluation_mode

__all__ = ["export", "load_backbone"]

WEIGHTS, FACTS = "backbone.safetensors", "export.json"


def export(run: Run) -> Path:
    """Write export/backbone.safetensors and export.json, load them again, and compare the maps of both networks.

    Returns:
        The path of the weights.

    Raises:
        CheckpointError: the file gives another network than the one in memory.
    """
    from safetensors.torch import save_file

    folder, encoder = run.folder.export, run.method.encoder
    folder.mkdir(exist_ok=True)
    weights = {name: value.detach().cpu().contiguous() for name, value in encoder.backbone.state_dict().items()}
    path = folder / WEIGHTS
    save_file(weights, path, metadata={"format": "pt"})  # one entry: two would have no fixed order
    write_json(folder / FACTS, facts(run, path))
    verify(encoder, path, run.normalise(run.splits.test.images[:4]))
    return path


def facts(run: Run, path: Path) -> dict[str, Any]:
    """What somebody needs to use the weights elsewhere."""
    model, splits = run.config.model, run.splits
    return {
        "file": path.name,
        "mixfast": mixfast.__version__,
        "sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
        "architecture": {"depth": model.depth, "width": model.width, "stem": model.stem},
        "keys": "torchvision.models.resnet, without fc; with a cifar stem also without maxpool, and conv1 is 3x3",
        "features": run.method.encoder.backbone.out_channels,
        "input": {"side": splits.train.images.shape[-1], "mean": list(splits.mean), "std": list(splits.std)},
        "input_note": "RGB in [0, 1], minus mean, over std",
        "load": "mixfast.export.load_backbone(folder)",
        "method": run.config.method_name,
        "data": splits.name,
        "epochs": run.epoch,
    }


def load_backbone(folder: Path | str) -> ResNet:
    """The exported network in evaluation mode, on the CPU.

    Args:
        folder: the export/ folder of a run.

    Raises:
        CheckpointError: a file is missing, or the weights are not those that export.json describes.
    """
    from safetensors.torch import load_file

    folder = Path(folder)
    try:
        described = json.loads((folder / FACTS).read_text(encoding="utf-8"))
        weights = load_file(folder / WEIGHTS)
    except OSError as error:
        raise CheckpointError(f"{folder} is no export: {error}. Give the export/ folder of a finished run.") from error
    digest = hashlib.sha256((folder / WEIGHTS).read_bytes()).hexdigest()
    if digest != described["sha256"]:
        raise CheckpointError(f"{folder / WEIGHTS} has sha256 {digest}, export.json says {described['sha256']}.")
    backbone = ResNet(**described["architecture"], num_splits=ModelConfig().bn_splits)
    backbone.load_state_dict(weights)
    return backbone.eval()


@torch.no_grad()
def verify(encoder: Encoder, path: Path, images: Tensor) -> None:
    """Raise a CheckpointError unless the exported file computes what `encoder` does on normalised images."""
    with evaluation_mode(encoder):
        here = encoder.backbone(images)
    there = load_backbone(path.parent).to(images.device)(images)
    worst = (here - there).abs().max().item()
    # The same weights through the same kernels; a GPU may still pick another algorithm.
    if worst > 1e-4 * here.abs().max().item():
        raise CheckpointError(f"{path}: the reloaded network's map differs by {worst:.2e} from the trained one's.")
