"""Torchvision's detectors on a backbone of this package, small enough for a CPU.

             head                            maps
fcos         2 convolutions                  pyramid of 64 channels    Tian et al. 2019
retinanet    4 convolutions, group norm      pyramid of 64 channels    Lin et al. 2017
fpn          Faster R-CNN, 2 linear layers   pyramid of 64 channels    Ren et al. 2015, Lin et al. 2017
c4           Faster R-CNN, the last stage    the stage before it       Ren et al. 2015, with one more norm (He 2020)

Classes count from 1 inside: torchvision's detectors take 0 for the background, and the number of classes with it.
"""

from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from mixfast.detection.body import Body, LastStage, last_stage
from mixfast.errors import PlatformError
from mixfast.models import Backbone

CHANNELS = 64  # of the pyramid
RATIOS = (0.5, 1.0, 2.0)  # height over width of anchors
DETECTIONS = 100  # of an image
_CANDIDATES = 200  # boxes of a map before those that overlap are dropped
_LEAST_SCORE = 0.05
_REGIONS = 64  # of an image, trained on by Faster R-CNN


class Shape(NamedTuple):
    """What a detector's structure depends on, besides the backbone."""

    layers: list[int]  # stages whose maps are used
    classes: int
    anchors: tuple[tuple[float, ...], ...]  # sides in pixels, for each map


def need_torchvision() -> None:
    """Raise a PlatformError unless torchvision's detectors can be imported."""
    try:
        import torchvision.models.detection  # noqa: F401
    except (ImportError, RuntimeError) as error:  # RuntimeError: built for another torch
        raise PlatformError(
            f"evaluate detect needs torchvision, which cannot be imported ({error}). Run: pip install torchvision"
        ) from error


def anchors_of(boxes: Tensor, maps: int) -> tuple[tuple[float, ...], ...]:
    """Three sides for each of `maps` maps: even quantiles of the square roots of the areas of boxes [n, 4]."""
    sides = (boxes[:, 2:] - boxes[:, :2]).double().prod(1).sqrt()
    shares = (torch.arange(3 * maps, dtype=torch.float64) + 0.5) / (3 * maps)
    return tuple(map(tuple, sides.quantile(shares).view(maps, 3).tolist()))


def stacked(found: Iterable[dict[str, Tensor]], images: int) -> tuple[Tensor, Tensor, Tensor]:
    """What torchvision's detectors find, image after image, as tensors on the CPU with `DETECTIONS` places an image.

    Returns:
        (boxes, labels, scores): [N, D, 4]; [N, D] from 0, -1 for no detection; [N, D].
    """
    boxes, scores = torch.zeros(images, DETECTIONS, 4), torch.zeros(images, DETECTIONS)
    labels = torch.full((images, DETECTIONS), -1)
    for number, image in enumerate(found):
        count = len(image["scores"])
        boxes[number, :count], scores[number, :count] = image["boxes"].cpu(), image["scores"].cpu()
        labels[number, :count] = image["labels"].cpu() - 1
    return boxes, labels, scores


def build(kind: str, backbone: Backbone, shape: Shape, frozen: bool) -> nn.Module:
    """A detector with fresh weights above the backbone, drawn from PyTorch's global generator.

    Args:
        kind: a key of `DETECTORS`.
        backbone: becomes part of the detector.
        shape: of the detector.
        frozen: whether the backbone stays as it is.

    Returns:
        A module of torchvision that takes images [B, 3, H, W], all normalised and of one size, and targets in
        training; `transform` only passes them on.
    """
    detector = DETECTORS[kind](backbone, shape, frozen)
    detector.transform = _SameSize()
    return detector


def _pyramid(backbone: Backbone, shape: Shape, frozen: bool) -> Body:
    from torchvision.ops import FeaturePyramidNetwork

    channels = [backbone.channels[layer - 1] for layer in shape.layers]
    return Body(backbone, shape.layers, FeaturePyramidNetwork(channels, CHANNELS), CHANNELS, frozen)


def _fcos(backbone: Backbone, shape: Shape, frozen: bool) -> nn.Module:
    from torchvision.models.detection import FCOS
    from torchvision.models.detection.anchor_utils import AnchorGenerator
    from torchvision.models.detection.fcos import FCOSHead

    strides = tuple((backbone.strides[layer - 1],) for layer in shape.layers)
    head = FCOSHead(CHANNELS, 1, shape.classes + 1, num_convs=2)
    head.regression_head.bbox_reg = nn.Sequential(head.regression_head.bbox_reg, _Exponential())
    return FCOS(
        _pyramid(backbone, shape, frozen),
        shape.classes + 1,
        anchor_generator=AnchorGenerator(strides, ((1.0,),) * len(strides)),
        head=head,
        score_thresh=_LEAST_SCORE,
        detections_per_img=DETECTIONS,
        topk_candidates=_CANDIDATES,
    )


