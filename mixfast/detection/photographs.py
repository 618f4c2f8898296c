"""The photographs of `mixfast.scoring.annotations` as square images with labelled boxes.

Images are stretched to squares and their boxes with them, which changes no intersection over union. Boxes that cannot
be used are omitted, and boxes beyond the edge are cut; both are counted.
"""

from collections import Counter
from collections.abc import Sequence

import torch
from torch import Tensor

from mixfast.detection.average_precision import Truth
from mixfast.detection.images import LabelledImages
from mixfast.errors import DataError
from mixfast.rng import Generators
from mixfast.scoring.annotations import Marked, Photograph, stretched


def split_off(photographs: Sequence[Photograph], max_test: int) -> tuple[list[Photograph], list[Photograph]]:
    """Training and test photographs: a quarter, but at most `max_test`, is for the test, chosen by a fixed seed.

    Raises:
        DataError: fewer than two photographs.
    """
    if len(photographs) < 2:
        raise DataError(
            f"at least two photographs are needed, one to train on and one to score; got {len(photographs)}. "
            "Give a larger folder."
        )
    ordered = sorted(photographs, key=lambda photograph: photograph.path)
    order = torch.randperm(len(ordered), generator=Generators(0)["detection/test"]).tolist()
    count = max(1, min(max_test, len(ordered) // 4))
    return [ordered[i] for i in order[count:]], [ordered[i] for i in order[:count]]


class Album:
    """Photographs stretched to one size, decoded at first use and then cached.

    Attributes:
        left_out: number of boxes of the decoded photographs that were omitted or cut, by reason.
    """

    def __init__(self, photographs: Sequence[Photograph], side: int, class_names: Sequence[str], name: str):
        """
        Args:
            photographs: N of them.
            side: height and width in pixels to which each is stretched.
            class_names: the names of all classes.
            name: of the data, for tables.
        """
        self.photographs, self.side, self.class_names, self.name = photographs, side, tuple(class_names), name
        self.left_out: Counter[str] = Counter()
        self._decoded: dict[int, tuple[Tensor, list[Marked], float]] = {}

    def take(self, index: Sequence[int]) -> LabelledImages:
        """The photographs at `index` with their boxes.

        Raises:
            DataError: an image is missing or unreadable.
        """
        entries = [self._decode(number) for number in index]
        truth = truth_of([objects for _, objects, _ in entries], self.class_names)
        images, scale = torch.stack([image for image, _, _ in entries]), torch.tensor([s for _, _, s in entries])
        return LabelledImages(images, class_names=self.class_names, name=self.name, scale=scale, **truth._asdict())

    def _decode(self, number: int) -> tuple[Tensor, list[Marked], float]:
        """An image [3, S, S], its usable objects in its pixels, and original pixels per pixel of area."""
        if number not in self._decoded:
            photograph = self.photographs[number]
            image, (height, width) = stretched(photograph.path, self.side)
            objects = [self._placed(marked, width, height) for marked in photograph.objects]
            usable = [marked for marked in objects if marked is not None]
            self._decoded[number] = image, usable, width * height / self.side**2
        return self._decoded[number]

    def _placed(self, marked: Marked, width: int, height: int) -> Marked | None:
        """The object in pixels of the square, or None."""
        clipped = usable(marked, width, height, self.left_out)
        if clipped is None:
            return None
        x0, y0, x1, y1 = clipped.box
        x_scale, y_scale = self.side / width, self.side / height
        return clipped._replace(box=(x0 * x_scale, y0 * y_scale, x1 * x_scale, y1 * y_scale))


def usable(marked: Marked, width: int, height: int, left_out: Counter[str]) -> Marked | None:
    """The object with its area and its box cut at the edge of the photograph; None if nothing remains of the box.

    `left_out` counts the boxes that are cut or omitted.
    """
    x0, y0, x1, y1 = marked.box
    if not (x1 > x0 and y1 > y0):
        left_out["boxes left out, empty or inverted"] += 1
        return None
    cut = (max(x0, 0.0), max(y0, 0.0), min(x1, float(width)), min(y1, float(height)))
    if not (cut[2] > cut[0] and cut[3] > cut[1]):
        left_out["boxes left out, outside of their image"] += 1
        return None
    left_out["boxes cut at the edge of their image"] += cut != marked.box
    area = (cut[2] - cut[0]) * (cut[3] - cut[1]) if marked.area is None else marked.area
    return marked._replace(box=cut, area=area)


def truth_of(objects: Sequence[Sequence[Marked]], class_names: Sequence[str]) -> Truth:
    """The objects of N photographs as `Truth`, in the pixels of their boxes."""
    shape = (len(objects), max([1, *map(len, objects)]))
    boxes, areas, labels = torch.zeros(*shape, 4), torch.zeros(shape), torch.full(shape, -1)
    ignored, crowd = torch.zeros(shape, dtype=torch.bool), torch.zeros(shape, dtype=torch.bool)
    number_of = {name: number for number, name in enumerate(class_names)}
    for row, image_objects in enumerate(objects):
        for slot, marked in enumerate(image_objects):
            boxes[row, slot], labels[row, slot] = torch.tensor(marked.box), number_of[marked.name]
            ignored[row, slot], crowd[row, slot] = marked.ignored, marked.crowd
            areas[row, slot] = marked.area or 0.0
    return Truth(boxes, labels, ignored, crowd, areas)
