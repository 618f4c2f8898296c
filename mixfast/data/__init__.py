"""Images as uint8 tensors: embedded scenes, torchvision's small data sets, and folders, in memory or in their files."""

from mixfast.data.config import DataConfig
from mixfast.data.kinds import kind_of
from mixfast.data.load import load
from mixfast.data.own import from_tensor
from mixfast.data.scenes import SceneConfig
from mixfast.data.sets import ImageSet, Splits
from mixfast.data.stream import Batches
from mixfast.data.streamed import Images, Streamed, read, take

__all__ = [
    "Batches",
    "DataConfig",
    "ImageSet",
    "Images",
    "SceneConfig",
    "Splits",
    "Streamed",
    "from_tensor",
    "kind_of",
    "load",
    "read",
    "take",
]
