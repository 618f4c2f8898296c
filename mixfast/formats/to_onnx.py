"""An ONNX graph with the map of every stage as an output, for batches and images of any size."""

import contextlib
import io
import warnings
from pathlib import Path

import torch
from torch import Tensor, nn

from mixfast.errors import ConfigError, PlatformError
from mixfast.formats.source import Source
from mixfast.models import Backbone

FILE = "backbone.onnx"
_PACKAGES = ("onnx", "onnxscript")  # that torch.onnx needs


class _Stages(nn.Module):
    """All maps of a backbone in one call."""

    def __init__(self, backbone: Backbone):
        super().__init__()
        self.backbone = backbone

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        return tuple(self.backbone.maps(images, range(1, len(self.backbone.channels) + 1)))


def files(source: Source) -> dict[str, bytes]:
    """The file by its name.

    Raises:
        PlatformError: a package that torch.onnx needs is missing.
    """
    try:
        for package in _PACKAGES:
            __import__(package)
    except ImportError as error:
        raise PlatformError(f"--to onnx: {error}. Run: pip install {' '.join(_PACKAGES)} onnxruntime") from error
    sizes = {0: torch.export.Dim("batch"), 2: torch.export.Dim.DYNAMIC, 3: torch.export.Dim.DYNAMIC}
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")  # of the exporter about itself
        try:
            program = torch.onnx.export(
                _Stages(source.backbone).eval(),
                (source.images,),
                input_names=["images"],
                output_names=[f"stage{stage}" for stage in source.stages],
                dynamic_shapes={"images": sizes},
                dynamo=True,
                verbose=False,
            )
        except torch.onnx.OnnxExporterError as error:
            raise ConfigError(f"--to onnx: torch.onnx cannot express this network: {error}") from error
    assert program is not None
    return {FILE: program.model_proto.SerializeToString()}


def maps(folder: Path, source: Source) -> list[Tensor]:
    """The maps that onnxruntime computes of the file."""
    import onnxruntime

    session = onnxruntime.InferenceSession(folder / FILE, providers=["CPUExecutionProvider"])
    return [torch.from_numpy(output) for output in session.run(None, {"images": source.images.numpy()})]


def usage(source: Source) -> str:
    """Python that runs the file."""
    side = source.side
    return f"""import numpy, onnxruntime

session = onnxruntime.InferenceSession("{FILE}")
images = numpy.zeros((1, 3, {side}, {side}), numpy.float32)  # normalised
maps = session.run(None, {{"images": images}})  # of each stage"""
