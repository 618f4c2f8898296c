"""Images for `evaluate detect`: the same test images for every seed, and training images drawn from the seed."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from mixfast.config.words import home_expanded
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
_VOC_SPLITS = (("trainval", "test"), ("train", "val"))  # the first pair of lists that is there
_RANDOM = "split at random: a quarter of the images is scored, the others are trained on"
_TEST_SEED = 0  # of the test canvases, whatever the seeds are


@dataclass(frozen=True)
class DetectionData:
    """Images to train detectors on, by seed, and to score them on."""

    test: LabelledImages
    draw: Callable[[int], LabelledImages]  # training images by seed
    split: str = ""  # how photographs were split
    left_out: Callable[[], dict[str, int]] = dict  # images and boxes by reason, of all that has been drawn

    def of_seed(self, seed: int) -> tuple[LabelledImages, LabelledImages, int]:
        """(training images, test images, number of ignored test objects, whose class no training image shows)."""
        train = self.draw(seed)
        known = torch.zeros(len(train.class_names) + 1, dtype=torch.bool)
        known[train.labels[(train.labels >= 0) & ~train.crowd]] = True
        unknown = (self.test.labels >= 0) & ~known[self.test.labels]
        return train, replace(self.test, ignored=self.test.ignored | unknown), int(unknown.sum())


def load(
    data: Sequence[str], first: LoadedRun, images: int, count: int, size: int | None, splits: tuple[str, str] | None
) -> DetectionData:
    """The data that `--data` names.

    Args:
        data: a kind and its paths.
        first: the run whose images are the model for canvases.
        images: largest number of training images.
        count: largest number of test images.
        size: side of the images in pixels; None: three times the run's (canvases), 224 (photographs).
        splits: for voc, the lists of training and test images.

    Raises:
        ConfigError: another kind, or other paths than it takes. DataError: files that are missing or unreadable.
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
    """Raise a ConfigError unless `--data` is a kind that is known, with the number of paths that it takes."""
    kind, count = data[0] if data else "", len(data) - 1
    known = {"scenes": count == 0, "canvas": count == 0, "voc": count >= 1, "coco": count in (2, 4)}
    if not known.get(kind, False):
        raise ConfigError(f"--data must be {_FORMS}; got {' '.join(data) or 'nothing'}.")


def read_photographs(
    data: Sequence[str], splits: tuple[str, str] | None, count: int, masks: bool = False
) -> tuple[list[Photograph], list[Photograph], str]:
    """Photographs to train on and to score, and how they were split.

    Args:
        data: voc or coco, and its paths.
        splits: voc: lists of images to train on and to score.
        count: to score, at most, where the split is random.
        masks: coco: whether every object must have one.

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
        taken = album.take(order[:images].tolist())
        real = ((taken.labels >= 0) & ~taken.crowd).any(1)
        if not real.any():
            raise DataError(f"{source}: no training image has a box that can be used; {dict(album.left_out)}.")
        return taken.take(real.nonzero().flatten())

    def left_out() -> dict[str, int]:
        counts = {"training images left out, without objects": len(train) - len(usable)}
        return {what: n for what, n in {**counts, **(album.left_out + scored.left_out)}.items() if n}

    return DetectionData(test_images, draw, split, left_out)


def _voc(
    roots: Sequence[Path], splits: tuple[str, str] | None, count: int
) -> tuple[list[Photograph], list[Photograph], str]:
    """Photographs to train on and to score, and how they were split; folders after the first are trained on."""
    root, others = roots[0], roots[1:]
    lists = root / "ImageSets" / "Main"
    standard = [pair for pair in _VOC_SPLITS if all((lists / f"{name}.txt").is_file() for name in pair)]
    if splits is None and not standard:
        train, test = split_off(voc_photographs(root), count)
        more = [photograph for other in others for photograph in voc_photographs(other)]
        return [*train, *more], test, _RANDOM + (f"; all of {_named(others)} is trained on" if others else "")
    first, second = splits or standard[0]
    ours, scored = voc_list(root, first), voc_list(root, second)
    if both := set(ours) & set(scored):
        raise DataError(f"{lists}: {len(both)} images are in both {first} and {second}. Give others to --splits.")
    train = voc_photographs(root, ours)
    for other in others:
        train += voc_photographs(other, voc_list(other, first))
    also = f" of {_named(roots)}" if others else ""
    words = f"trained on images of {first}{also}, scored on images of {second}{f' of {root.name}' if others else ''}"
    return train, voc_photographs(root, scored), words


def _named(folders: Sequence[Path]) -> str:
    return " and ".join(folder.name for folder in folders)


def _coco(paths: Sequence[Path], count: int, masks: bool) -> tuple[list[Photograph], list[Photograph], str]:
    """Photographs to train on and to score, and how they were split."""
    files = zip(paths[::2], paths[1::2], strict=True)
    parts = [coco_photographs(file, images, masks=masks) for images, file in files]
    if len(parts) == 1:
        return *split_off(parts[0], count), _RANDOM
    return parts[0], parts[1], f"trained on images of {paths[1].name}, scored on images of {paths[3].name}"
