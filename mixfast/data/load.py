"""From a `DataConfig` to images."""

import time
from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from mixfast.data import scenes
from mixfast.data.config import DataConfig
from mixfast.data.kinds import OBJECT
from mixfast.data.sets import ImageSet, Splits, channel_statistics, first_balanced
from mixfast.data.streamed import Streamed
from mixfast.data.summary import describe
from mixfast.errors import ConfigError

_CHUNK = 1024  # images in memory that are summed at once
_BATCH = 64  # of images in files
_EXACT = 65_536  # folder, own: largest number of images of which all are read for mean and deviation
_SAMPLE = 8_192  # evenly spaced images that are read for them in larger data sets


def load(
    cfg: DataConfig,
    seed: int,
    print_line: Callable[[str], None] = print,
    *,
    cores: int | None = None,
    device_bytes: int | None = None,
    statistics: tuple[tuple[float, ...], tuple[float, ...]] | None = None,
    images: object = None,
) -> Splits:
    """Training and test images as uint8 tensors on the CPU, or in files, with mean and deviation of the channels.

    Args:
        cfg: the kind of data and its options.
        seed: of everything random about the data (scenes, the held-out share of a folder), not of the training.
        print_line: prints a line about the data, and warnings.
        cores: number of CPU cores that decode; None: those that this process may run on.
        device_bytes: memory of the training device, if it is not the host's.
        statistics: mean and deviation of the channels, if another process has measured them.
        images: the images of the kind "object": `Splits`, a tensor, a map-style data set, or a tuple of two of these.

    Raises:
        DataError: data missing, empty, unreadable or too large for the memory.
        PlatformError: torchvision is needed and missing.
        ConfigError: an impossible combination of options.
    """
    if images is not None and cfg.kind != OBJECT:
        raise ConfigError(
            f"data: the run reads its images by --data.kind {cfg.kind}, but images were passed as well. Omit data."
        )
    name, passed, published = cfg.kind, None, None
    if cfg.kind == "scenes":
        train = scenes.generate(cfg.scenes, cfg.size, seed, "train", cfg.scene)
        test = scenes.generate(cfg.test_scenes, cfg.size, seed, "test", cfg.scene)
    elif cfg.kind == "folder":
        from mixfast.data.folder import load_folder

        train, test, name, passed = load_folder(cfg, seed, print_line, cores=cores, device_bytes=device_bytes)
    elif isinstance(images, Splits):
        train, test, published = images.train, images.test, (images.mean, images.std)
    elif ":" in cfg.kind or cfg.kind == OBJECT:
        from mixfast.data import own

        sets = own.call_factory(cfg.kind) if ":" in cfg.kind else own.checked_object(images)
        train, test = own.read_sets(sets, cfg, seed, print_line, cores, device_bytes)
    else:
        from mixfast.data.vision import load_vision

        train, test, name, published = load_vision(cfg)
    train, test = _limited(train, cfg.limit), _limited(test, cfg.test_limit)
    describe(name, train, test, passed, print_line)
    mean, std = published or statistics or _statistics(train, cfg.kind, print_line)
    return Splits(train, test, mean, std, cfg.kind)


def _limited(images: ImageSet, limit: int | None) -> ImageSet:
    if limit is None or limit >= len(images):
        return images
    return images.take(first_balanced(images.labels, limit))


def _statistics(
    train: ImageSet, kind: str, print_line: Callable[[str], None]
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and deviation of the training images' channels; measures how fast images in files are decoded."""
    images, count = train.images, len(train)
    if (kind in ("folder", OBJECT) or ":" in kind) and count > _EXACT:
        index = torch.arange(_SAMPLE) * count // _SAMPLE
        images = images[index] if isinstance(images, Tensor) else images.take(index)
    if isinstance(images, Tensor):
        return channel_statistics(images.split(_CHUNK))
    result = channel_statistics(_timed(images))
    library = images.library
    decoders = f"{library.workers} process{'es' * (library.workers > 1)}" if library.workers else "this process"
    print_line(
        f"{count:,} images stay in their files: {decoders} can decode {library.images_per_s:,.0f} images/s of "
        f"{library.size} px, measured alone on {len(images):,} of them"
    )
    return result


def _timed(images: Streamed) -> Iterator[Tensor]:
    """All images in batches; stores in the library how many it decodes per second, once its workers have started."""
    for _ in images.take(slice(_BATCH)).split(_BATCH):
        pass
    start = time.perf_counter()
    yield from images.split(_BATCH)
    images.library.images_per_s = len(images) / (time.perf_counter() - start)
