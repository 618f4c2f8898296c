"""Images with the boxes of their objects, and the geometry of boxes.

Boxes are (x0, y0, x1, y1) in pixels of the image, half-open, and may lie between pixels (an image that was resized). A
pixel is inside a box if its centre is; an intersection over union is of areas, without the "+ 1" that some older code
adds to widths. A box without area stands for no object.
"""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from mixfast.data.sets import ImageSet


@dataclass(frozen=True)
class Objects:
    """N images of one size with up to M objects each."""

    images: Tensor  # uint8 [N, 3, H, W], RGB
    boxes: Tensor  # float32 [N, M, 4]; zeros where an image has fewer objects
    labels: Tensor  # int64 [N], class of the first object; -1 if unknown
    name: str  # of the data, for tables
    masks: Tensor | None = None  # bool [N, H, W], pixels of the objects; None: unknown

    def __len__(self) -> int:
        return len(self.images)

    @property
    def size(self) -> tuple[int, int]:
        """(H, W)."""
        return self.images.shape[2], self.images.shape[3]

    def take(self, index: Tensor) -> "Objects":
        """The images at `index`, int64 [n]."""
        return replace(
            self,
            images=self.images[index],
            boxes=self.boxes[index],
            labels=self.labels[index],
            masks=None if self.masks is None else self.masks[index],
        )


def objects_from_set(images: ImageSet, name: str) -> Objects:
    """The images of a data set with one box each.

    Raises:
        ValueError: the data set has no boxes.
    """
    if images.boxes is None:
        raise ValueError(
            f"objects_from_set: {name} must have a box per image; got a data set without boxes. "
            "mixfast.scoring.compose makes objects with boxes from any images."
        )
    masks = None if images.masks is None else images.masks.bool()
    return Objects(images.in_memory(), images.boxes.float()[:, None], images.labels, name, masks)


def present(boxes: Tensor) -> Tensor:
    """bool [...]: which of boxes [..., 4] have an area."""
    return (boxes[..., 2] > boxes[..., 0]) & (boxes[..., 3] > boxes[..., 1])


def iou(first: Tensor, second: Tensor) -> Tensor:
    """Intersection over union of boxes `first` and `second`, [..., 4] that broadcast; 0 where either has no area."""
    low = torch.maximum(first[..., :2], second[..., :2])
    high = torch.minimum(first[..., 2:], second[..., 2:])
    common = (high - low).clamp(min=0).prod(-1)
    areas = [(boxes[..., 2:] - boxes[..., :2]).clamp(min=0).prod(-1) for boxes in (first, second)]
    union = areas[0] + areas[1] - common
    return torch.where(union > 0, common / union, 0.0)


def inside(boxes: Tensor, size: tuple[int, int]) -> Tensor:
    """bool [..., H, W]: the pixels whose centre is in boxes [..., 4]."""
    return distance(boxes, size) < 0


def distance(boxes: Tensor, size: tuple[int, int]) -> Tensor:
    """float32 [..., H, W]: distance of each pixel to the nearest pixel inside boxes [..., 4]; -1 inside, inf for no
    object.

    Distances are Euclidean, between pixel centres; for a box that lies between pixels, to a box half a pixel smaller.
    """
    offsets = []
    within = []
    for axis, extent in ((1, size[0]), (0, size[1])):  # y, then x
        centre = torch.arange(extent, dtype=torch.float32, device=boxes.device) + 0.5
        low, high = boxes[..., axis, None], boxes[..., axis + 2, None]
        offsets.append(torch.maximum(low + 0.5 - centre, centre - high + 0.5).clamp(min=0))
        within.append((centre >= low) & (centre < high))
    lengths = torch.hypot(offsets[0][..., :, None], offsets[1][..., None, :])
    is_inside = within[0][..., :, None] & within[1][..., None, :]
    return torch.where(present(boxes)[..., None, None], torch.where(is_inside, -1.0, lengths), torch.inf)
