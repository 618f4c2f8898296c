"""The data sets that `--data.kind` knows. A line here and one in docs/data.md add another that torchvision reads."""

import difflib
from typing import NamedTuple

from mixfast.errors import ConfigError

Statistics = tuple[tuple[float, ...], tuple[float, ...]]

# The numbers of MoCo's CIFAR-10 demo and its successors; the second triple is the mean of the images' own deviations
# (the deviation over all pixels is 0.247, 0.243, 0.262). Published scores were reached with them.
CIFAR10_STATISTICS: Statistics = ((0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010))


class Kind(NamedTuple):
    """Title, sizes and source of a data set, known before it is read."""

    title: str  # in tables
    counts: tuple[int, int] | None = None  # numbers of training and test images; None: options or files decide
    # torchvision's class, the keyword of its constructor that chooses the split with the values for training and test,
    # the folder that it looks for, and the archive that it downloads
    torchvision: tuple[str, tuple[str, object, object], str, str] | None = None
    statistics: Statistics | None = None  # published mean and deviation of the channels; None: measured


_BY_FLAG = ("train", True, False)
KINDS = {
    "scenes": Kind("scenes"),
    "cifar10": Kind(
        "CIFAR-10",
        (50_000, 10_000),
        ("CIFAR10", _BY_FLAG, "cifar-10-batches-py", "cifar-10-python.tar.gz"),
        CIFAR10_STATISTICS,
    ),
    "cifar100": Kind(
        "CIFAR-100", (50_000, 10_000), ("CIFAR100", _BY_FLAG, "cifar-100-python", "cifar-100-python.tar.gz")
    ),
    "stl10": Kind(  # its 5,000 labelled training images
        "STL-10", (5_000, 8_000), ("STL10", ("split", "train", "test"), "stl10_binary", "stl10_binary.tar.gz")
    ),
    "folder": Kind("folder"),
}

OBJECT = "object"  # images that were passed to mixfast.fit, which no other command can read


def kind_of(name: str) -> Kind:
    """The `Kind` of a data set by its name, by package.module:factory, or of an object that was passed from Python.

    Raises:
        ConfigError: there is no data set of that name.
    """
    if name in KINDS:
        return KINDS[name]
    if name == OBJECT:
        return Kind(name)
    module, colon, factory = name.partition(":")
    if colon and factory.isidentifier() and all(part.isidentifier() for part in module.split(".")):
        return Kind(name)
    nearest = difflib.get_close_matches(name, KINDS, n=1)
    raise ConfigError(
        f"--data.kind {name}: expected one of {', '.join(KINDS)}, or package.module:factory for a data set of your own"
        + (f"; did you mean {nearest[0]}?" if nearest else ".")
    )
