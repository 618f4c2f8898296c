"""The weights that a run begins with: `--init PATH`, and the copy of them in the run's folder.

Only the weights of the backbone are used; the head is random as in any run. With the copy, a run can be continued and
compared with its untrained network without the original file.
"""

import dataclasses
import hashlib
import json
from collections import Counter
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from mixfast.errors import CheckpointError
from mixfast.files import write_whole
from mixfast.formats import native
from mixfast.models import ModelConfig, adapters, build_encoder
from mixfast.models.backbone import Adapted, Backbone, named_weights
from mixfast.models.config import RESNET, RESNET_OPTIONS
from mixfast.models.resnet import LAYOUTS, STEMS, Bottleneck
from mixfast.run import checkpoint, restore
from mixfast.run.folder import write_json
from mixfast.run.tensors import not_finite

WEIGHTS, FACTS = "initial.safetensors", "initial.json"  # in the folder of a run
# Prefixes of names in files of DataParallel, MoCo, lightly, solo-learn; the first with most matches is used.
PREFIXES = ("", "module.", "module.encoder_q.", "encoder_q.", "module.backbone.", "backbone.", "model.", "encoder.")
_CLASSIFIERS = {"fc", "classifier", "head"}  # parts of names
_COUNTER = "num_batches_tracked"  # of batch norms; it does not change what they compute
_NAMED = 5  # keys in a message, at most
PrintLine = Callable[[str], None]


@dataclass(frozen=True)
class Origin:
    """The origin of initial weights."""

    path: str  # as the user gave it
    sha256: str  # of the file
    used: list[str]  # keys of the file
    unused: list[str]
    notes: list[str]  # facts that the file does not contain

    @property
    def title(self) -> str:
        """The entry in a run's configuration: the file's name, and the beginning of its SHA-256."""
        return f"{Path(self.path).name}@{self.sha256[:12]}"

    def __str__(self) -> str:
        used = f"{len(self.used)} of the {len(self.used) + len(self.unused)} keys of {self.path}"
        parts = Counter(".".join(name.split(".")[:2]) for name in self.unused).items()
        unused = ", ".join(name if name in self.unused else f"{name} {count}" for name, count in parts) or "none"
        return "; ".join([f"{used} (sha256 {self.sha256}) used", f"not used: {unused}", *self.notes])

    @classmethod
    def of_run(cls, folder: Path) -> "Origin":
        """The origin of the weights with which the run of a folder began.

        Raises:
            CheckpointError: its file is missing or damaged.
        """
        return _stored_origin(folder)[0]


class InitialWeights(NamedTuple):
    """Weights of a whole backbone, and their origin."""

    weights: dict[str, Tensor]  # under the names of the backbone's library
    origin: Origin

    def write(self, folder: Path) -> None:
        """Write weights and origin to the folder of a run."""
        from safetensors.torch import save

        content = save(self.weights, metadata={"format": "pt"})
        write_whole(folder / WEIGHTS, content)
        digest = hashlib.sha256(content).hexdigest()
        write_json(folder / FACTS, {"copy": WEIGHTS, "copy_sha256": digest, "origin": dataclasses.asdict(self.origin)})

    def load_into(self, backbone: Backbone) -> None:
        """Replace the weights of a backbone of the same structure."""
        named_weights(backbone).load_state_dict(self.weights)


def reopen(folder: Path) -> InitialWeights:
    """Read the weights that `write` stored in a run's folder.

    Raises:
        CheckpointError: they are missing or damaged.
    """
    from safetensors.torch import load

    origin, digest = _stored_origin(folder)
    try:
        content = (folder / WEIGHTS).read_bytes()
    except OSError as error:
        raise _lost_error(folder, error) from error
    if hashlib.sha256(content).hexdigest() != digest:
        raise _lost_error(folder, ValueError(f"bits of {WEIGHTS} have changed since it was written"))
    return InitialWeights(load(content), origin)


def _stored_origin(folder: Path) -> tuple[Origin, str]:
    """The origin in `FACTS`, and the sha256 of the copy."""
    try:
        facts = json.loads((folder / FACTS).read_text(encoding="utf-8"))
        return Origin(**facts["origin"]), str(facts["copy_sha256"])
    except (OSError, ValueError, TypeError, KeyError, RecursionError) as error:
        raise _lost_error(folder, error) from error


def _lost_error(folder: Path, error: Exception) -> CheckpointError:
    return CheckpointError(
        f"{folder} has lost the weights that its run began with, {WEIGHTS} and {FACTS} ({error}). The run begins and "
        "its network before training is scored with them: put both files back."
    )


