"""backbone.safetensors and export.json: the weights, the facts about them, and the network built from both."""

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from mixfast.errors import CheckpointError, ConfigError
from mixfast.models import Backbone, adapters
from mixfast.models.backbone import named_weights
from mixfast.models.config import RESNET_OPTIONS, ModelConfig
from mixfast.models.resnet import STEMS, ResNet
from mixfast.models.split_bn import plain_batch_norms_

WEIGHTS, FACTS = "backbone.safetensors", "export.json"


def structure(backbone: Backbone) -> dict[str, Any]:
    """Structure that the shapes of weights do not show: two stems may have equal shapes but different strides."""
    network = named_weights(backbone)
    conv, pool = getattr(network, "conv1", None), getattr(network, "maxpool", None)
    stem = None
    if isinstance(conv, nn.Conv2d):
        sizes = {"kernel": conv.kernel_size, "stride": conv.stride, "padding": conv.padding}
        stem = {"conv1": {name: list(size) for name, size in sizes.items()}, "maxpool": isinstance(pool, nn.MaxPool2d)}
    return {"stem": stem, "channels": list(backbone.channels), "strides": list(backbone.strides)}


def checksum(described: dict[str, Any]) -> str:
    """SHA-256 of all entries but `checksum`, as JSON with sorted keys."""
    entries = {key: value for key, value in described.items() if key != "checksum"}
    return hashlib.sha256(json.dumps(entries, sort_keys=True).encode()).hexdigest()


class Exported(NamedTuple):
    """The content of an export's folder."""

    facts: dict[str, Any]  # of export.json
    weights: dict[str, Tensor]


def read(folder: Path) -> Exported:
    """Read the files of an export, and check that they have not changed since they were written.

    Raises:
        CheckpointError: a file is missing or damaged, or one of them was edited.
    """
    from safetensors.torch import load

    try:
        described = json.loads((folder / FACTS).read_text(encoding="utf-8"))
        content = (folder / WEIGHTS).read_bytes()
    except OSError as error:
        raise CheckpointError(
            f"{folder} is not an export: {error}. Give the export/ folder of a finished run."
        ) from error
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{folder / FACTS} cannot be read: {error}.") from error
    if not isinstance(described, dict) or not {"sha256", "checksum"} <= described.keys():
        raise CheckpointError(f"{folder / FACTS} describes no backbone: it must hold sha256 and checksum.")
    if checksum(described) != described["checksum"]:
        raise CheckpointError(
            f"{folder / FACTS} has been edited: its entries do not give its checksum. What it says of the weights is "
            "not known to be true; export the run again."
        )
    digest = hashlib.sha256(content).hexdigest()
    if digest != described["sha256"]:
        raise CheckpointError(f"{folder / WEIGHTS} has sha256 {digest}, export.json says {described['sha256']!r:.80}.")
    try:
        return Exported(described, load(content))
    except Exception as error:  # safetensors raises its own type, and others
        raise CheckpointError(f"{folder / WEIGHTS} cannot be read: {error}.") from error


def load_backbone(folder: Path | str, factory: Callable[..., nn.Module] | None = None) -> Backbone:
    """The exported network in evaluation mode, on the CPU, ready for `.train()`.

    A plain module: the children of a ResNet are torchvision's in torchvision's order, batch norms are
    `torch.nn.BatchNorm2d` whatever the run's model.bn_splits was, and all weights require a gradient.

    Args:
        folder: the export/ folder of a run.
        factory: the function that makes a user's own backbone, as `model.backbone` named it. The folder contains the
            name of this function, but a folder may come from another person: only torchvision and timm are imported.

    Raises:
        CheckpointError: a file is missing or was edited, the weights or strides are not those that export.json
            describes, or the weights belong to a user's own backbone and `factory` is not given.
    """
    folder = Path(folder)
    described, weights = read(folder)
    architecture = _checked(described, folder)
    with torch.device("meta" if "backbone" not in architecture else "cpu"):  # nothing is allocated for absurd sizes
        backbone = rebuilt(architecture, folder, factory)
    expected = named_weights(backbone).state_dict()
    if differing := [name for name in {**expected, **weights} if _form(expected.get(name)) != _form(weights.get(name))]:
        raise CheckpointError(
            f"{folder / WEIGHTS} is of another network than the one built here, as {FACTS} says: they differ in "
            f"{len(differing)} entries ({', '.join(differing[:5])})."
        )
    for key, value in structure(backbone).items():
        if described.get(key) != value:
            raise CheckpointError(
                f"{folder / FACTS} says {key} {described.get(key)!r:.100}, and the network that it describes has "
                f"{value}: with another one the same weights mean another network."
            )
    if "backbone" not in architecture:
        backbone = rebuilt(architecture, folder, factory)
    named_weights(backbone).load_state_dict(weights)
    return backbone.eval()


def _form(value: Tensor | None) -> object:
    return None if value is None else (value.shape, value.dtype)


def _checked(described: dict[str, Any], folder: Path) -> dict[str, Any]:
    """The architecture in the content of export.json; CheckpointError if it is not valid."""
    architecture = described.get("architecture")
    try:
        if not isinstance(architecture, dict):
            raise ValueError("it must hold architecture")
        if architecture.keys() not in ({"backbone"}, set(RESNET_OPTIONS)):
            raise ValueError(f"architecture must have the keys {', '.join(RESNET_OPTIONS)}, or backbone alone")
        default = ModelConfig(backbone="torchvision:resnet18") if "backbone" in architecture else ModelConfig()
        if any(type(value) is not type(getattr(default, key)) for key, value in architecture.items()):
            raise ValueError(f"architecture has a value of another type: {architecture!r:.100}")
        if "stem" in architecture and architecture["stem"] not in STEMS:
            raise ValueError(f"architecture.stem must be one of {', '.join(STEMS)}; got {architecture['stem']!r:.50}")
        ModelConfig(**architecture)
    except (ValueError, ConfigError) as error:
        raise CheckpointError(f"{folder / FACTS} describes no backbone: {error}.") from error
    return architecture


def rebuilt(architecture: dict[str, Any], folder: Path, factory: Callable[..., nn.Module] | None) -> Backbone:
    """A network of an architecture, with ordinary batch norms."""
    if "backbone" not in architecture:
        return plain_batch_norms_(ResNet(**architecture, num_splits=1))
    named = adapters.parse(architecture["backbone"])
    if named.own and factory is None:
        raise CheckpointError(
            f"{folder} holds weights of a backbone that the function {named.name} of the module {named.source} makes. "
            f"If you trust that module, import it and call {call(architecture, repr(str(folder)))}."
        )
    return adapters.make(architecture["backbone"], factory)


def own_factory(architecture: dict[str, Any]) -> Callable[..., Any] | None:
    """The factory of a user's own backbone; None for other backbones."""
    named = adapters.parse(architecture["backbone"]) if "backbone" in architecture else None
    return adapters.imported(named) if named is not None and named.own else None


def call(architecture: dict[str, Any], folder: str) -> str:
    """Python that loads an export."""
    named = adapters.parse(architecture["backbone"]) if "backbone" in architecture else None
    factory = f", factory={named.source}.{named.name}" if named is not None and named.own else ""
    return f"mixfast.export.load_backbone({folder}{factory})"
