"""Images of one size with several labelled objects each, on which detectors are trained and scored."""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from mixfast.detection.average_precision import Detections, Truth


@dataclass(frozen=True)
class LabelledImages:
    """N square images with up to M objects each. Boxes are (x0, y0, x1, y1), half-open, in pixels of the image."""

    images: Tensor  # uint8 [N, 3, S, S], RGB
    boxes: Tensor  # float32 [N, M, 4]; zeros where an image has fewer objects
    labels: Tensor  # int64 [N, M]; -1 where an image has fewer objects
    class_names: tuple[str, ...]
    name: str  # of the data, for tables
    ignored: Tensor  # bool [N, M]: whether detecting it does not count (crowds, difficult objects)
    crowd: Tensor  # bool [N, M]: a box around a group of objects, which is not trained on
    areas: Tensor  # float32 [N, M], of the objects, in pixels of the original image
    scale: Tensor  # float32 [N], original pixels per pixel of area

    def __len__(self) -> int:
        return len(self.images)

    @property
    def side(self) -> int:
        """Pixels of a side, S."""
        return self.images.shape[2]

    @property
    def objects(self) -> int:
        """Objects in all images."""
        return int((self.labels >= 0).sum())

    @property
    def truth(self) -> Truth:
        """The ground truth, against which detections are scored."""
        return Truth(self.boxes, self.labels, self.ignored, self.crowd, self.areas)

    def detections(self, boxes: Tensor, labels: Tensor, scores: Tensor) -> Detections:
        """Detections in these images from boxes [N, D, 4], with areas in pixels of the original images."""
        areas = (boxes[..., 2:] - boxes[..., :2]).prod(-1) * self.scale[:, None]
        return Detections(boxes, labels, scores, areas)

    def take(self, index: Tensor) -> "LabelledImages":
        """The images at `index`, int64 [n]."""
        names = ("images", "boxes", "labels", "ignored", "crowd", "areas", "scale")
        return replace(self, **{name: getattr(self, name)[index] for name in names})


def canvases(images: Tensor, boxes: Tensor, labels: Tensor, class_names: tuple[str, ...], name: str) -> LabelledImages:
    """`LabelledImages` of composed images, in which every object counts."""
    plain = torch.zeros_like(labels, dtype=torch.bool)
    areas = (boxes[..., 2:] - boxes[..., :2]).prod(-1)
    return LabelledImages(images, boxes, labels, class_names, name, plain, plain, areas, torch.ones(len(images)))
