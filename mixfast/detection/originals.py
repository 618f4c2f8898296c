"""Photographs at their own size, read from their files when a detector asks for them, and the order of a training."""

import hashlib
import json
from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor
from torch.utils.data import Dataset

from mixfast.data.decoder import open_image
from mixfast.detection.masks import decoded, runs_of
from mixfast.detection.photographs import usable
from mixfast.errors import DataError
from mixfast.rng import Generators
from mixfast.scoring.annotations import Marked, Photograph

_AT_FULL_SCALE = 1 << 16  # pixels of a side: more than any file has


class Pick(NamedTuple):
    """A photograph of a batch, and the random numbers of its augmentation and samples."""

    number: int  # of the photograph
    mirrored: bool = False
    side: int = 0  # pixels that its shortest side gets; 0: those of the test
    seed: int = 0  # of the samples of its anchors and regions


class Original(NamedTuple):
    """A photograph whose size is known, with its usable objects, whose boxes are in its pixels."""

    path: Path
    width: int
    height: int
    objects: list[Marked]  # masks, if they are read, are runs


class Shot(NamedTuple):
    """A photograph as torchvision's detectors take it; empty, with `error`, if it cannot be read."""

    image: Tensor  # uint8 [3, H, W]
    # boxes float32 [n, 4], labels int64 [n] from 1, masks uint8 [n, H, W] if they are read; without crowds
    target: dict[str, Tensor]
    pick: Pick
    error: str = ""


def originals(photographs: Sequence[Photograph], left_out: Counter[str]) -> list[Original]:
    """The photographs with their sizes, from the headers of the files; boxes that are omitted or cut are counted.

    Raises:
        DataError: a file is missing or is not an image, or a mask cannot be used. This is checked here, before hours of
            training.
    """
    entries = []
    for path, objects in photographs:
        try:
            with open_image(path, _AT_FULL_SCALE) as (_, _, (width, height)):
                pass
        except Exception as error:  # Pillow raises whatever a broken file leads it to
            raise DataError(_unreadable(path, error)) from error
        clipped = [usable(marked, width, height, left_out) for marked in objects]
        encoded = [_with_runs(marked, path, width, height) for marked in clipped if marked]
        entries.append(Original(path, width, height, encoded))
    return entries


def _with_runs(marked: Marked, path: Path, width: int, height: int) -> Marked:
    """The object with its mask, if it has one, as runs."""
    if marked.mask is None:
        return marked
    try:
        return marked._replace(mask=runs_of(marked.mask, height, width))
    except ValueError as error:
        raise DataError(
            f"{path}: the mask of the {marked.name} at {marked.box} cannot be used: {error}. Correct or remove the "
            "annotation."
        ) from error


def _unreadable(path: Path | str, error: Exception) -> str:
    return f"{path} cannot be read as an image: {error}."


class OriginalFiles(Dataset[Shot]):
    """Decodes photographs; its items are `Pick`s. A rotation noted in a file is not applied, as boxes ignore it."""

    def __init__(self, photographs: Sequence[Original], class_names: Sequence[str]):
        """
        Args:
            photographs: N of them.
            class_names: all that occur; the first becomes class 1.
        """
        number_of = {name: number for number, name in enumerate(class_names, 1)}
        objects_by_image = [[marked for marked in photograph.objects if not marked.crowd] for photograph in photographs]
        all_objects = [marked for objects in objects_by_image for marked in objects]
        self.paths = [str(photograph.path) for photograph in photographs]
        # Tensors, not lists of objects: workers share their memory.
        self._boxes = torch.tensor([marked.box for marked in all_objects]).view(-1, 4)
        self._labels = torch.tensor([number_of[marked.name] for marked in all_objects], dtype=torch.int64)
        self._bounds = torch.tensor([0, *map(len, objects_by_image)]).cumsum(0)  # photograph n: bounds n to n + 1
        self._runs: Tensor | None = None
        if all_objects and all_objects[0].mask is not None:
            joined_runs = bytearray("".join(marked.mask for marked in all_objects), "ascii")
            self._runs = torch.frombuffer(joined_runs, dtype=torch.uint8)
            self._run_bounds = torch.tensor([0, *(len(marked.mask) for marked in all_objects)]).cumsum(0)

    def __getitem__(self, pick: Pick) -> Shot:
        import numpy as np

        number = pick.number
        first, last = self._bounds[number : number + 2].tolist()
        try:
            with open_image(self.paths[number], _AT_FULL_SCALE) as (_, pillow_image, _):
                image = torch.from_numpy(np.array(pillow_image.convert("RGB"))).permute(2, 0, 1)
        except Exception as error:  # Pillow raises whatever a broken file leads it to
            return Shot(torch.empty(0), {}, pick, _unreadable(self.paths[number], error))
        target = {"boxes": self._boxes[first:last].clone(), "labels": self._labels[first:last]}
        if self._runs is not None:
            bounds = pairwise(self._run_bounds[first : last + 1].tolist())
            runs = [self._runs[start:end].numpy().tobytes().decode("ascii") for start, end in bounds]
            target["masks"] = decoded(runs, *image.shape[1:])
        if pick.mirrored:
            image = image.flip(2)
            target["boxes"] = torch.stack(mirror(target["boxes"], image.shape[2]), dim=1)
            if "masks" in target:
                target["masks"] = target["masks"].flip(2)
        return Shot(image.contiguous(), target, pick)


def mirror(boxes: Tensor, width: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The columns (x0, y0, x1, y1) of boxes [n, 4] in the mirror image of a photograph."""
    x0, y0, x1, y1 = boxes.unbind(1)
    return width - x1, y0, width - x0, y1


def picks(
    photographs: Sequence[Original], batch: int, flip: float, sides: Sequence[int], generators: Generators, name: str
) -> Iterator[list[Pick]]:
    """Endless batches in which all photographs are wider than high, or none is, as in detectron2: less padding.

    Photographs that do not fill a batch at the end of an epoch are used in the next one.

    Args:
        photographs: to choose from; each comes once before one comes again.
        batch: photographs of a batch.
        flip: probability of the mirror image.
        sides: pixels of the shortest side; one is drawn for each photograph.
        generators: of all draws.
        name: prefix of the generators' names.
    """
    waiting: dict[bool, list[Pick]] = {True: [], False: []}
    while True:
        order = torch.randperm(len(photographs), generator=generators[f"{name}/order"]).tolist()
        mirrored = (torch.rand(len(photographs), generator=generators[f"{name}/flips"]) < flip).tolist()
        side_numbers = torch.randint(len(sides), (len(photographs),), generator=generators[f"{name}/sides"]).tolist()
        seeds = torch.randint(2**62, (len(photographs),), generator=generators[f"{name}/samples"]).tolist()
        for number, flipped, side, seed in zip(order, mirrored, side_numbers, seeds, strict=True):
            photograph = photographs[number]
            group = waiting[photograph.width > photograph.height]
            group.append(Pick(number, flipped, sides[side], seed))
            if len(group) == batch:
                yield list(group)
                group.clear()


def fingerprint(photographs: Sequence[Original]) -> str:
    """A digest of the names and sizes of photographs, and of their objects."""
    facts = [(item.path.name, item.width, item.height, item.objects) for item in photographs]
    return hashlib.sha256(json.dumps(facts).encode()).hexdigest()
