"""The trained backbone as a file that other programs read: safetensors with its library's parameter names.

Training ends with it; python -m mixfast.export RUN [--out DIR] writes that of any checkpoint, of unfinished runs too.
"""

import hashlib
import json
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import torch
import tyro
from torch import Tensor, nn

import mixfast
from mixfast.config.words import parse
from mixfast.errors import CheckpointError, ConfigError, NonFiniteError
from mixfast.files import write_whole
from mixfast.models import Backbone, Encoder, adapters
from mixfast.models.backbone import named_weights
from mixfast.models.config import RESNET_OPTIONS, ModelConfig
from mixfast.models.resnet import STEMS, ResNet
from mixfast.run import command
from mixfast.run.finite import not_finite
from mixfast.run.folder import RunFolder, write_json
from mixfast.run.reopen import MachineOptions, load_run
from mixfast.run.setup import Setup
from mixfast.run.state import Run
from mixfast.scoring.features import evaluation_mode

__all__ = ["export", "load_backbone"]

WEIGHTS, FACTS = "backbone.safetensors", "export.json"
_KEYS = {  # by what makes the backbone: whose names the weights have
    "resnet": "torchvision.models.resnet, without fc; with a cifar stem also without maxpool, and conv1 is 3x3",
    "torchvision": "torchvision's, without the classifier",
    "timm": "timm's, of create_model(..., num_classes=0)",
}


@dataclass(frozen=True)
class Export(MachineOptions):
    """Write the backbone of a run's checkpoint for other programs; the run need not be finished."""

    run: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="RUN")]  # folder of the run, or a checkpoint of it
    out: Path | None = None  # folder of the two files; none: export/ of the run