class _Exponential(nn.Module):
    """Distances to a box's sides from real numbers, as in Tian et al. 2019, section 3.2.

    Torchvision has a ReLU there. In a short training it can be 0 for every position, and then has no gradient: the
    detector keeps boxes without area.
    """

    def forward(self, distances: Tensor) -> Tensor:
        return distances.exp()


def _retinanet(backbone: Backbone, shape: Shape, frozen: bool) -> nn.Module:
    from torchvision.models.detection import RetinaNet
    from torchvision.models.detection.retinanet import RetinaNetHead

    anchors = _anchors(shape)
    norm = partial(nn.GroupNorm, CHANNELS // 4)
    head = RetinaNetHead(CHANNELS, anchors.num_anchors_per_location()[0], shape.classes + 1, norm_layer=norm)
    return RetinaNet(
        _pyramid(backbone, shape, frozen),
        shape.classes + 1,
        anchor_generator=anchors,
        head=head,
        score_thresh=_LEAST_SCORE,
        detections_per_img=DETECTIONS,
        topk_candidates=_CANDIDATES,
    )


def _fpn(backbone: Backbone, shape: Shape, frozen: bool) -> nn.Module:
    from torchvision.models.detection.faster_rcnn import TwoMLPHead
    from torchvision.ops import MultiScaleRoIAlign

    side, hidden = 5, 128
    pool = MultiScaleRoIAlign([str(number) for number in range(len(shape.layers))], side, 2)
    head = TwoMLPHead(CHANNELS * side**2, hidden)
    return _faster_rcnn(_pyramid(backbone, shape, frozen), shape, pool, head, hidden)


def _c4(backbone: Backbone, shape: Shape, frozen: bool) -> nn.Module:
    from torchvision.ops import MultiScaleRoIAlign

    stage, channels = last_stage(backbone), backbone.channels
    body = Body(backbone, shape.layers, None, channels[-2], frozen)
    side = 4 * backbone.strides[-1] // backbone.strides[-2]  # of a region: the last stage leaves 4 x 4 cells
    head = LastStage(stage, channels[-1], frozen)
    return _faster_rcnn(body, shape, MultiScaleRoIAlign(["0"], side, 2), head, channels[-1])


def _faster_rcnn(body: Body, shape: Shape, pool: nn.Module, head: nn.Module, features: int) -> nn.Module:
    from torchvision.models.detection import FasterRCNN
    from torchvision.models.detection.faster_rcnn import FastRCNNPredictor

    return FasterRCNN(
        body,
        rpn_anchor_generator=_anchors(shape),
        box_roi_pool=pool,
        box_head=head,
        box_predictor=FastRCNNPredictor(features, shape.classes + 1),
        rpn_pre_nms_top_n_train=_CANDIDATES,
        rpn_pre_nms_top_n_test=_CANDIDATES,
        rpn_post_nms_top_n_train=_REGIONS,
        rpn_post_nms_top_n_test=_REGIONS,
        rpn_batch_size_per_image=_REGIONS,
        box_batch_size_per_image=_REGIONS,
        box_score_thresh=_LEAST_SCORE,
        box_detections_per_img=DETECTIONS,
    )


def _anchors(shape: Shape) -> Any:
    from torchvision.models.detection.anchor_utils import AnchorGenerator

    return AnchorGenerator(shape.anchors, (RATIOS,) * len(shape.anchors))


DETECTORS: dict[str, Callable[[Backbone, Shape, bool], nn.Module]] = {
    "fcos": _fcos,
    "retinanet": _retinanet,
    "fpn": _fpn,
    "c4": _c4,
}


class _SameSize(nn.Module):
    """In place of torchvision's transform: the images are normalised and of one size already."""

    def forward(self, images: Tensor, targets: Any = None) -> tuple[Any, Any]:
        from torchvision.models.detection.image_list import ImageList

        height, width = images.shape[2:]
        return ImageList(images, [(height, width)] * len(images)), targets

    def postprocess(self, result: Any, *_: Sequence[tuple[int, int]]) -> Any:
        """The boxes in pixels of the images that came in: as they are."""
        return result
