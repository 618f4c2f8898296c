"""A folder of image files as a data set: training and test files, and their images.

Layouts, tried in this order; each part has one of the layouts of scan.py:
    path/train/... with path/test/... or path/val/...   in any case, also training, testing, valid and validation
    path/train/... alone, or path/...                   a share is held out for the test
"""

import os
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import torch

from mixfast.data import decode
from mixfast.data.config import DataConfig
from mixfast.data.loader import ImageFiles, Library
from mixfast.data.scan import ENDINGS, LAYOUTS, Listing, absolute, printable, scan, subfolders
from mixfast.data.sets import ImageSet, first_balanced, held_out
from mixfast.data.streamed import Images, Streamed, take
from mixfast.errors import ConfigError, DataError

__all__ = ["ENDINGS", "find_splits", "load_folder", "scan"]

_TRAIN = ("train", "training")
_TEST = (("test", "testing"), ("val", "valid", "validation"))  # the first of these kinds that is there
PrintLine = Callable[[str], None]


def load_folder(
    cfg: DataConfig,
    seed: int,
    print_line: PrintLine,
    cores: int | None = None,
    device_bytes: int | None = None,
) -> tuple[ImageSet, ImageSet, str, Counter[str]]:
    """Decode the training and test images of a folder, or read them from the cache, or leave them in their files.

    Files that cannot be decoded are left out, whether the images are in memory or in their files.

    Args:
        cfg: path, test_path, size, limit, test_limit, holdout, in_memory, cache, cache_dir and workers are read.
        seed: chooses the held-out images where the folder has no test set.
        print_line: prints a line.
        cores: processes that decode, if cfg.workers does not say; None: one for each core of this process.
        device_bytes: memory of the training device, if it is not the host's.

    Returns:
        (train, test, folder, passed): the images, their folder, and the number of files passed over in it, by kind.

    Raises:
        ConfigError: no path. DataError: no images, no readable images, or more than fit in memory.
    """
    train, test = find_splits(cfg, seed)
    for note in dict.fromkeys((*train.notes, *test.notes)):
        print_line(note)
    if cfg.limit is not None:
        train = train.take(first_balanced(train.labels, cfg.limit))
    if cfg.test_limit is not None:
        test = test.take(first_balanced(test.labels, cfg.test_limit))
    library = None
    if not decode.fits_in_memory(cfg, len(train.files) + len(test.files), device_bytes):
        workers = cfg.workers if cfg.workers is not None else cores or decode.cores()
        paths = [os.path.join(part.root, file) for part in (train, test) for file in part.files]
        library = Library(ImageFiles(cfg.size), paths, workers)
    if train.root == test.root:  # one pass, and one file of the cache
        sets = _image_sets((train, test), 0, library, cfg, print_line)
    else:
        sets = _image_sets((train,), 0, library, cfg, print_line)
        sets += _image_sets((test,), len(train.files), library, cfg, print_line)
    passed = train.passed if train.root == test.root else train.passed + test.passed
    passed["unreadable"] = len(train.files) + len(test.files) - sum(map(len, sets))
    return sets[0], sets[1], printable(absolute(str(cfg.path), "--data.path")), +passed


def _image_sets(
    listings: Sequence[Listing], first: int, library: Library | None, cfg: DataConfig, print_line: PrintLine
) -> list[ImageSet]:
    """The images of listings with one root: in memory, or in their files, as images `first` and on of a library."""
    joined = Listing.joined(listings)
    images: Images
    if library is None:
        images, readable = decode.read(joined, cfg, print_line)
    else:
        readable = decode.examine(joined, library, first, cfg, print_line)
        images = Streamed(library, first + readable.positions)
    sets: list[ImageSet] = []
    start = 0
    for listing in listings:
        bounds = torch.searchsorted(readable.positions, torch.tensor([start, start + len(listing.files)])).tolist()
        if bounds[0] == bounds[1]:
            raise DataError(
                f"{printable(listing.root)}: none of the {len(listing.files):,} images of a split can be read."
            )
        rows = slice(*bounds)
        labels, names = joined.labels[readable.positions[rows]], tuple(map(printable, listing.class_names))
        sets.append(ImageSet(take(images, rows), labels, names, digests=readable.digests[rows]))
        start += len(listing.files)
    return sets


def find_splits(cfg: DataConfig, seed: int) -> tuple[Listing, Listing]:
    """The training and test files; the labels of both are numbers of training classes."""
    if cfg.path is None:
        raise ConfigError(f"data.kind folder needs --data.path. {LAYOUTS}")
    root = _existing(cfg.path, "data.path")
    names = subfolders(root)
    train, test = _split_folder(_TRAIN, names, root), ""
    for kind in _TEST:
        test = test or _split_folder(kind, names, root)
    if cfg.test_path is not None:
        test_root = _existing(cfg.test_path, "data.test_path")
    elif train and test:
        test_root = root / test
    else:
        test_root = None
    if not train or (test_root is None and names != [train]):  # "train" is one of several classes
        listing = scan(root)
    else:
        listing = scan(root / train)
        beside = [printable(name) for name in names if name != train and (name != test or cfg.test_path is not None)]
        if beside:
            note = f"{printable(root)}: its folders {', '.join(beside[:5])} ({len(beside)} in all) are not read"
            listing = replace(listing, notes=(*listing.notes, note))
    if test_root is None:
        return hold_out(listing, cfg.holdout, seed)
    return listing, _with_classes_of(listing, scan(test_root))


def _existing(path: str, option: str) -> Path:
    folder = absolute(path, f"--{option}")
    try:
        os.stat(os.path.join(folder, "."))
        return folder
    except (FileNotFoundError, NotADirectoryError):
        problem = "is a file" if folder.is_file() else "does not exist"
    except OSError as error:
        problem = f"cannot be read ({error.strerror})"
    raise DataError(f"{option} {printable(folder)}: {problem}; it must be a folder of images. {LAYOUTS}")


def _split_folder(spellings: Sequence[str], names: Sequence[str], root: Path) -> str:
    """The one of `names` that is among `spellings`, in any case; "" if none is."""
    matching = [name for name in names if name.lower() in spellings]
    if len(matching) > 1:
        raise DataError(
            f"{printable(root)}: {' and '.join(map(printable, matching))} could each be the same split. Name the "
            "folders by --data.path and --data.test_path."
        )
    return matching[0] if matching else ""


def hold_out(listing: Listing, share: float, seed: int) -> tuple[Listing, Listing]:
    """Split off a test set, as `held_out` chooses it."""
    is_held_out = held_out(listing.labels, share, seed)
    if not is_held_out.any():
        raise DataError(
            f"{printable(listing.root)}: too few images to hold some out for the test; give --data.test-path."
        )
    return listing.take((~is_held_out).nonzero().flatten()), listing.take(is_held_out.nonzero().flatten())


def _with_classes_of(train: Listing, test: Listing) -> Listing:
    """`test` with labels that are numbers of `train`'s classes; without labels if either has none."""
    if not train.class_names or not test.class_names:
        return replace(test, labels=torch.full_like(test.labels, -1), class_names=train.class_names)
    unknown = [printable(name) for name in test.class_names if name not in train.class_names]
    if unknown:
        raise DataError(
            f"{printable(test.root)}: test classes {', '.join(unknown[:5])} ({len(unknown)} in all) are not among the "
            f"{len(train.class_names)} training classes of {printable(train.root)}. Use the same folder names in both."
        )
    number = {name: label for label, name in enumerate(train.class_names)}
    position = torch.tensor([number[name] for name in test.class_names])
    return replace(test, labels=position[test.labels], class_names=train.class_names)
