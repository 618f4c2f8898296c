"""The user's own data sets: from a factory, or as tensors."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from mixfast.data import decode
from mixfast.data.config import DataConfig
from mixfast.data.decoder import pillow_pixels, square
from mixfast.data.kinds import OBJECT
from mixfast.data.loader import Decoded, Library
from mixfast.data.sets import ImageSet, Splits, channel_statistics, first_balanced, held_out
from mixfast.data.streamed import Images, Streamed
from mixfast.data.summary import describe
from mixfast.errors import ConfigError, DataError
from mixfast.outside import import_module

_MIN_FOR_WORKERS = 4096  # images; fewer are read sooner than workers have started
_CHUNK = 64  # images that are read at once
_EXPECTED = (
    "an image or (image, label): a PIL image, a uint8 tensor [3, H, W], [1, H, W] or [H, W], or a uint8 array "
    "[H, W, 3], [H, W, 1] or [H, W]; a label is a whole number, or None"
)


class Items(Dataset[Any]):
    """The items of the user's training and test set as squares, numbered through both sets."""

    def __init__(self, title: str, sets: Sequence[Any], size: int):
        self.title, self.sets, self.size = title, sets, size

    def __getitems__(self, numbers: Sequence[int]) -> Decoded:
        """Images and labels; `error` names the first item that is not an image."""
        images = torch.empty(len(numbers), 3, self.size, self.size, dtype=torch.uint8)
        labels = torch.full((len(numbers),), -1)
        for row, number in enumerate(numbers):
            part = 0 if number < len(self.sets[0]) else 1
            index = number - part * len(self.sets[0])
            item = self.sets[part][index]
            image, label = item if isinstance(item, tuple) and len(item) == 2 else (item, None)
            try:
                images[row] = square(as_pixels(image), self.size)
                labels[row] = as_label(label)
            except (TypeError, ValueError) as error:
                place = f"item {index} of the {('training', 'test')[part]} set"
                return Decoded(images, labels, {}, f"{self.title}: {place}: {error}; expected {_EXPECTED}.")
        return Decoded(images, labels, {}, "")


def as_pixels(image: Any) -> Tensor:
    """uint8 [3, H, W] of one image.

    Raises:
        TypeError: it is not an image, or not uint8. ValueError: it has another shape.
    """
    from PIL import Image

    if isinstance(image, Image.Image):
        return pillow_pixels(image)
    if not isinstance(image, Tensor | np.ndarray):
        raise TypeError(f"a {type(image).__name__}")
    description = f"a {type(image).__name__} of {image.dtype} {list(image.shape)}"
    if image.dtype not in (torch.uint8, np.uint8):
        raise TypeError(f"{description}, not of uint8 (leave out what converts it, such as ToTensor or Normalize)")
    pixels = image if isinstance(image, Tensor) else torch.from_numpy(image.copy())
    if isinstance(image, np.ndarray) and image.ndim == 3:
        pixels = pixels.permute(2, 0, 1)
    pixels = pixels[None] if pixels.ndim == 2 else pixels
    if pixels.ndim != 3 or pixels.shape[0] not in (1, 3) or 0 in pixels.shape:
        raise ValueError(description)
    return pixels.expand(3, -1, -1)


def as_label(label: Any) -> int:
    """A class as a number; -1 for None.

    Raises:
        TypeError: it is not a whole number. ValueError: it is below -1.
    """
    if label is None:
        return -1
    if isinstance(label, Tensor | np.ndarray) and label.ndim == 0:
        label = label.item()
    if isinstance(label, bool) or not isinstance(label, int | np.integer):
        raise TypeError(f"the label {label!r} of type {type(label).__name__}")
    if label < -1:
        raise ValueError(f"the label {label}")
    return int(label)