def main(words: list[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    return command.run(words, export_named)


def export_named(words: list[str]) -> None:
    """Export what the words name, and print its path."""
    path = export_checkpoint(parse(Export, words, "python -m mixfast.export"))
    print(f"backbone  {path} (reload checked)")


def export_checkpoint(options: Export) -> Path:
    """Export what a checkpoint holds; returns the path of the weights.

    Raises:
        CheckpointError: no checkpoint, or a damaged one.
        ConfigError: a checkpoint file is named, but no folder for what is not the run's last word.
    """
    if options.out is None and options.run.is_file():
        raise ConfigError(f"give --out DIR for the checkpoint {options.run}: export/ of the run is of its newest one.")
    if options.out is not None and options.out.exists() and not options.out.is_dir():
        raise ConfigError(f"--out {options.out} is a file; give a folder.")
    file, state, setup = load_run(options.run, options)
    setup.load_method(state, file)
    print(f"{file}: {setup.config.method_name}, epoch {state['epoch']}, step {state['step']}")
    return _write(setup, options.out or RunFolder.open(options.run).export, state["epoch"])


def export(run: Run) -> Path:
    """Write export/backbone.safetensors and export.json, load them again, and compare the maps of both networks.

    Returns:
        The path of the weights.

    Raises:
        CheckpointError: the file gives another network than the one in memory.
        NonFiniteError: a weight is NaN or infinite.
    """
    return _write(run, run.folder.export, run.epoch)


def _write(setup: Setup, folder: Path, epoch: int) -> Path:
    from safetensors.torch import save

    encoder, config = setup.method.encoder, setup.config
    state = named_weights(encoder.backbone).state_dict()
    if bad := not_finite(state):
        raise NonFiniteError(f"the backbone is not exported: {', '.join(list(bad)[:5])} of it is not finite.")
    weights = {name: value.detach().cpu().clone(memory_format=torch.contiguous_format) for name, value in state.items()}
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / WEIGHTS
    content = save(weights, metadata={"format": "pt"})  # one entry: two would have no fixed order
    write_whole(path, content)  # save_file would make a file that nobody else may read
    write_json(folder / FACTS, facts(setup, hashlib.sha256(content).hexdigest(), epoch))
    verify(encoder, path, setup.normalise(setup.splits.test.images[:4]), _own_factory(config.model.architecture))
    return path


def check_exportable(setup: Setup) -> None:
    """Say before training that its network could not be exported.

    Raises:
        ConfigError: the backbone of the method is not the one of the `model` section, from which exports are rebuilt.
    """
    model = setup.config.model
    with torch.random.fork_rng(devices=[]):
        named = _rebuilt(model.architecture, Path(), _own_factory(model.architecture))
    here, there = (
        {name: getattr(value, "shape", type(value)) for name, value in named_weights(backbone).state_dict().items()}
        for backbone in (setup.method.encoder.backbone, named)
    )
    if unlike := [name for name in dict.fromkeys([*here, *there]) if here.get(name) != there.get(name)]:
        raise ConfigError(
            f"method {setup.config.method_name} trains a backbone of its own, a "
            f"{type(setup.method.encoder.backbone).__name__}, which could not be exported: model.backbone is "
            f"{model.title}, and they differ in {len(unlike)} weights ({', '.join(unlike[:3])}). Build the encoder by "
            "make_encoder(), and name a network of your own by --model.backbone package.module:factory."
        )


def facts(setup: Setup, sha256: str, epoch: int) -> dict[str, Any]:
    """What somebody needs to use the weights elsewhere."""
    model, splits = setup.config.model, setup.splits
    source = model.backbone.partition(":")[0]
    return {
        "file": WEIGHTS,
        "mixfast": mixfast.__version__,
        "sha256": sha256,
        "architecture": model.architecture,
        "keys": _KEYS.get(source, f"those of the module that {model.backbone} makes"),
        "features": setup.method.encoder.backbone.out_channels,
        "input": {"side": splits.train.images.shape[-1], "mean": list(splits.mean), "std": list(splits.std)},
        "input_note": "RGB in [0, 1], minus mean, over std",
        "load": _call(model.architecture, "folder"),
        "method": setup.config.method_name,
        "data": splits.name,
        "epochs": epoch,
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
    from safetensors.torch import load

    folder = Path(folder)
    try:
        described = json.loads((folder / FACTS).read_text(encoding="utf-8"))
        content = (folder / WEIGHTS).read_bytes()
    except OSError as error:
        raise CheckpointError(f"{folder} is no export: {error}. Give the export/ folder of a finished run.") from error
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{folder / FACTS} cannot be read: {error}.") from error
    architecture = _checked(described, folder)
    digest = hashlib.sha256(content).hexdigest()
    if digest != described["sha256"]:
        raise CheckpointError(f"{folder / WEIGHTS} has sha256 {digest}, export.json says {described['sha256']!r:.80}.")
    try:
        weights = load(content)
    except Exception as error:  # safetensors raises its own type, and others
        raise CheckpointError(f"{folder / WEIGHTS} cannot be read: {error}.") from error
    with torch.device("meta" if "backbone" not in architecture else "cpu"):  # nothing is allocated for absurd sizes
        backbone = _rebuilt(architecture, folder, factory)
    wanted = named_weights(backbone).state_dict()
    if unlike := [name for name in {**wanted, **weights} if _form(wanted.get(name)) != _form(weights.get(name))]:
        raise CheckpointError(
            f"{folder / WEIGHTS} is of another network than the one built here, as {FACTS} says: they differ in "
            f"{len(unlike)} entries ({', '.join(unlike[:5])})."
        )
    if "backbone" not in architecture:
        backbone = _rebuilt(architecture, folder, factory)
    named_weights(backbone).load_state_dict(weights)
    return backbone.eval()


def _form(value: Tensor | None) -> object:
    return None if value is None else (value.shape, value.dtype)


def _checked(described: Any, folder: Path) -> dict[str, Any]:
    """The architecture in what export.json holds; CheckpointError if it is none."""
    architecture = described.get("architecture") if isinstance(described, dict) else None
    try:
        if not isinstance(architecture, dict) or "sha256" not in described:
            raise ValueError("it must hold architecture and sha256")
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
    if not worst <= 1e-4 * here.abs().max().item():  # NaN is not
        raise CheckpointError(f"{path}: the reloaded network's map differs by {worst:.2e} from the trained one's.")


if __name__ == "__main__":
    sys.exit(main())
