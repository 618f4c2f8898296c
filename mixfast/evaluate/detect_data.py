"""Images for `evaluate detect`: test images that are the same for every seed, and training images drawn by the seed."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from mixfast.config.arguments import home_expanded
from mixfast.data import SceneConfig
from mixfast.detection.canvases import WIDER, picture_canvases, scene_canvases
from mixfast.detection.images import LabelledImages
from mixfast.detection.photographs import Album, split_off
from mixfast.errors import ConfigError, DataError
from mixfast.evaluate.runs import LoadedRun
from mixfast.rng import Generators
from mixfast.scoring.annotations import Photograph, coco_photographs, voc_list, voc_photographs

_FORMS = (
    "scenes, canvas, voc FOLDER, or coco IMAGES INSTANCES.json [TEST_IMAGES TEST_INSTANCES.json]; voc takes further "
    "folders to train on"
)
PHOTOGRAPH = 224  # side of voc's and coco's images unless another is given
_VOC_SPLITS = (("trainval", "test"), ("train", "val"))  # the first pair of lists that exists is used
_RANDOM = "split at random: a quarter of the images is scored, the others are trained on"
_TEST_SEED = 0  # of the test canvases, for all seeds of the detectors


@dataclass(frozen=True)
class DetectionData:
    """Training images by seed, and test images."""

    test: LabelledImages
    draw: Callable[[int], LabelledImages]  # training images by seed
    split: str = ""  # how photographs were split
    left_out: Callable[[], dict[str, int]] = dict  # images and boxes by reason, of all that has been drawn

    def of_seed(self, seed: int) -> tuple[LabelledImages, LabelledImages, int]:
        """(training images, test images, number of ignored test objects, whose class no training image shows)."""
        train = self.draw(seed)
        has_training_objects = torch.zeros(len(train.class_names) + 1, dtype=torch.bool)
        has_training_objects[train.labels[(train.labels >= 0) & ~train.crowd]] = True
        unknown = (self.test.labels >= 0) & ~has_training_objects[self.test.labels]
        return train, replace(self.test, ignored=self.test.ignored | unknown), int(unknown.sum())


def load(
    data: Sequence[str], first: LoadedRun, images: int, count: int, size: int | None, splits: tuple[str, str] | None
) -> DetectionData:
    """The data that `--data` names.

    Args:
        data: a kind and its paths.
        first: the run whose images are composed to canvases.
        images: largest number of training images.
        count: largest number of test images.
        size: side of the images in pixels; None: three times the run's (canvases), 224 (photographs).
        splits: for voc, the lists of training and test images.

    Raises:
        ConfigError: an unknown kind, or a wrong number of paths. DataError: files that are missing or unreadable.
    """
    check_form(data)
    kind = data[0]
    if size is not None and size < 8 * WIDER:
        raise ConfigError(f"--size must be at least {8 * WIDER}; got {size}.")
    if splits is not None and kind != "voc":
        raise ConfigError(f"--splits belongs to --data voc; got --data {kind}. Omit it.")
    if kind in ("scenes", "canvas"):
        return _canvases(kind, first, images, count, size)
    return _photographs(data, images, count, size or PHOTOGRAPH, splits)


def _canvases(kind: str, first: LoadedRun, images: int, count: int, size: int | None) -> DetectionData:
    splits, config = first.setup.splits, first.setup.config.data
    tile = splits.train.images.shape[-1] if size is None else size // WIDER
    if kind == "canvas":
        test = picture_canvases(splits.test, count, tile, _TEST_SEED, "test")
        return DetectionData(test, lambda seed: picture_canvases(splits.train, images, tile, seed, "train"))
    look = config.scene if config.kind == "scenes" else SceneConfig()
    test = scene_canvases(count, tile, _TEST_SEED, "test", look)
    return DetectionData(test, lambda seed: scene_canvases(images, tile, seed, "train", look))


def check_form(data: Sequence[str]) -> None:
    """Raise a ConfigError unless `--data` is a known kind with the right number of paths."""
    kind, count = data[0] if data else "", len(data) - 1
    is_valid = {"scenes": count == 0, "canvas": count == 0, "voc": count >= 1, "coco": count in (2, 4)}
    if not is_valid.get(kind, False):
        raise ConfigError(f"--data must be {_FORMS}; got {' '.join(data) or 'nothing'}.")


def read_photographs(
    data: Sequence[str], splits: tuple[str, str] | None, count: int, masks: bool = False
) -> tuple[list[Photograph], list[Photograph], str]:
    """Photographs to train on and to score, and how they were split.

    Args:
        data: voc or coco, and its paths.
        splits: for voc, the lists of images to train on and to score.
        count: largest number of photographs to score, if the split is random.
        masks: for coco, whether every object must have a mask.

    Raises:
        DataError: files that are missing or unreadable, or no photograph to train on has an object.
    """
    kind, *names = data
    paths = [home_expanded(Path(name)) for name in names]
    train, test, split = _voc(paths, splits, count) if kind == "voc" else _coco(paths, count, masks)
    if all(marked.crowd for photograph in train for marked in photograph.objects):
        raise DataError(f"{paths[-1]}: none of the {len(train)} training images has an object. Name other files.")
    return train, test, split


def _photographs(
    data: Sequence[str], images: int, count: int, size: int, splits: tuple[str, str] | None
) -> DetectionData:
    kind, source = data[0], data[-1]
    train, test, split = read_photographs(data, splits, count)
    names = sorted({marked.name for photograph in (*train, *test) for marked in photograph.objects})
    usable = [photograph for photograph in train if any(not marked.crowd for marked in photograph.objects)]
    scored = Album(test, size, names, kind)
    chosen = torch.randperm(len(test), generator=Generators(_TEST_SEED)["detection/test"])[:count].tolist()
    album = Album(usable, size, names, kind)
    test_images = scored.take(chosen)
    if not (test_images.labels >= 0).any():
        raise DataError(f"{source}: none of the {len(test_images)} test images has an object. Name other files.")

    def draw(seed: int) -> LabelledImages:
        order = torch.randperm(len(usable), generator=Generators(seed)["detection/train"])
        drawn = album.take(order[:images].tolist())
        real = ((drawn.labels >= 0) & ~drawn.crowd).any(1)
        if not real.any():
            raise DataError(f"{source}: no training image has a box that can be used; {dict(album.left_out)}.")
        return drawn.take(real.nonzero().flatten())

    def left_out() -> dict[str, int]:
        counts = {"training images left out, without objects": len(train) - len(usable)}
        return {reason: n for reason, n in {**counts, **(album.left_out + scored.left_out)}.items() if n}

    return DetectionData(test_images, draw, split, left_out)


def _voc(
    roots: Sequence[Path], splits: tuple[str, str] | None, count: int
) -> tuple[list[Photograph], list[Photograph], str]:
    """Photographs to train on and to score, and how they were split; folders after the first are trained on."""
    root, further_roots = roots[0], roots[1:]
    lists = root / "ImageSets" / "Main"
    standard = [pair for pair in _VOC_SPLITS if all((lists / f"{name}.txt").is_file() for name in pair)]
    if splits is None and not standard:
        train, test = split_off(voc_photographs(root), count)
        further = [photograph for folder in further_roots for photograph in voc_photographs(folder)]
        remark = f"; all of {_names(further_roots)} is trained on" if further_roots else ""
        return [*train, *further], test, _RANDOM + remark
    training_list, test_list = splits or standard[0]
    training_names, test_names = voc_list(root, training_list), voc_list(root, test_list)
    if shared := set(training_names) & set(test_names):
        both = f"{len(shared)} images are in both {training_list} and {test_list}"
        raise DataError(f"{lists}: {both}. Give other lists to --splits.")
    train = voc_photographs(root, training_names)
    for folder in further_roots:
        train += voc_photographs(folder, voc_list(folder, training_list))
    trained, scored = (f" of {_names(roots)}", f" of {root.name}") if further_roots else ("", "")
    description = f"trained on images of {training_list}{trained}, scored on images of {test_list}{scored}"
    return train, voc_photographs(root, test_names), description


def _names(folders: Sequence[Path]) -> str:
    return " and ".join(folder.name for folder in folders)


def _coco(paths: Sequence[Path], count: int, masks: bool) -> tuple[list[Photograph], list[Photograph], str]:
    """Photographs to train on and to score, and how they were split."""
    files = zip(paths[::2], paths[1::2], strict=True)
    parts = [coco_photographs(file, images, masks=masks) for images, file in files]
    if len(parts) == 1:
        return *split_off(parts[0], count), _RANDOM
    return parts[0], parts[1], f"trained on images of {paths[1].name}, scored on images of {paths[3].name}"