def call_factory(kind: str) -> Sequence[Any]:
    """The data sets that package.module:factory returns: (training,) or (training, test).

    Raises:
        ConfigError: no such module, or no such function in it. DataError: it returns something else.
    """
    path, _, name = kind.partition(":")
    module = import_module(path, f"--data.kind {kind}")
    factory = getattr(module, name, None)
    if not callable(factory):
        raise ConfigError(f"--data.kind {kind}: {path} must define {name}(); got {factory!r}.")
    return _as_sets(factory(), title_of(kind), f"{name}() must return")


def checked_object(passed: object) -> Sequence[Any]:
    """The data sets that a Python call was passed: (training,) or (training, test); a tensor is one.

    Raises:
        ConfigError: none was passed. DataError: it is something else.
    """
    if passed is None:
        raise ConfigError(
            f"--data.kind {OBJECT}: the images were passed to mixfast.fit, and no command can read them. Pass them "
            "again: mixfast.fit(resume=..., data=...), mixfast.knn(..., trained_on=...)."
        )
    return _as_sets(passed, title_of(OBJECT), "it must be a folder's path, a uint8 tensor [N, 3, H, W],")


def title_of(kind: str) -> str:
    """The name of the data in messages."""
    return "data" if kind == OBJECT else f"--data.kind {kind}"


def _as_sets(returned: object, title: str, must: str) -> Sequence[Any]:
    """The data sets as a sequence; `must` is the start of the error's sentence on what is allowed."""
    sets = returned if isinstance(returned, tuple) else (returned,)
    if len(sets) not in (1, 2) or not all(hasattr(part, "__getitem__") and hasattr(part, "__len__") for part in sets):
        types = ", ".join(type(part).__name__ for part in sets)
        raise DataError(
            f"{title}: {must} a map-style torch.utils.data.Dataset (with __getitem__ and __len__), or a tuple of two, "
            f"training and test; got {types}."
        )
    for part, set_name in zip(sets, ("training", "test"), strict=False):
        if len(part) == 0:
            raise DataError(f"{title}: the {set_name} set is empty.")
    return sets


def read_sets(
    sets: Sequence[Any],
    cfg: DataConfig,
    seed: int,
    print_line: Callable[[str], None],
    cores: int | None = None,
    device_bytes: int | None = None,
) -> tuple[ImageSet, ImageSet]:
    """The training and test images of the user's data sets, in memory or read while the network trains.

    Args:
        sets: (training,) or (training, test).
        cfg: kind, size, limit, test_limit, holdout, in_memory and workers are read.
        seed: chooses the held-out images if there is only one set.
        print_line: prints a line.
        cores: number of worker processes if cfg.workers is None; None: one for each core. Without cfg.workers, small
            data sets and objects that were passed are read by this process.
        device_bytes: memory of the training device, if it is not the host's.

    Raises:
        DataError: an item is not an image, or the images do not fit in memory.
    """
    title = title_of(cfg.kind)
    counts = [len(part) for part in sets]
    workers = cfg.workers if cfg.workers is not None else cores or decode.cores()
    if cfg.workers is None and (sum(counts) < _MIN_FOR_WORKERS or cfg.kind == OBJECT):
        workers = 0
    library = Library(Items(title, sets, cfg.size), range(sum(counts)), workers)
    splits = list(torch.arange(sum(counts)).split(counts))
    labels = torch.cat([_labels(library, *pair) for pair in zip(splits, sets, strict=True)])
    if len(sets) == 1:
        is_held_out = held_out(labels, cfg.holdout, seed)
        if not is_held_out.any():
            raise DataError(f"{title}: too few images to hold some out; give two data sets, training and test.")
        splits = [(~is_held_out).nonzero().flatten(), is_held_out.nonzero().flatten()]
    limits = (cfg.limit, cfg.test_limit)
    chosen = [
        numbers[first_balanced(labels[numbers], n or len(numbers))] for numbers, n in zip(splits, limits, strict=True)
    ]
    names = tuple(map(str, getattr(sets[0], "classes", None) or range(int(labels.max()) + 1)))
    images: list[Images] = [Streamed(library, numbers) for numbers in chosen]
    count = sum(map(len, chosen))
    if decode.fits_in_memory(cfg, count, device_bytes):
        decode.check_memory(count, cfg.size, title)
        with decode.progress(f"reading {cfg.kind}", count, print_line) as advance:
            images = [_read_all(files, advance) for files in images]
    train, test = (ImageSet(numbers, labels[index], names) for numbers, index in zip(images, chosen, strict=True))
    return train, test


