"""The trained backbone as a file that other programs read: safetensors with its library's parameter names."""

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import mixfast
from mixfast.errors import CheckpointError
from mixfast.models import Backbone, Encoder, adapters
from mixfast.models.backbone import named_weights
from mixfast.models.resnet import ResNet
from mixfast.run.folder import write_json
from mixfast.run.state import Run
from mixfast.scoring.features import evaluation_mode

__all__ = ["export", "load_backbone"]

WEIGHTS, FACTS = "backbone.safetensors", "export.json"
_KEYS = {  # by what makes the backbone: whose names the weights have
    "resnet": "torchvision.models.resnet, without fc; with a cifar stem also without maxpool, and conv1 is 3x3",
    "torchvision": "torchvision's, without the classifier",
    "timm": "timm's, of create_model(..., num_classes=0)",
}


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
    state = named_weights(encoder.backbone).state_dict()
    weights = {name: value.detach().cpu().clone(memory_format=torch.contiguous_format) for name, value in state.items()}
    path = folder / WEIGHTS
    save_file(weights, path, metadata={"format": "pt"})  # one entry: two would have no fixed order
    write_json(folder / FACTS, facts(run, path))
    verify(encoder, path, run.normalise(run.splits.test.images[:4]), _own_factory(run.config.model.architecture))
    return path


def facts(run: Run, path: Path) -> dict[str, Any]:
    """What somebody needs to use the weights elsewhere."""
    model, splits = run.config.model, run.splits
    source = model.backbone.partition(":")[0]
    return {
        "file": path.name,
        "mixfast": mixfast.__version__,
        "sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
        "architecture": model.architecture,
        "keys": _KEYS.get(source, f"those of the module that {model.backbone} makes"),
        "features": run.method.encoder.backbone.out_channels,
        "input": {"side": splits.train.images.shape[-1], "mean": list(splits.mean), "std": list(splits.std)},
        "input_note": "RGB in [0, 1], minus mean, over std",
        "load": _call(model.architecture, "folder"),
        "method": run.config.method_name,
        "data": splits.name,
        "epochs": run.epoch,
    }


def load_backbone(folder: Path | str, factory: Callable[..., nn.Module] | None = None) -> Backbone:
    """The exported network in evaluation mode, on the CPU.

    Args:
        folder: the export/ folder of a run.
        factory: what made a backbone of one's own, as `model.backbone` named it. A folder names such code but is not
            trusted to choose it: nothing is imported because a folder says so, but torchvision and timm.

    Raises:
        CheckpointError: a file is missing, the weights are not those that export.json describes, or they are of a
            backbone of one's own and `factory` is not given.
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
    backbone = _rebuilt(described["architecture"], folder, factory)
    try:
        named_weights(backbone).load_state_dict(weights)
    except RuntimeError as error:  # other names or shapes
        raise CheckpointError(f"{folder / WEIGHTS} is of another network than the one built here: {error}") from error
    return backbone.eval()


def _rebuilt(architecture: dict[str, Any], folder: Path, factory: Callable[..., nn.Module] | None) -> Backbone:
    """A network of that architecture, with ordinary batch norms."""
    if "backbone" not in architecture:
        return ResNet(**architecture, num_splits=1)
    named = adapters.parse(architecture["backbone"])
    if named.own and factory is None:
        raise CheckpointError(
            f"{folder} holds weights of a backbone that the function {named.name} of the module {named.source} makes. "
            f"If you trust that module, import it and call {_call(architecture, repr(str(folder)))}."
        )
    return adapters.make(architecture["backbone"], factory)


def _own_factory(architecture: dict[str, Any]) -> Callable[..., Any] | None:
    """The factory of a backbone of the user's own; None of another."""
    named = adapters.parse(architecture["backbone"]) if "backbone" in architecture else None
    return adapters.imported(named) if named is not None and named.own else None


def _call(architecture: dict[str, Any], folder: str) -> str:
    """The words that load an export."""
    named = adapters.parse(architecture["backbone"]) if "backbone" in architecture else None
    factory = f", factory={named.source}.{named.name}" if named is not None and named.own else ""
    return f"mixfast.export.load_backbone({folder}{factory})"


@torch.no_grad()
def verify(encoder: Encoder, path: Path, images: Tensor, factory: Callable[..., nn.Module] | None = None) -> None:
    """Raise a CheckpointError unless the exported file computes what `encoder` does on normalised images."""
    with evaluation_mode(encoder):
        here = encoder.backbone(images)
    there = load_backbone(path.parent, factory).to(images.device)(images)
    worst = (here - there).abs().max().item()
    # The same weights through the same kernels; a GPU may still pick another algorithm.
    if worst > 1e-4 * here.abs().max().item():
        raise CheckpointError(f"{path}: the reloaded network's map differs by {worst:.2e} from the trained one's.")
