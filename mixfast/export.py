"""The trained backbone as a file for other programs: safetensors with its library's parameter names.

Training ends with such an export; python -m mixfast.export RUN [--to LIBRARY] exports any checkpoint of any run.
"""

import hashlib
import json
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
import tyro
from torch import Tensor, nn

import mixfast
from mixfast import formats
from mixfast.config.arguments import parse
from mixfast.errors import CheckpointError, ConfigError
from mixfast.formats.card import FILE as CARD
from mixfast.formats.card import card
from mixfast.formats.native import FACTS, WEIGHTS, call, checksum, load_backbone, own_factory, rebuilt, structure
from mixfast.formats.snapshot import Snapshot
from mixfast.models import Backbone, Encoder
from mixfast.models.backbone import named_weights
from mixfast.run import command
from mixfast.run.folder import RunFolder
from mixfast.run.reopen import MachineOptions, load_run
from mixfast.run.setup import Setup
from mixfast.run.state import Run
from mixfast.scoring.features import evaluation_mode

__all__ = ["export", "load_backbone"]

_KEYS = {  # names of the weights, by the source of the backbone
    "resnet": "torchvision.models.resnet, without fc; with a cifar stem also without maxpool, and conv1 is 3x3",
    "torchvision": "torchvision's, without the classifier",
    "timm": "timm's, of create_model(..., num_classes=0)",
}


@dataclass(frozen=True)
class Export(MachineOptions):
    """Write the backbone of a run's checkpoint for other programs; the run need not be finished."""

    run: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="RUN")]  # folder of the run, or a checkpoint of it
    # the library whose files are written; none: backbone.safetensors, for load_backbone and any reader of safetensors
    to: Literal["torchvision", "timm", "detectron2", "mmdet", "onnx"] | None = None
    encoder: Literal["query", "key"] = "query"  # the trained network, or its moving average
    out: Path | None = None  # folder of the files; none: export/ of the run, in it key/ and the library's name


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    return command.run(arguments, export_command)


def export_command(arguments: list[str]) -> None:
    """Export the checkpoint that the arguments name, and print the paths of the files."""
    export_checkpoint(parse(Export, arguments, "python -m mixfast.export"))


def export_checkpoint(options: Export) -> None:
    """Export the network of a checkpoint, and print the paths of the files.

    Raises:
        CheckpointError: there is no checkpoint, or it is damaged; or a library computes other maps from the files.
        ConfigError: a checkpoint file is named without --out; the method has no key encoder; or the library has no such
            network.
        PlatformError: a package that writes the files is missing.
    """
    if options.out is None and options.run.is_file():
        raise ConfigError(f"give --out DIR for the checkpoint {options.run}: export/ of the run is of its newest one.")
    if options.out is not None and options.out.exists() and not options.out.is_dir():
        raise ConfigError(f"--out {options.out} is a file; give a folder.")
    file, state, setup = load_run(options.run, options)
    setup.load_method(state, file)
    print(f"{file}: {setup.config.method_name}, epoch {state['epoch']}, step {state['step']}")
    folder = RunFolder.open(options.run)
    parts = [*(["key"] if options.encoder == "key" else []), *([options.to] if options.to else [])]
    out = options.out or folder.export.joinpath(*parts)
    snapshot = Snapshot(setup, folder, state["epoch"], state["step"], options.encoder)
    if options.to is None:
        print(f"backbone  {_write(snapshot, out)} (reload checked)")
    else:
        print("\n".join(_write_for(options.to, snapshot, out)))


def export(run: Run) -> Path:
    """Write export/backbone.safetensors of a `run` with export.json and README.md, and verify it by its maps.

    Returns:
        The path of the weights.

    Raises:
        CheckpointError: the reloaded network computes other maps than the one in memory.
        NonFiniteError: a weight is NaN or infinite.
    """
    return _write(Snapshot(run, run.folder, run.epoch, run.step, "query"), run.folder.export)


def _write(snapshot: Snapshot, folder: Path) -> Path:
    from safetensors.torch import save

    setup = snapshot.setup
    content = save(snapshot.weights(), metadata={"format": "pt"})  # one entry: two would have no fixed order
    loading = call(setup.config.model.architecture, '"."')
    page = _card(snapshot, {WEIGHTS: content}, f"import mixfast.export\n\nbackbone = {loading}", "mixfast")
    described = json.dumps(facts(snapshot, hashlib.sha256(content).hexdigest()), indent=2) + "\n"
    # not safetensors' save_file, whose file only its owner may read
    formats.write({WEIGHTS: content, FACTS: described.encode(), CARD: page}, folder)
    path = folder / WEIGHTS
    verify(snapshot.encoder, path, snapshot.images(), own_factory(setup.config.model.architecture))
    return path