def _read_all(files: Images, advance: Callable[[int], None]) -> Tensor:
    """Read all images, a few at a time: uint8 [N, 3, S, S]."""
    images, start = torch.empty(files.shape, dtype=torch.uint8), 0
    for batch in files.split(_CHUNK):
        images[start : start + len(batch)] = batch
        start += len(batch)
        advance(len(batch))
    return images


def _labels(library: Library, numbers: Tensor, part: Any) -> Tensor:
    """int64 [N]: from the attribute `targets` or `labels`, as torchvision's data sets have it, or from the items."""
    labels = getattr(part, "targets", getattr(part, "labels", None))
    if labels is not None and len(labels) == len(numbers):
        return torch.tensor([as_label(label) for label in labels])
    if not isinstance(part[0], tuple):
        return torch.full((len(numbers),), -1)
    return torch.cat([decoded.labels for decoded in library.decoded(numbers.split(_CHUNK))])


def from_tensor(
    images: Tensor,
    labels: Tensor | None = None,
    *,
    test: tuple[Tensor, Tensor | None] | None = None,
    holdout: float = 0.1,
    seed: int = 0,
    name: str = "tensor",
    print_line: Callable[[str], None] = print,
) -> Splits:
    """Images in memory as the data of a run, normalised by their own mean and deviation.

    Args:
        images: uint8 [N, 3, S, S], RGB.
        labels: int64 [N]; -1, or None for all, for images without a class: kNN is then off.
        test: (images, labels) of the test set, uint8 [M, 3, S, S] and int64 [M]; None: a share of `images` is held out.
        holdout: the share of every class that is held out.
        seed: chooses the held-out images.
        name: of the data in messages and checkpoints.
        print_line: prints a line about the data, and warnings.

    Raises:
        ValueError: other shapes or types.
    """
    sets = [_tensor_set("images", images, labels)]
    if test is not None:
        sets.append(_tensor_set("test", *test))
        if test[0].shape[1:] != images.shape[1:]:
            shape, test_shape = list(images.shape[1:]), list(test[0].shape[1:])
            raise ValueError(f"from_tensor: test images must have the shape of the others, {shape}; got {test_shape}.")
    else:
        is_held_out = held_out(sets[0].labels, holdout, seed)
        if not is_held_out.any():
            raise ValueError("from_tensor: too few images to hold some out for the test; give test.")
        sets = [sets[0].take(index.nonzero().flatten()) for index in (~is_held_out, is_held_out)]
    describe(name, sets[0], sets[1], None, print_line)
    mean, std = channel_statistics(sets[0].images.split(1024))
    return Splits(sets[0], sets[1], mean, std, name)


def _tensor_set(argument: str, images: Tensor, labels: Tensor | None) -> ImageSet:
    count, channels, height, width = images.shape if images.ndim == 4 else (0, 0, 0, 0)
    if images.dtype != torch.uint8 or count == 0 or channels != 3 or height != width:
        raise ValueError(
            f"from_tensor: {argument} must be uint8 [N, 3, S, S]; got {images.dtype} {list(images.shape)}."
        )
    labels = torch.full((len(images),), -1) if labels is None else labels.long()
    if labels.shape != (len(images),):
        raise ValueError(f"from_tensor: labels must be [{len(images)}], one for each image; got {list(labels.shape)}.")
    return ImageSet(images, labels, tuple(map(str, range(int(labels.max()) + 1))))
