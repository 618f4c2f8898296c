"""From a `DataConfig` to images in memory."""

from collections.abc import Callable

from mixfast.data import scenes
from mixfast.data.config import DataConfig
from mixfast.data.sets import ImageSet, Splits, channel_statistics, first_balanced


def load(cfg: DataConfig, seed: int, say: Callable[[str], None] = print) -> Splits:
    """Training and test images as uint8 tensors on the CPU, and the numbers that normalise them.

    Args:
        cfg: which data.
        seed: of everything random about the data (scenes, the held-out share of a folder), not of the training.
        say: prints a line about slow or incomplete reading.

    Raises:
        DataError: data missing, empty, unreadable or too large for the memory.
        PlatformError: torchvision is needed and missing.
        ConfigError: an impossible combination of options.
    """
    if cfg.kind == "scenes":
        train = scenes.generate(cfg.scenes, cfg.size, seed, "train", cfg.scene)
        test = scenes.generate(cfg.test_scenes, cfg.size, seed, "test", cfg.scene)
        published = None
    elif cfg.kind == "folder":
        from mixfast.data.folder import load_folder

        train, test = load_folder(cfg, seed, say)
        published = None
    else:
        from mixfast.data.vision import load_vision

        train, test, published = load_vision(cfg)
    train, test = _limited(train, cfg.limit), _limited(test, cfg.test_limit)
    mean, std = published or channel_statistics(train.images)
    return Splits(train, test, mean, std, cfg.kind)


def _limited(images: ImageSet, limit: int | None) -> ImageSet:
    if limit is None or limit >= len(images):
        return images
    return images.take(first_balanced(images.labels, limit))
