"""The options of the training and test images."""

from dataclasses import dataclass, field
from typing import Literal

from mixfast.data.kinds import kind_of
from mixfast.data.scenes import SceneConfig
from mixfast.ranges import Cores, Count, InnerShare, Side, check_ranges


@dataclass(frozen=True)
class DataConfig:
    """The data of a run; keys that a kind does not use are ignored by it, and say so below."""

    kind: str = "scenes"  # scenes, folder, cifar10, cifar100, stl10, or package.module:factory for your own
    path: str | None = None  # folder: the images; cifar10, cifar100, stl10: where torchvision keeps its data sets
    test_path: str | None = None  # folder: test images kept elsewhere than path/test, path/val or a held-out share
    size: Side = 32  # side of the square images in pixels; what is larger or smaller is resized
    limit: Count | None = None  # use the first n training images, class-balanced
    test_limit: Count | None = None  # the same for test images
    download: bool = False  # cifar10, cifar100, stl10: fetch the data set if it is not there
    holdout: InnerShare = 0.1  # folder, own: share of the images that become the test set if there is none
    in_memory: Literal["auto", "yes", "no"] = (
        "auto"  # folder, own: decode all at once; auto: if half of memory holds them
    )
    cache: bool = True  # folder: keep what was decoded, or which files can be, in a file and use it next time
    cache_dir: str | None = None  # folder: where; None = $XDG_CACHE_HOME/mixfast or ~/.cache/mixfast
    workers: Cores | None = None  # decoding processes; threads for a folder in memory; None = one per core, 0 = none
    scenes: Count = 20_000  # scenes: number of training images
    test_scenes: Count = 2_000  # scenes: number of test images
    scene: SceneConfig = field(default_factory=SceneConfig)  # scenes: what they look like

    def __post_init__(self) -> None:
        kind_of(self.kind)
        check_ranges(self, "data")
