"""A data set summed up in one line, and a warning line for everything that makes scores or training worthless."""

from collections import Counter
from collections.abc import Callable

import torch
from torch import Tensor

from mixfast.data.cache import digest
from mixfast.data.scan import passed_over
from mixfast.data.sets import ImageSet

_LISTED = 4  # classes that are counted one by one; of more, a line names the first three
_NAMED = 5  # names that a warning shows of many
PrintLine = Callable[[str], None]


def describe(name: str, train: ImageSet, test: ImageSet, passed: Counter[str] | None, print_line: PrintLine) -> None:
    """Print what a data set contains, and warnings of probable mistakes.

    Args:
        name: of the data set, or the place of its files.
        train: training images.
        test: test images.
        passed: files that were passed over, by kind; None where there are no files to look for.
        print_line: prints a line.
    """
    parts = [f"{name}: {len(train):,} training + {len(test):,} test images, {_classes(train, test)}"]
    if passed is not None:
        parts.append(passed_over(passed))
    print_line("; ".join(parts))
    for warning in [*_copies(train, test), *_lonely_classes(train, test)]:
        print_line(f"warning: {warning}")


def _classes(train: ImageSet, test: ImageSet) -> str:
    names, inside, outside = _counts(train, test)
    counts = (inside + outside).tolist()
    without = sum(int((part.labels < 0).sum()) for part in (train, test))
    if without == len(train) + len(test):
        return "no classes"
    rest = f", {without:,} images without a class" if without else ""
    if len(counts) > _LISTED:
        least, most = min(counts), max(counts)
        sizes = f"{least:,}" if least == most else f"{least:,} to {most:,}"
        return f"{len(counts):,} classes of {sizes} images ({', '.join(names[:3])} ...){rest}"
    sizes = ", ".join(f"{name} {count:,}" for name, count in zip(names, counts, strict=True))
    return f"{len(counts):,} class{'es' * (len(counts) != 1)} ({sizes}){rest}"


def _counts(train: ImageSet, test: ImageSet) -> tuple[list[str], Tensor, Tensor]:
    """Names of the classes, and how many training and test images each has, int64 [classes]."""
    count = max(len(train.class_names), int(train.labels.max()) + 1, int(test.labels.max()) + 1)
    names = [*train.class_names, *map(str, range(len(train.class_names), count))]
    inside, outside = (part.labels[part.labels >= 0].bincount(minlength=count) for part in (train, test))
    return names, inside, outside


def _copies(train: ImageSet, test: ImageSet) -> list[str]:
    """Warnings of duplicate images; none where images are in files that were not decoded before."""
    marks, count = _digests(train), len(train)
    different, lines = count if marks is None else len(marks.unique()), list[str]()
    if different == 1:
        what = "there is one training image" if count == 1 else f"the {count:,} training images are all the same"
        lines.append(f"{what}: views can only be told from views of the same image.")
    elif different * 2 <= count:
        lines.append(f"{different:,} of the {count:,} training images differ: a batch takes copies for other images.")
    others = _digests(test)
    shared = 0 if marks is None or others is None else int(torch.isin(others, marks).sum())
    if shared:
        lines.append(
            f"{shared:,} of the {len(test):,} test images are training images too: they do not test what was learned."
        )
    return lines


def _digests(images: ImageSet) -> Tensor | None:
    """int64 [N], equal for equal images; None for images in files that were not looked through."""
    if images.digests is not None or not isinstance(images.images, Tensor):
        return images.digests
    return torch.tensor([digest(image.contiguous()) for image in images.images], dtype=torch.int64)


def _lonely_classes(train: ImageSet, test: ImageSet) -> list[str]:
    """Warnings of classes with a single image, or without training or test images."""
    if not (train.labelled and test.labelled):
        return []
    names, inside, outside = _counts(train, test)
    kinds = {
        "one image only": inside + outside == 1,
        "no test image": (outside == 0) & (inside > 1),
        "no training image": (inside == 0) & (outside > 1),
        "no image that can be read": inside + outside == 0,
    }
    lines = []
    for what, which in kinds.items():
        lonely = [names[i] for i in which.nonzero().flatten().tolist()]
        if lonely:
            some = ", ".join(lonely[:_NAMED]) + f" and {len(lonely) - _NAMED:,} more" * (len(lonely) > _NAMED)
            lines.append(f"{len(lonely):,} of {len(names):,} classes have {what}: {some}.")
    return lines
