"""The exported backbone as files of other libraries, which are reloaded there if possible and compared."""

import importlib
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from mixfast.errors import CheckpointError
from mixfast.files import write_whole
from mixfast.formats import to_detectron2, to_mmdet, to_onnx, to_timm, to_torchvision
from mixfast.formats.source import Source

__all__ = ["TARGETS", "Source", "Target", "checked", "write"]


@dataclass(frozen=True)
class Target:
    """A library for which weights are written."""

    library: str  # the module that computes `maps`
    files: Callable[[Source], dict[str, bytes]]  # by name; ConfigError if the library has no such network
    maps: Callable[[Path, Source], list[Tensor]]  # of all stages, computed by the library from the files in a folder
    usage: Callable[[Source], str]  # Python that loads the files, from their folder
    tolerance: float  # of a map, relative to its largest value


# By the words of --to.
TARGETS = {
    "torchvision": Target("torchvision.models", to_torchvision.files, to_torchvision.maps, to_torchvision.usage, 0.0),
    "timm": Target("timm", to_timm.files, to_timm.maps, to_timm.usage, 0.0),
    "detectron2": Target("detectron2.modeling", to_detectron2.files, to_detectron2.maps, to_detectron2.usage, 1e-5),
    "mmdet": Target("mmdet.models", to_mmdet.files, to_mmdet.maps, to_mmdet.usage, 1e-5),
    "onnx": Target("onnxruntime", to_onnx.files, to_onnx.maps, to_onnx.usage, 1e-4),
}


def checked(target: Target, files: dict[str, bytes], source: Source) -> str:
    """Load files in their library and compare all maps; returns the result as text.

    Raises:
        CheckpointError: the library computes other maps.
    """
    try:
        importlib.import_module(target.library)
    except Exception as error:  # absent, or broken in one of many ways
        return f"not loaded there: {target.library} cannot be imported ({error})"
    with tempfile.TemporaryDirectory() as folder:
        write(files, Path(folder))
        library_maps = target.maps(Path(folder), source)
    for stage, own_map, library_map in zip(source.stages, source.maps(), library_maps, strict=True):
        worst = (own_map - library_map).abs().max().item() if own_map.shape == library_map.shape else float("inf")
        if not worst <= target.tolerance * own_map.abs().max().item():  # NaN is not
            raise CheckpointError(
                f"{', '.join(files)}: the map of stage {stage} that {target.library} computes differs by {worst:.2e}; "
                "nothing was written."
            )
    limit = f"within {target.tolerance:g}" if target.tolerance else "to the bit"
    return f"loaded by {target.library}, maps equal {limit}"


def write(files: dict[str, bytes], folder: Path) -> None:
    """Write files into a folder, which is created if it is missing, each completely or not at all."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        write_whole(folder / name, content)
