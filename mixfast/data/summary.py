"""What was found, in one line, and what about it makes scores or training worthless, in a line each."""

from collections import Counter
from collections.abc import Callable

import torch
from torch import Tensor

from mixfast.data.cache import digest
from mixfast.data.scan import passed_over
from mixfast.data.sets import ImageSet

_LISTED = 10  # classes that are counted one by one
_NAMED = 5  # names that a warning shows of many
Say = Callable[[str], None]


def describe(name: str, train: ImageSet, test: ImageSet, passed: Counter[str] | None, say: Say) -> None:
    """Say what a data set holds, and warn of what is probably not meant.

    Args:
        name: of the data set, or the place of its files.
        train: training images.
        test: test images.
        passed: files that were passed over, by kind; None where there are no files to look for.
        say: prints a line.
    """
    parts = [f"{name}: {len(train):,} training + {len(test):,} test images, {_classes(train, test)}"]
    if passed is not None:
        parts.append(passed_over(passed))
    say("; ".join(parts))
    for warning in [*_few_images(train), *_shared_images(train, test), *_lonely_classes(train, test)]:
        say(f"warning: {warning}")


def digests(images: ImageSet) -> Tensor | None:
    """int64 [N], equal for equal images; None for images in files that were not looked through."""
    if images.digests is not None or not isinstance(images.images, Tensor):
        return images.digests
    return torch.tensor([digest(image) for image in images.images.contiguous()], dtype=torch.int64)


def _counts(images: ImageSet) -> Tensor:
    return images.labels[images.labels >= 0].bincount(minlength=len(images.class_names))


def _classes(train: ImageSet, test: ImageSet) -> str:
    counts, names = (_counts(train) + _counts(test)).tolist(), train.class_names
    without = sum(int((part.labels < 0).sum()) for part in (train, test))
    if without == len(train) + len(test):
        return "no classes"
    if len(counts) == 1 or 1 < len(counts) <= _LISTED:
        inside = ", ".join(f"{name} {count:,}" for name, count in zip(names, counts, strict=True))
    else:
        least, most = min(counts), max(counts)
        inside = f"{names[counts.index(least)]} {least:,} to {names[counts.index(most)]} {most:,} images"
    rest = f", {without:,} images without a class" if without else ""
    return f"{len(counts):,} class{'es' * (len(counts) != 1)} ({inside}){rest}"


def _few_images(train: ImageSet) -> list[str]:
    """Of images of which a batch might hold copies of one."""
    marks, count = digests(train), len(train)
    different = count if marks is None else len(marks.unique())
    if different == 1:
        return [f"all {count:,} training images are the same one: there is nothing to tell it from."]
    if different * 2 <= count:
        return [f"only {different:,} of the {count:,} training images differ: batches hold copies, taken for others."]
    return []


def _shared_images(train: ImageSet, test: ImageSet) -> list[str]:
    marks, others = digests(train), digests(test)
    if marks is None or others is None:
        return []
    shared = int(torch.isin(others, marks).sum())
    if not shared:
        return []
    return [f"{shared:,} of {len(test):,} test images are training images too: scores on them say little."]


def _lonely_classes(train: ImageSet, test: ImageSet) -> list[str]:
    """Of classes with one image, or with images on one side only."""
    if not (train.labelled and test.labelled):
        return []
    inside, outside = _counts(train), _counts(test)
    kinds = {
        "one image only": inside + outside == 1,
        "no test image": (outside == 0) & (inside > 1),
        "no training image": (inside == 0) & (outside > 1),
        "no image that can be read": inside + outside == 0,
    }
    lines = []
    for what, which in kinds.items():
        names = [train.class_names[i] for i in which.nonzero().flatten().tolist()]
        if names:
            some = ", ".join(names[:_NAMED]) + f" and {len(names) - _NAMED:,} more" * (len(names) > _NAMED)
            lines.append(f"{len(names):,} of {len(which):,} classes have {what}: {some}.")
    return lines
