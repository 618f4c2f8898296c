"""CIFAR-10, CIFAR-100 and STL-10 through torchvision, as uint8 tensors."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from mixfast.data.config import DataConfig
from mixfast.data.kinds import KINDS, Statistics
from mixfast.data.scan import absolute, printable
from mixfast.data.sets import ImageSet
from mixfast.errors import DataError, PlatformError

DEFAULT_PATH = "data"  # as in torchvision's own examples
_CHUNK = 1024  # images resized at once


def load_vision(cfg: DataConfig) -> tuple[ImageSet, ImageSet, str, Statistics | None]:
    """(training set, test set, description of their place for messages, published normalisation or None).

    Of STL-10 the 5,000 labelled training images and the 8,000 test images are used, not the 100,000 without labels.

    Raises:
        PlatformError: torchvision is missing or does not fit torch. DataError: the data is not at cfg.path.
    """
    try:
        from torchvision import datasets
    except (ImportError, RuntimeError) as error:  # RuntimeError: built for another torch
        raise PlatformError(
            f"data.kind {cfg.kind} needs torchvision, which cannot be imported ({error}). Run: pip install torchvision"
        ) from error
    kind = KINDS[cfg.kind]
    assert kind.torchvision is not None
    name, (keyword, *splits), folder, archive = kind.torchvision
    root = absolute(cfg.path or DEFAULT_PATH, "--data.path")
    sets = []
    for split in splits:
        try:
            dataset = getattr(datasets, name)(root, download=cfg.download, **{keyword: split})
        except (RuntimeError, OSError) as error:
            raise DataError(
                f"data.kind {cfg.kind}: {printable(root / folder)} is missing or damaged ({error}). Set --data.path to "
                f"the folder that holds {folder}/ (the unpacked {archive}), or let --data.download fetch it."
            ) from error
        sets.append(_image_set(dataset, cfg.size))
    return sets[0], sets[1], f"{cfg.kind} at {printable(root)}", kind.statistics


def _image_set(dataset: Any, size: int) -> ImageSet:
    """An `ImageSet` from a data set of torchvision; CIFAR stores [N, H, W, 3], STL-10 [N, 3, H, W]."""
    images = torch.from_numpy(dataset.data)
    if images.shape[1] != 3:
        images = images.permute(0, 3, 1, 2).contiguous()
    labels = torch.as_tensor(dataset.labels if hasattr(dataset, "labels") else dataset.targets, dtype=torch.int64)
    return ImageSet(resized(images, size), labels, tuple(dataset.classes))


def resized(images: Tensor, size: int) -> Tensor:
    """Resize uint8 [N, 3, H, W] to [N, 3, size, size], bilinear with antialiasing; unchanged if the size is equal."""
    if images.shape[2:] == (size, size):
        return images
    parts = [
        F.interpolate(part.float(), (size, size), mode="bilinear", antialias=True).round_().to(torch.uint8)
        for part in images.split(_CHUNK)
    ]
    return torch.cat(parts)
