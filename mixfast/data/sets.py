"""Sets of images, in memory or in files."""

import zlib
from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from mixfast.data.streamed import Images
from mixfast.rng import Generators


@dataclass(frozen=True)
class ImageSet:
    """N images; `boxes` and `masks` are None if the data set has none."""

    images: Images  # uint8 [N, 3, H, W], RGB
    labels: Tensor  # int64 [N]; -1 for an image without a class
    class_names: tuple[str, ...]
    boxes: Tensor | None = None  # int64 [N, 4] as (x0, y0, x1, y1), half-open, in pixels
    masks: Tensor | None = None  # uint8 [N, H, W], 1 on the object
    digests: Tensor | None = None  # int64 [N]: equal for equal images; None: not computed

    def __len__(self) -> int:
        return len(self.images)

    @property
    def labelled(self) -> bool:
        """Whether every image has a class, so that kNN can be scored."""
        return bool((self.labels >= 0).all())

    def in_memory(self) -> Tensor:
        """The images as one tensor; those in files are decoded."""
        return self.images[:]

    def take(self, index: Tensor) -> "ImageSet":
        """The images at `index`, int64 [M], in memory."""
        return replace(
            self,
            images=self.images[index],
            labels=self.labels[index],
            boxes=None if self.boxes is None else self.boxes[index],
            masks=None if self.masks is None else self.masks[index],
            digests=None if self.digests is None else self.digests[index],
        )


@dataclass(frozen=True)
class Splits:
    """A data set ready for a run."""

    train: ImageSet
    test: ImageSet
    mean: tuple[float, ...]  # of the three channels, in units of [0, 1]
    std: tuple[float, ...]
    name: str

    @cached_property
    def fingerprint(self) -> dict[str, Any]:
        """Name, number of training images, and a checksum of about 100 of them: differs for other data."""
        images = self.train.images
        sample = images[:: max(1, len(images) // 100)].contiguous()
        return {"name": self.name, "images": len(images), "crc32": zlib.crc32(sample.numpy().tobytes())}


def first_balanced(labels: Tensor, limit: int) -> Tensor:
    """Indices (int64, ascending) of `limit` images: first the first of every class, then the second of every class, ...

    Class sizes differ by at most one while no class runs out. Unlabelled images count as one class.
    """
    order = torch.argsort(labels, stable=True)
    ordered = labels[order]
    rank = torch.empty_like(labels)
    starts = torch.searchsorted(ordered, ordered)  # position of the first image with the same label
    rank[order] = torch.arange(len(labels)) - starts
    return torch.argsort(rank, stable=True)[:limit].sort().values


def held_out(labels: Tensor, share: float, seed: int) -> Tensor:
    """bool [N]: true for a random `share` of the images of every class, at least one of a class of two or more."""
    generator = Generators(seed)["holdout"]
    is_held_out = torch.zeros(len(labels), dtype=torch.bool)
    for label in labels.unique():
        index = (labels == label).nonzero().flatten()
        count = min(max(1, round(share * len(index))), len(index) - 1)
        is_held_out[index[torch.randperm(len(index), generator=generator)[:count]]] = True
    return is_held_out


def channel_statistics(batches: Iterable[Tensor]) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation of each channel of batches uint8 [n, 3, H, W], in units of [0, 1]: exact sums."""
    count, total, squares = 0, torch.zeros(3, dtype=torch.int64), torch.zeros(3, dtype=torch.int64)
    for part in batches:
        count += part.numel() // 3
        values = part.transpose(0, 1).flatten(1)
        counts = torch.stack([torch.bincount(channel, minlength=256) for channel in values])
        level = torch.arange(256)
        total += (counts * level).sum(1)
        squares += (counts * level**2).sum(1)
    mean = total.double() / count
    variance = squares.double() / count - mean**2
    std = variance.clamp(min=1e-4).sqrt()  # at least 1/100 of a grey level: constant channels must not give 0
    return tuple((mean / 255).tolist()), tuple((std / 255).tolist())
