"""The trained backbone as a file that other programs read: safetensors with its library's parameter names.

Training ends with it; python -m mixfast.export RUN [--to LIBRARY] writes that of any checkpoint of any run.
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
from mixfast.config.words import parse
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

_KEYS = {  # by what makes the backbone: whose names the weights have
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


def main(words: list[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    return command.run(words, export_named)


def export_named(words: list[str]) -> None:
    """Export what the words name, and print its path."""
    export_checkpoint(parse(Export, words, "python -m mixfast.export"))


def export_checkpoint(options: Export) -> None:
    """Export what a checkpoint holds, and print the paths.

    Raises:
        CheckpointError: no checkpoint, or a damaged one; or a library computes other maps of its files.
        ConfigError: a checkpoint file is named, but no folder for what is not the run's last word; the method has no
            key encoder; or the library has no such network.
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
        CheckpointError: the file gives another network than the one in memory.
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
    # save_file of safetensors would make a file that nobody else may read
    formats.write({WEIGHTS: content, FACTS: described.encode(), CARD: page}, folder)
    path = folder / WEIGHTS
    verify(snapshot.encoder, path, snapshot.images(), own_factory(setup.config.model.architecture))
    return path


def _write_for(library: str, snapshot: Snapshot, folder: Path) -> list[str]:
    """Write the files of --to; returns lines that say where, and what their library made of them."""
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
    """Say before training that its network could not be exported.

    Raises:
        ConfigError: the backbone of the method is not the one of the `model` section, from which exports are rebuilt.
    """
    model = setup.config.model
    with torch.random.fork_rng(devices=[]):
        named = rebuilt(model.architecture, Path(), own_factory(model.architecture))
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


def facts(snapshot: Snapshot, sha256: str) -> dict[str, Any]:
    """Facts for using the weights elsewhere; the entry `checksum` covers all other entries."""
    setup, backbone = snapshot.setup, snapshot.encoder.backbone
    model, splits = setup.config.model, setup.splits
    source = model.backbone.partition(":")[0]
    found = {
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
        "encoder": snapshot.which,
        "data": splits.name,
        "epochs": snapshot.epoch,
    }
    return {**found, "checksum": checksum(found)}


def verify(encoder: Encoder, path: Path, images: Tensor, factory: Callable[..., nn.Module] | None = None) -> None:
    """Raise a CheckpointError unless the exported file computes what `encoder` does on normalised images."""
    compare(encoder, load_backbone(path.parent, factory), images, path)


@torch.no_grad()
def compare(encoder: Encoder, backbone: Backbone, images: Tensor, path: Path) -> None:
    """Raise a CheckpointError, of `path`, unless a reloaded backbone computes what `encoder` does on its device."""
    with evaluation_mode(encoder):
        here = encoder.backbone(images)
    there = backbone.to(images.device)(images)
    worst = (here - there).abs().max().item()
    # The same weights through the same kernels; a GPU may still pick another algorithm.
    if not worst <= 1e-4 * here.abs().max().item():  # NaN is not
        raise CheckpointError(f"{path}: the reloaded network's map differs by {worst:.2e} from the trained one's.")


if __name__ == "__main__":
    sys.exit(main())
