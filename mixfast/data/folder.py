"""A folder of image files as a data set: which files, which classes, which split. Decoding is in decode.py.

Layouts, tried in this order:
    path/train/... with path/test/... or path/val/...   each laid out as one of the two below
    path/<class>/**/*.jpg                               one class per subfolder that holds an image
    path/*.jpg                                          no classes: every label is -1, and kNN cannot be scored
A single subfolder is no class either: its images count as unlabelled.
"""

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from mixfast.data import decode
from mixfast.data.config import DataConfig
from mixfast.data.loader import ImageFiles, Library
from mixfast.data.sets import ImageSet, first_balanced, held_out
from mixfast.data.streamed import Streamed
from mixfast.errors import ConfigError, DataError

ENDINGS = (".jpg", ".jpeg", ".png", ".bmp", ".gif", ".ppm", ".pgm", ".tif", ".tiff", ".webp")
LAYOUTS = (
    "Accepted: PATH/<class>/*.jpg, PATH/*.jpg (no labels), or PATH/train and PATH/test (or val) laid out like that; "
    f"endings {' '.join(ENDINGS)}."
)


@dataclass(frozen=True)
class Listing:
    """Image files below a folder, in the order of their sorted names."""

    root: Path
    files: tuple[str, ...]  # relative to root
    labels: Tensor  # int64 [files], -1 without a class
    class_names: tuple[str, ...]

    def take(self, index: Tensor) -> "Listing":
        """The files at `index`, int64 [M]."""
        files = tuple(self.files[i] for i in index.tolist())
        return Listing(self.root, files, self.labels[index], self.class_names)


def load_folder(
    cfg: DataConfig,
    seed: int,
    say: Callable[[str], None],
    cores: int | None = None,
    device_bytes: int | None = None,
) -> tuple[ImageSet, ImageSet]:
    """Decode the training and test images of a folder, or read them from the cache, or leave them in their files.

    Args:
        cfg: path, test_path, size, limit, test_limit, holdout, in_memory, cache, cache_dir and workers are read.
        seed: chooses the held-out images where the folder has no test set.
        say: prints a line.
        cores: processes that decode, if cfg.workers does not say; None: one for each core of this process.
        device_bytes: memory of the training device, if it is not the host's.

    Raises:
        ConfigError: no path. DataError: nothing there, nothing readable, or more than fits in memory.
    """
    train, test = find_splits(cfg, seed)
    if cfg.limit is not None:
        train = train.take(first_balanced(train.labels, cfg.limit))
    if cfg.test_limit is not None:
        test = test.take(first_balanced(test.labels, cfg.test_limit))
    if decode.fits_in_memory(cfg, len(train.files) + len(test.files), device_bytes):
        return _read(train, cfg, say), _read(test, cfg, say)
    workers = cfg.workers if cfg.workers is not None else cores or decode.cores()
    return _leave((train, test), cfg.size, workers, say)


def find_splits(cfg: DataConfig, seed: int) -> tuple[Listing, Listing]:
    """The training and test files; the test files' labels count in the training classes."""
    if cfg.path is None:
        raise ConfigError(f"data.kind folder needs --data.path. {LAYOUTS}")
    root = _existing(cfg.path, "data.path")
    train_root, test_root = root, None
    held = [root / name for name in ("test", "val") if (root / name).is_dir()]
    if (root / "train").is_dir() and (held or cfg.test_path is not None):
        train_root, test_root = root / "train", held[0] if held else None
    if cfg.test_path is not None:
        test_root = _existing(cfg.test_path, "data.test_path")
    train = scan(train_root)
    if test_root is None:
        return hold_out(train, cfg.holdout, seed)
    return train, _with_classes_of(train, scan(test_root))


def _existing(path: str, option: str) -> Path:
    folder = Path(path).expanduser()
    if not folder.is_dir():
        what = "is a file" if folder.exists() else "does not exist"
        raise DataError(f"{option} {folder}: {what}; it must be a folder of images. {LAYOUTS}")
    return folder


def scan(root: Path) -> Listing:
    """List the image files of a folder laid out as path/<class>/... or path/*.

    Raises:
        DataError: no file with one of the endings; the message says what was found instead.
    """
    classes = {
        entry.name: _images_below(entry) for entry in sorted(root.iterdir()) if _visible(entry) and entry.is_dir()
    }
    classes = {name: files for name, files in classes.items() if files}
    if len(classes) > 1:
        files = [f"{name}/{file}" for name, inside in classes.items() for file in inside]
        sizes = torch.tensor([len(inside) for inside in classes.values()])
        return Listing(root, tuple(files), torch.arange(len(classes)).repeat_interleave(sizes), tuple(classes))
    files = _images_below(root)
    if not files:
        others = [entry.name for entry in sorted(root.iterdir())][:3]
        found = f"it holds {', '.join(others)}" if others else "it is empty"
        raise DataError(f"{root}: no image found; {found}. {LAYOUTS}")
    return Listing(root, tuple(files), torch.full((len(files),), -1), ())


def _images_below(folder: Path) -> list[str]:
    """Image files below a folder, sorted, relative to it; hidden files and folders are passed over."""
    found = []
    for parent, folders, files in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        inside = Path(parent).relative_to(folder)
        found += [(inside / file).as_posix() for file in files if _visible(Path(file)) and _is_image(file)]
    return sorted(found)


def _visible(path: Path) -> bool:
    return not path.name.startswith(".")


def _is_image(file: str) -> bool:
    return file.lower().endswith(ENDINGS)


def hold_out(listing: Listing, share: float, seed: int) -> tuple[Listing, Listing]:
    """Split off a test set, as `held_out` chooses it."""
    held = held_out(listing.labels, share, seed)
    if not held.any():
        raise DataError(f"{listing.root}: too few images to hold some out for the test; give --data.test-path.")
    return listing.take((~held).nonzero().flatten()), listing.take(held.nonzero().flatten())


def _with_classes_of(train: Listing, test: Listing) -> Listing:
    """`test` with labels that count in `train`'s classes; unlabelled if either is."""
    if not train.class_names or not test.class_names:
        return Listing(test.root, test.files, torch.full_like(test.labels, -1), train.class_names)
    strangers = [name for name in test.class_names if name not in train.class_names]
    if strangers:
        raise DataError(
            f"{test.root}: test classes {', '.join(strangers[:5])} ({len(strangers)} in all) are not among the "
            f"{len(train.class_names)} training classes of {train.root}. Use the same folder names in both."
        )
    position = torch.tensor([train.class_names.index(name) for name in test.class_names])
    return Listing(test.root, test.files, position[test.labels], train.class_names)


def _read(listing: Listing, cfg: DataConfig, say: Callable[[str], None]) -> ImageSet:
    images, readable = decode.read(listing.root, listing.files, cfg.size, cfg, say)
    return ImageSet(images, listing.labels[readable], listing.class_names)


def _leave(
    listings: tuple[Listing, Listing], size: int, workers: int, say: Callable[[str], None]
) -> tuple[ImageSet, ImageSet]:
    """Training and test images that stay in their files, with one set of workers for both."""
    paths = [os.path.join(listing.root, file) for listing in listings for file in listing.files]
    counts = [len(listing.files) for listing in listings]
    library = Library(ImageFiles(size), paths, counts, workers, say)
    numbers = torch.arange(len(paths)).split(counts)
    sets = [
        ImageSet(Streamed(library, index), listing.labels, listing.class_names)
        for listing, index in zip(listings, numbers, strict=True)
    ]
    return sets[0], sets[1]