def _write_for(library: str, snapshot: Snapshot, folder: Path) -> list[str]:
    """Write the files of --to; returns lines with their paths, and with the result of the check in their library."""
    setup, target = snapshot.setup, formats.TARGETS[library]
    architecture, splits = setup.config.model.architecture, setup.splits
    backbone = rebuilt(architecture, folder, own_factory(architecture))
    named_weights(backbone).load_state_dict(snapshot.weights())
    images = snapshot.images()
    compare(snapshot.encoder, backbone.eval(), images, folder)
    source = formats.Source(backbone.cpu(), architecture, splits.mean, splits.std, images.cpu().contiguous())
    files = target.files(source)
    note = formats.checked(target, files, source)
    formats.write({**files, CARD: _card(snapshot, files, target.usage(source), library)}, folder)
    return [f"{library:<11} {folder / name}" for name in [*files, CARD]] + [note]


def _card(snapshot: Snapshot, files: dict[str, bytes], usage: str, library: str) -> bytes:
    digests = {name: hashlib.sha256(content).hexdigest() for name, content in files.items()}
    return card(snapshot, digests, usage, library).encode(errors="backslashreplace")


def check_exportable(setup: Setup) -> None:
    """Check before training that the network can be exported.

    Raises:
        ConfigError: the backbone of the method is not the one of the `model` section, from which exports are rebuilt.
    """
    model = setup.config.model
    with torch.random.fork_rng(devices=[]):
        named = rebuilt(model.architecture, Path(), own_factory(model.architecture))
    shapes, expected = (
        {name: getattr(value, "shape", type(value)) for name, value in named_weights(backbone).state_dict().items()}
        for backbone in (setup.method.encoder.backbone, named)
    )
    if differing := [name for name in {**shapes, **expected} if shapes.get(name) != expected.get(name)]:
        raise ConfigError(
            f"method {setup.config.method_name} trains a backbone of its own, a "
            f"{type(setup.method.encoder.backbone).__name__}, which could not be exported: model.backbone is "
            f"{model.title}, and they differ in {len(differing)} weights ({', '.join(differing[:3])}). Build the "
            "encoder by make_encoder(), and name a network of your own by --model.backbone package.module:factory."
        )


def facts(snapshot: Snapshot, sha256: str) -> dict[str, Any]:
    """The content of export.json; the entry `checksum` covers all other entries."""
    setup, backbone = snapshot.setup, snapshot.encoder.backbone
    model, splits = setup.config.model, setup.splits
    source = model.backbone.partition(":")[0]
    entries = {
        "file": WEIGHTS,
        "mixfast": mixfast.__version__,
        "sha256": sha256,
        "architecture": model.architecture,
        **structure(backbone),
        "keys": _KEYS.get(source, f"those of the module that {model.backbone} makes"),
        "features": backbone.out_channels,
        "input": {"side": splits.train.images.shape[-1], "mean": list(splits.mean), "std": list(splits.std)},
        "input_note": "RGB in [0, 1], minus mean, over std",
        "load": call(model.architecture, "folder"),
        "method": setup.config.method_name,
        "encoder": snapshot.encoder_name,
        "data": splits.name,
        "epochs": snapshot.epoch,
    }
    return {**entries, "checksum": checksum(entries)}


def verify(encoder: Encoder, path: Path, images: Tensor, factory: Callable[..., nn.Module] | None = None) -> None:
    """Raise a CheckpointError unless the exported file gives the maps of `encoder` for normalised images."""
    compare(encoder, load_backbone(path.parent, factory), images, path)


@torch.no_grad()
def compare(encoder: Encoder, backbone: Backbone, images: Tensor, path: Path) -> None:
    """Raise a CheckpointError that names `path`, unless a reloaded backbone gives the maps of `encoder`."""
    with evaluation_mode(encoder):
        trained_map = encoder.backbone(images)
    reloaded_map = backbone.to(images.device)(images)
    worst = (trained_map - reloaded_map).abs().max().item()
    # The same weights through the same kernels; a GPU may still pick another algorithm.
    if not worst <= 1e-4 * trained_map.abs().max().item():  # NaN is not
        raise CheckpointError(f"{path}: the reloaded network's map differs by {worst:.2e} from the trained one's.")


if __name__ == "__main__":
    sys.exit(main())
