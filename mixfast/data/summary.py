"""A line about the content of a data set, and warnings about content that makes scores or training worthless."""

from collections import Counter
from collections.abc import Callable

import torch
from torch import Tensor

from mixfast.data.cache import digest
from mixfast.data.scan import passed_over
from mixfast.data.sets import ImageSet

_LISTED = 4  # classes up to which all are listed with their counts; of more, the first three are named
_NAMED = 5  # names in a warning, at most
PrintLine = Callable[[str], None]


def describe(name: str, train: ImageSet, test: ImageSet, passed: Counter[str] | None, print_line: PrintLine) -> None:
    """Print what a data set contains, and warnings of probable mistakes.

    Args:
        name: of the data set, or the folder of its files.
        train: training images.
        test: test images.
        passed: number of files that were passed over, by kind; None for data that is not a folder of files.
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
    unlabelled = f", {without:,} images without a class" if without else ""
    if len(counts) > _LISTED:
        smallest, largest = min(counts), max(counts)
        sizes = f"{smallest:,}" if smallest == largest else f"{smallest:,} to {largest:,}"
        return f"{len(counts):,} classes of {sizes} images ({', '.join(names[:3])} ...){unlabelled}"
    sizes = ", ".join(f"{name} {count:,}" for name, count in zip(names, counts, strict=True))
    return f"{len(counts):,} class{'es' * (len(counts) != 1)} ({sizes}){unlabelled}"


def _counts(train: ImageSet, test: ImageSet) -> tuple[list[str], Tensor, Tensor]:
    """Names of the classes, and the numbers of training and of test images of each, int64 [classes]."""
    count = max(len(train.class_names), int(train.labels.max()) + 1, int(test.labels.max()) + 1)
    names = [*train.class_names, *map(str, range(len(train.class_names), count))]
    inside, outside = (part.labels[part.labels >= 0].bincount(minlength=count) for part in (train, test))
    return names, inside, outside


def _copies(train: ImageSet, test: ImageSet) -> list[str]:
    """Warnings about duplicate images; [] for images without digests, in files that were not decoded before."""
    marks, count = _digests(train), len(train)
    different, lines = count if marks is None else len(marks.unique()), list[str]()
    if different == 1:
        subject = "there is one training image" if count == 1 else f"the {count:,} training images are all the same"
        lines.append(f"{subject}: views can only be told from views of the same image.")
    elif different * 2 <= count:
        lines.append(f"{different:,} of the {count:,} training images differ: a batch takes copies for other images.")
    test_marks = _digests(test)
    shared = 0 if marks is None or test_marks is None else int(torch.isin(test_marks, marks).sum())
    if shared:
        lines.append(
            f"{shared:,} of the {len(test):,} test images are training images too: they do not test what was learned."
        )
    return lines


def _digests(images: ImageSet) -> Tensor | None:
    """int64 [N], equal for equal images; None for images in files that were not decoded before."""
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
    for problem, in_class in kinds.items():
        class_names = [names[i] for i in in_class.nonzero().flatten().tolist()]
        if class_names:
            listing = ", ".join(class_names[:_NAMED])
            listing += f" and {len(class_names) - _NAMED:,} more" * (len(class_names) > _NAMED)
            lines.append(f"{len(class_names):,} of {len(names):,} classes have {problem}: {listing}.")
    return lines
