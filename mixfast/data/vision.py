"""CIFAR-10, CIFAR-100 and STL-10 through torchvision, as uint8 tensors."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from mixfast.data.config import DataConfig
from mixfast.data.kinds import KINDS, Statistics
from mixfast.data.scan import absolute, shown
from mixfast.data.sets import ImageSet
from mixfast.errors import DataError, PlatformError

DEFAULT_PATH = "data"  # as in torchvision's own examples
_CHUNK = 1024  # images resized at once


def load_vision(cfg: DataConfig) -> tuple[ImageSet, ImageSet, str, Statistics | None]:
    """Training set, test set, where they are, and the published normalisation if there is one.

    STL-10 is its 5,000 labelled training images and 8,000 test images; the 100,000 without labels are not used.

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
            found = getattr(datasets, name)(root, download=cfg.download, **{keyword: split})
        except (RuntimeError, OSError) as error:
            raise DataError(
                f"data.kind {cfg.kind}: {shown(root / folder)} is missing or damaged ({error}). Set --data.path to "
                f"the folder that holds {folder}/ (the unpacked {archive}), or let --data.download fetch it."
            ) from error
        sets.append(_image_set(found, cfg.size))
    return sets[0], sets[1], f"{cfg.kind} at {shown(root)}", kind.statistics


def _image_set(found: Any, size: int) -> ImageSet:
    """torchvision's data set in memory as ours; CIFAR keeps [N, H, W, 3], STL-10 [N, 3, H, W]."""
    images = torch.from_numpy(found.data)
    if images.shape[1] != 3:
        images = images.permute(0, 3, 1, 2).contiguous()
    labels = torch.as_tensor(found.labels if hasattr(found, "labels") else found.targets, dtype=torch.int64)
    return ImageSet(resized(images, size), labels, tuple(found.classes))


def resized(images: Tensor, size: int) -> Tensor:
    """uint8 [N, 3, H, W] as [N, 3, size, size]: antialiased bilinear, rounded; unchanged if they have the size."""
    if images.shape[2:] == (size, size):
        return images
    parts = [
        F.interpolate(part.float(), (size, size), mode="bilinear", antialias=True).round_().to(torch.uint8)
        for part in images.split(_CHUNK)
    ]
    return torch.cat(parts)