def read(path: Path, model: ModelConfig, print_line: PrintLine) -> InitialWeights:
    """The weights that `--init` names, for a backbone of `model`.

    Args:
        path: the export/ folder of a run or its weights; the folder of a run or a checkpoint of it; or a state dict
            (.safetensors, or a .pth file that needs no code to be loaded), perhaps inside "state_dict" or "model".
        model: of the run that begins with them.
        print_line: prints a warning if previous.pt is used in place of a damaged last.pt.

    Raises:
        CheckpointError: there is no file, or it does not hold weights, or they are not finite or belong to another
            architecture.
    """
    backbone = build_encoder(model, torch.Generator()).backbone
    try:
        source = _open_source(path, model, backbone, print_line)
        return _fitted(source, path, model, named_weights(backbone).state_dict())
    except CheckpointError as error:
        raise CheckpointError(f"--init {path}: {error}") from error


class _Source(NamedTuple):
    """The content of a file of weights."""

    file: Path
    tensors: dict[str, Tensor]
    prefix: str | None  # before the backbone's own names; None: unknown
    foreign: bool  # whether it does not state its architecture


def _open_source(path: Path, model: ModelConfig, backbone: Backbone, print_line: PrintLine) -> _Source:
    facts_file = path.with_name(native.FACTS)
    if (path / native.FACTS).is_file():
        return _from_export(path, model)
    if path.suffix == ".safetensors" and path.is_file() and _describes(facts_file, path.name):
        return _from_export(path.parent, model)
    if path.is_dir():
        return _from_run(path, model, backbone, print_line)
    if not path.is_file():
        raise CheckpointError("there is no such file or folder.")
    content = file_content(path)
    if isinstance(content, dict) and {"format", "config", "method"} <= content.keys():
        return _from_run(path, model, backbone, print_line)
    for key in ("state_dict", "model"):
        if isinstance(content, dict) and isinstance(content.get(key), dict):
            content = content[key]
    tensors = _tensors(content) if isinstance(content, dict) else {}
    if not tensors:
        keys = f"an object with {', '.join(map(str, [*content][:_NAMED]))}" if isinstance(content, dict) else ""
        raise CheckpointError(f"it must hold a state dict, tensors by name; got {keys or type(content).__name__}.")
    return _Source(path, tensors, None, foreign=True)


def _describes(export_facts: Path, file: str) -> bool:
    """Whether an export.json describes the file of that name."""
    try:
        return bool(json.loads(export_facts.read_text(encoding="utf-8"))["file"] == file)
    except (OSError, ValueError, TypeError, KeyError):
        return False


def file_content(path: Path, called: str = "it") -> Any:
    """The content of a .safetensors file or of one by torch.save; no code in the file is run.

    Raises:
        CheckpointError: the file cannot be read; `called` is its name in the message.
    """
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            return load_file(path)
        return torch.load(path, map_location="cpu", weights_only=True)
    except MemoryError:
        raise
    except Exception as error:  # the readers raise many types
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise CheckpointError(
            f"{called} cannot be read as weights ({reason}). Only tensors and plain values are read, never code. If "
            "you trust a file with more in it, write its state dict alone: "
            'torch.save(torch.load(FILE, weights_only=False)["state_dict"], NEW).'
        ) from error


def _tensors(content: Mapping[Any, Any]) -> dict[str, Tensor]:
    plain = {str(key): value.detach() for key, value in content.items() if isinstance(value, Tensor)}
    return {key: value for key, value in plain.items() if value.layout is torch.strided}


def _from_export(folder: Path, model: ModelConfig) -> _Source:
    _check_architecture(native.read(folder).facts.get("architecture"), model)
    named = adapters.parse(model.backbone) if model.backbone != RESNET else None
    factory: Callable[..., Any] | None = adapters.imported(named) if named is not None and named.own else None
    weights: dict[str, Tensor] = named_weights(native.load_backbone(folder, factory)).state_dict()
    return _Source(folder / native.WEIGHTS, weights, "", foreign=False)


def _from_run(path: Path, model: ModelConfig, backbone: Backbone, print_line: PrintLine) -> _Source:
    file, state = checkpoint.load_newest(path, print_line)
    restore.check_fields(state, file)
    saved = state["config"]
    keys = RESNET_OPTIONS if saved.get("model.backbone") == RESNET else ("backbone",)
    _check_architecture({key: saved.get(f"model.{key}") for key in keys}, model)
    prefix = f"encoder.backbone.{'network.' if isinstance(backbone, Adapted) else ''}"
    return _Source(file, _tensors(state["method"]), prefix, foreign=False)


def _check_architecture(architecture: object, model: ModelConfig) -> None:
    """Raise unless the architecture that a file states is that of this run: shapes of weights do not show strides."""
    expected = model.architecture
    if architecture == expected:
        return
    if not isinstance(architecture, dict):
        raise CheckpointError(f"its architecture must be an object of keys and values; got {architecture!r:.60}.")
    texts = [", ".join(f"{key} {value}" for key, value in options.items()) for options in (architecture, expected)]
    flags = " ".join(f"--model.{key} {value}" for key, value in architecture.items() if expected.get(key) != value)
    raise CheckpointError(
        f"its network has {texts[0]}, and this run's has {texts[1]}. Give {flags}, or begin with other weights."
    )


