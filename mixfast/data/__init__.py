"""Images as uint8 tensors in memory: embedded scenes, torchvision's small data sets, and folders."""

from mixfast.data.config import DataConfig
from mixfast.data.load import load
from mixfast.data.scenes import SceneConfig
from mixfast.data.sets import ImageSet, Splits
from mixfast.data.stream import Batches

__all__ = ["Batches", "DataConfig", "ImageSet", "SceneConfig", "Splits", "load"]