def _fitted(source: _Source, path: Path, model: ModelConfig, expected: dict[str, Tensor]) -> InitialWeights:
    """The tensors of `source` for every name of `expected`."""
    tensors, prefix = source.tensors, source.prefix
    if prefix is None:
        prefix = max(PREFIXES, key=lambda start: sum(f"{start}{name}" in tensors for name in expected))
    key_of = {key.removeprefix(prefix): key for key in tensors if key.startswith(prefix)}
    if not expected.keys() & key_of.keys():
        raise CheckpointError(
            f"it has none of the names of {model.title}: expected {_listed(expected)}, as they are or after one of "
            f"{', '.join(filter(None, PREFIXES))}; got {_listed(tensors)}."
        )
    families = {_family(name) for name in expected}
    missing = [name for name in expected if name not in key_of and not name.endswith(_COUNTER)]
    others = [name for name in key_of if name not in expected and _family(name) in families]
    surplus = [name for name in others if not _of_classifier(name)]
    reshaped = [name for name in expected if name in key_of and _kind(tensors[key_of[name]]) != _kind(expected[name])]
    if missing or surplus or reshaped:
        parts = [f"missing: {_listed(missing)}", f"more than that network has: {_listed(surplus)}"]
        shapes = [f"{name} {_kind(tensors[key_of[name]])}, not {_kind(expected[name])}" for name in reshaped]
        raise CheckpointError(
            f"it is of another network than this run's {model.title}{_stem(model)}"
            f"{_resnet_hint({name: tensors[key] for name, key in key_of.items()}, model)}. Its keys: "
            f"{'; '.join([*parts, f'of another shape: {_listed(shapes)}'])}."
        )
    weights = {
        name: tensors[key_of[name]].to(value.dtype) if name in key_of else torch.zeros_like(value)
        for name, value in expected.items()
    }
    if diverged := not_finite(weights):
        raise CheckpointError(f"it holds a NaN or an infinity in {_listed(diverged)}.")
    used = [key_of[name] for name in expected if name in key_of]
    notes = []
    if counters := len(expected) - len(used):
        notes.append(f"{counters} {_COUNTER} are not in it and begin at 0")
    if source.foreign and model.backbone == RESNET and model.stem != "imagenet":
        notes.append(f"the stride of its 3x3 stem is not in it: taken as {STEMS[model.stem][1]}, by model.stem")
    digest = hashlib.sha256(source.file.read_bytes()).hexdigest()
    unused = sorted(tensors.keys() - set(used))
    contiguous = {name: value.contiguous().clone() for name, value in weights.items()}
    return InitialWeights(contiguous, Origin(str(path), digest, used, unused, notes))


def _listed(names: Collection[str]) -> str:
    """The number of names, and the first five."""
    ending = ", ..." if len(names) > _NAMED else ""
    return f"{len(names)} ({', '.join([*names][:_NAMED])}{ending})" if names else "none"


def _family(name: str) -> str:
    """ "layer" for layer4.1.conv1.weight: equal in networks that differ in their numbers of stages or blocks."""
    return name.partition(".")[0].rstrip("0123456789")


def _of_classifier(name: str) -> bool:
    return not _CLASSIFIERS.isdisjoint(name.split("."))


def _kind(value: Tensor) -> str:
    return f"{'' if value.is_floating_point() else 'whole numbers '}{list(value.shape)}"


def _stem(model: ModelConfig) -> str:
    return f" with the {STEMS[model.stem][0]}x{STEMS[model.stem][0]} stem {model.stem}" * (model.backbone == RESNET)


def _resnet_hint(tensors: Mapping[str, Tensor], model: ModelConfig) -> str:
    """A hint at the ResNet that a state dict seems to belong to, with its options; "" for another network."""
    first = tensors.get("conv1.weight")
    if model.backbone != RESNET or first is None or first.dim() != 4 or "layer1.0.conv1.weight" not in tensors:
        return ""
    stages: dict[str, set[str]] = {}
    for stage, block, *_ in (name.split(".") for name in tensors if name.startswith("layer") and name.count(".") > 1):
        stages.setdefault(stage, set()).add(block)
    counts = tuple(len(blocks) for _, blocks in sorted(stages.items()))
    deep = "layer1.0.conv3.weight" in tensors
    depth = next((d for d, (kind, n) in LAYOUTS.items() if n == counts and (kind is Bottleneck) == deep), None)
    width, _, kernel, _ = first.shape
    stem = " or ".join(name for name, (size, *_) in STEMS.items() if size == kernel)
    if depth is None or not stem:
        return f": it seems to be a ResNet with {' '.join(map(str, counts))} blocks and a {kernel}x{kernel} stem"
    return f": it seems to be one of --model.depth {depth} --model.width {width} --model.stem {stem}"
