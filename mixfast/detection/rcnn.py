"""Faster and Mask R-CNN as detectron2 builds them, from torchvision's parts. Import this module inside functions: it
imports torchvision.

c4    proposals and regions from the last map but one; the last stage and one more batch norm on every region
fpn   pyramid with batch norm, one more map by max-pooling for proposals; two linear layers; four convolutions for masks

Torchvision's own classes differ in the loss of boxes (smooth L1), in RoIAlign (not aligned), and in first weights.

With several processes each has equally many images of a batch. An image's random numbers follow from its target
("side", "seed"), and the mean of the losses of the processes is the loss of the global batch.
"""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.faster_rcnn import FastRCNNPredictor, TwoMLPHead
from torchvision.models.detection.generalized_rcnn import GeneralizedRCNN
from torchvision.models.detection.mask_rcnn import MaskRCNNHeads, MaskRCNNPredictor
from torchvision.models.detection.roi_heads import RoIHeads, maskrcnn_inference
from torchvision.models.detection.rpn import RegionProposalNetwork, RPNHead
from torchvision.models.detection.transform import GeneralizedRCNNTransform
from torchvision.ops import FeaturePyramidNetwork, roi_align
from torchvision.ops.feature_pyramid_network import LastLevelMaxPool

from mixfast.detection.body import Body, LastStage, last_stage
from mixfast.detection.detectors import DETECTIONS, RATIOS
from mixfast.detection.recipes import PublishedRecipe
from mixfast.errors import ConfigError
from mixfast.models import Backbone
from mixfast.world import current

_C4_ANCHORS = (32, 64, 128, 256, 512)  # sides in pixels
_FPN_ANCHORS = 8  # side over the stride of the map
_FPN_FINEST = 4  # pixels per cell of the finest map of the pyramid
_MASK_SIDE = 14  # cells of a region whose mask is predicted, with twice as many cells
_CANONICAL = (224, 4)  # side in pixels of a region that is pooled from the map of stride 2 to the power 4


def build_rcnn(
    recipe: PublishedRecipe, backbone: Backbone, classes: int, mean: Sequence[float], std: Sequence[float]
) -> GeneralizedRCNN:
    """The detector of a recipe with fresh weights above the backbone, drawn from PyTorch's global generator.

    Args:
        recipe: structure and sizes.
        backbone: becomes part of the detector; its batch norms no longer split a batch.
        classes: number of classes without the background, which is class 0.
        mean, std: of the channels of images in [0, 1].

    Raises:
        ConfigError: the backbone lacks a stage that the structure needs.
    """
    body, pool, head, features, anchors = (_c4 if recipe.detector == "c4" else _fpn)(recipe, backbone)
    # Padded to a multiple of the coarsest stride: the anchor generator divides the image's side by the map's.
    coarsest = backbone.strides[body.layers[-1] - 1] * (2 if recipe.detector == "fpn" else 1)
    (before, after), (before_test, after_test) = recipe.proposals, recipe.test_proposals
    proposals = ProposalNetwork(
        AnchorGenerator(anchors, (RATIOS,) * len(anchors)),
        ProposalHead(body.out_channels, len(anchors[0]) * len(RATIOS)),
        *(0.7, 0.3, recipe.anchors, 0.5),
        {"training": before, "testing": before_test},
        {"training": after, "testing": after_test},
        0.7,
    )
    heads = RegionHeads(
        *(pool, head, Predictor(features, classes + 1)),
        *(0.5, 0.5, recipe.regions, 0.25),
        None,
        *(0.05, 0.5, DETECTIONS),
        *(_mask_parts(recipe, body, pool.strides, classes) if recipe.masks else ()),
    )
    transform = Resize(recipe.sides, recipe.longest, list(mean), list(std), size_divisible=coarsest)
    return GeneralizedRCNN(body, proposals, heads, transform)


def pyramid_stages(backbone: Backbone) -> list[int]:
    """The last stage of each stride from 4 pixels on: all of a ResNet with the stem for ImageNet."""
    last = {stride: layer for layer, stride in enumerate(backbone.strides, 1) if stride >= _FPN_FINEST}
    if not last:
        raise ConfigError(
            f"--recipe: a pyramid begins at {_FPN_FINEST} pixels per cell, and the network's stages have "
            f"{', '.join(map(str, backbone.strides))}. Take a network with a coarser stem."
        )
    return [last[stride] for stride in sorted(last)]


_Parts = tuple[Body, "AlignedPool", nn.Module, int, tuple[tuple[int, ...], ...]]


def _c4(recipe: PublishedRecipe, backbone: Backbone) -> _Parts:
    """Body, pooling, head, its channels, and the sides of anchors."""
    if len(backbone.channels) < 2:
        raise ConfigError(
            f"--recipe {recipe.name} runs the last stage on regions of the one before; there is only one."
        )
    try:
        stage = last_stage(backbone)
    except ConfigError as error:
        raise ConfigError(
            f"--recipe {recipe.name} runs the last stage on every region, and {type(backbone).__name__} does not give "
            "it as a module of its own. Take a pyramid's recipe, or a ResNet."
        ) from error
    channels, strides = backbone.channels, backbone.strides
    body = Body(backbone, [len(channels) - 1], None, channels[-2], frozen=False)
    side = 7 * strides[-1] // strides[-2]  # cells of a region: the last stage leaves 7 x 7
    head = LastStage(stage, channels[-1], frozen=False)
    return body, AlignedPool(strides[-2:-1], side), head, channels[-1], (_C4_ANCHORS,)


def _fpn(recipe: PublishedRecipe, backbone: Backbone) -> _Parts:
    """Body, pooling, head, its channels, and the sides of anchors."""
    layers = pyramid_stages(backbone)
    channels, strides = ([values[layer - 1] for layer in layers] for values in (backbone.channels, backbone.strides))
    neck = FeaturePyramidNetwork(channels, recipe.channels, LastLevelMaxPool(), nn.BatchNorm2d)
    body = Body(backbone, layers, neck, recipe.channels, frozen=False)
    side = 7
    head = TwoMLPHead(recipe.channels * side**2, recipe.hidden)
    for linear in (head.fc6, head.fc7):
        nn.init.kaiming_uniform_(linear.weight, a=1)
        nn.init.zeros_(linear.bias)
    anchors = tuple((_FPN_ANCHORS * stride,) for stride in (*strides, 2 * strides[-1]))
    return body, AlignedPool(strides, side), head, recipe.hidden, anchors


def _mask_parts(recipe: PublishedRecipe, body: Body, strides: Sequence[int], classes: int) -> tuple[nn.Module, ...]:
    """Pooling, head and predictor of masks."""
    width = recipe.channels
    predictor = MaskRCNNPredictor(width, width, classes + 1)
    for name, weights in predictor.named_parameters():
        if name.endswith("bias"):
            nn.init.zeros_(weights)
    nn.init.normal_(predictor.mask_fcn_logits.weight, std=0.001)
    return AlignedPool(strides, _MASK_SIDE), MaskRCNNHeads(body.out_channels, [width] * 4, 1), predictor


class AlignedPool(nn.Module):
    """RoIAlign whose samples lie where the region is, not half a cell off, from the map that fits the region's size.

    He et al. 2017, with the half cell that detectron2 corrected; levels as Lin et al. 2017, equation 1.

    Args:
        strides: pixels per cell of the first maps, from fine to coarse; further maps are not used.
        side: cells of a region.
    """

    def __init__(self, strides: Sequence[int], side: int):
        super().__init__()
        self.strides, self.side = list(strides), side

    def forward(self, maps: dict[str, Tensor], boxes: list[Tensor], _: Any) -> Tensor:
        """[n, C, side, side] for the n boxes (x0, y0, x1, y1) of all images, in pixels."""
        rows = [F.pad(image_boxes, (1, 0), value=float(image)) for image, image_boxes in enumerate(boxes)]
        regions, pooled_maps = torch.cat(rows), list(maps.values())[: len(self.strides)]
        sizes = (regions[:, 3:] - regions[:, 1:3]).prod(1).sqrt()
        power = (_CANONICAL[1] + (sizes / _CANONICAL[0] + 1e-8).log2()).floor()
        steps = torch.tensor(self.strides[1:], device=power.device).log2()
        levels = (power[:, None] >= steps).sum(1)
        pooled = pooled_maps[0].new_zeros(len(regions), pooled_maps[0].shape[1], self.side, self.side)
        for level, (features, stride) in enumerate(zip(pooled_maps, self.strides, strict=True)):
            of_level = (levels == level).nonzero().flatten()
            # 0: as many samples as a cell of the region has cells of the map
            cells = roi_align(features, regions[of_level], self.side, 1 / stride, 0, aligned=True)
            pooled = pooled.index_copy(0, of_level, cells.to(pooled.dtype))
        return pooled


class Resize(GeneralizedRCNNTransform):
    """Resizes each image to the side drawn for it, and pads it to the largest image of the global batch."""

    _side = 0  # of the image that is resized

    def resize(self, image: Tensor, target: Any = None) -> tuple[Tensor, Any]:
        """The image with its target; in training, target["side"] is the pixels of its shortest side."""
        self._side = 0 if target is None else target["side"]
        return super().resize(image, target)

    def torch_choice(self, _: Any) -> int:
        """The side drawn for the image, in place of a draw from PyTorch's global generator."""
        return self._side

    def batch_images(self, images: list[Tensor], size_divisible: int = 32) -> Tensor:
        """The images, padded at the right and below to one size: [n, 3, H, W]."""
        if self.training:
            sides = (max(image.shape[axis] for image in images) for axis in (1, 2))
            high, wide = current().largest(*sides)
            first = images[0]
            images = [F.pad(first, (0, wide - first.shape[2], 0, high - first.shape[1])), *images[1:]]
        return super().batch_images(images, size_divisible)


class ImageSampler:
    """Random samples of an image's anchors or regions by the image's own seed, so that other images do not matter."""

    def __init__(self, sampler: Any):
        """
        Args:
            sampler: torchvision's sampler, whose numbers of samples are used.
        """
        self.batch_size_per_image = sampler.batch_size_per_image
        self.max_positive = int(self.batch_size_per_image * sampler.positive_fraction)
        self.seeds: list[int] = []  # of the images that come next

    def __call__(self, matched: list[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        """Masks [n] of the positive and of the negative samples of each image.

        Args:
            matched: [n] for each image: at least 1 for an object, 0 for background, -1 if it must not be sampled.
        """
        positive, negative = [], []
        for seed, labels in zip(self.seeds, matched, strict=True):
            generator = torch.Generator(labels.device).manual_seed(seed)
            positive.append(_sample(labels >= 1, self.max_positive, generator))
            negative.append(_sample(labels == 0, self.batch_size_per_image - int(positive[-1].sum()), generator))
        return positive, negative


def _sample(mask: Tensor, limit: int, generator: torch.Generator) -> Tensor:
    """bool [n]: at most `limit` random entries of those that are true in `mask`."""
    indices = mask.nonzero().flatten()
    chosen = torch.randperm(len(indices), generator=generator, device=mask.device)[:limit]
    return torch.zeros_like(mask).index_fill(0, indices[chosen], True)


def _wide(values: Tensor) -> Tensor:
    """At least float32, also under autocast: boxes in bfloat16 would lie on a grid of several pixels."""
    return values.to(torch.promote_types(values.dtype, torch.float32))


def _mean_count(count: int, like: Tensor) -> Tensor:
    """Mean of `count` over the processes, at least 1: sums divided by it average to the mean over the global batch."""
    counts = like.new_tensor([count])
    current().mean_([counts])
    return counts[0].clamp(min=1)


class ProposalHead(RPNHead):
    """torchvision's RPNHead with results of at least float32."""

    def forward(self, maps: list[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        logits, deltas = super().forward(maps)
        return [_wide(part) for part in logits], [_wide(part) for part in deltas]


class ProposalNetwork(RegionProposalNetwork):
    """torchvision's with an L1 loss of boxes; both losses are divided by the number of samples that the recipe sets."""

    def __init__(self, *arguments: Any):
        super().__init__(*arguments)
        self.fg_bg_sampler: Any = ImageSampler(self.fg_bg_sampler)

    def forward(self, images: Any, maps: dict[str, Tensor], targets: Any = None) -> tuple[list[Tensor], Any]:
        """(regions of each image, losses); in training, target["seed"] of an image decides its samples."""
        if self.training:
            self.fg_bg_sampler.seeds = [target["seed"] for target in targets]
        return super().forward(images, maps, targets)

    def compute_loss(
        self, objectness: Tensor, deltas: Tensor, labels: list[Tensor], targets: list[Tensor]
    ) -> tuple[Tensor, Tensor]:
        """(objectness, boxes): losses of the anchors of all images, [n, 1] and [n, 4]."""
        positive, negative = (torch.cat(chosen).nonzero().flatten() for chosen in self.fg_bg_sampler(labels))
        sampled, count = torch.cat([positive, negative]), self.fg_bg_sampler.batch_size_per_image * len(labels)
        logits = objectness.flatten()[sampled]
        is_object = torch.cat(labels)[sampled].to(logits.dtype)
        objectness_loss = F.binary_cross_entropy_with_logits(logits, is_object, reduction="sum")
        box_loss = F.l1_loss(deltas[positive], torch.cat(targets)[positive], reduction="sum")
        return objectness_loss / count, box_loss / count


class Predictor(FastRCNNPredictor):
    """Class scores and a box for every class, at least float32, with detectron2's initial weights."""

    def __init__(self, features: int, classes: int):
        super().__init__(features, classes)
        for linear, std in ((self.cls_score, 0.01), (self.bbox_pred, 0.001)):
            nn.init.normal_(linear.weight, std=std)
            nn.init.zeros_(linear.bias)

    def forward(self, features: Tensor) -> tuple[Tensor, Tensor]:
        logits, deltas = super().forward(features)
        return _wide(logits), _wide(deltas)


class RegionHeads(RoIHeads):
    """torchvision's RoIHeads with an L1 loss of boxes, and with masks if it has the modules for them."""

    def __init__(self, *arguments: Any):
        super().__init__(*arguments)
        self.fg_bg_sampler: Any = ImageSampler(self.fg_bg_sampler)

    def forward(
        self, maps: dict[str, Tensor], proposals: list[Tensor], shapes: Any, targets: Any = None
    ) -> tuple[list[dict[str, Tensor]], dict[str, Tensor]]:
        """(detections of each image, {}), or in training ([], losses)."""
        if self.training:
            self.fg_bg_sampler.seeds = [target["seed"] + 1 for target in targets]  # + 1: other draws than for anchors
            proposals, matched, labels, boxes = self.select_training_samples(proposals, targets)
        logits, deltas = self.box_predictor(self.box_head(self.box_roi_pool(maps, proposals, shapes)))
        if self.training:
            terms = region_losses(logits, deltas, torch.cat(labels), torch.cat(boxes))
            losses = dict(zip(("loss_classifier", "loss_box_reg"), terms, strict=True))
            if self.has_mask():
                positive = [values > 0 for values in labels]
                regions, matched, labels = (
                    [values[mask] for values, mask in zip(parts, positive, strict=True)]
                    for parts in (proposals, matched, labels)
                )
                masks = [target["masks"] for target in targets]
                losses["loss_mask"] = mask_loss(self._masks(maps, regions), regions, masks, matched, labels)
            return [], losses
        boxes, scores, labels = self.postprocess_detections(logits, deltas, proposals, shapes)
        results = zip(boxes, scores, labels, strict=True)
        images = [dict(zip(("boxes", "scores", "labels"), entry, strict=True)) for entry in results]
        if self.has_mask():
            for image, masks in zip(images, maskrcnn_inference(self._masks(maps, boxes), labels), strict=True):
                image["masks"] = masks
        return images, {}

    def _masks(self, maps: dict[str, Tensor], regions: list[Tensor]) -> Tensor:
        """[n, C + 1, 28, 28] for the regions of all images."""
        return _wide(self.mask_predictor(self.mask_head(self.mask_roi_pool(maps, regions, None))))


def region_losses(logits: Tensor, deltas: Tensor, labels: Tensor, boxes: Tensor) -> tuple[Tensor, Tensor]:
    """Cross entropy, and L1 of the boxes of the true classes, as means over the regions of all processes.

    Args:
        logits: [n, C + 1], of the background first.
        deltas: [n, 4 (C + 1)].
        labels: int64 [n], 0 for the background.
        boxes: [n, 4], targets of deltas.
    """
    objects = labels.nonzero().flatten()
    class_deltas = deltas.view(len(labels), -1, 4)[objects, labels[objects]]
    count = _mean_count(len(labels), logits)
    box_loss = F.l1_loss(class_deltas, boxes[objects], reduction="sum") / count
    return F.cross_entropy(logits, labels, reduction="sum") / count, box_loss


def mask_loss(
    logits: Tensor, regions: list[Tensor], masks: list[Tensor], matched: list[Tensor], labels: list[Tensor]
) -> Tensor:
    """Cross entropy of the true classes' masks: mean over the cells of the regions of all processes with an object.

    A cell is the object's where RoIAlign of its mask is a half or more, as in detectron2.

    Args:
        logits: [n, C + 1, S, S], of the n regions of all images.
        regions: of each image, [k, 4].
        masks: of each image's objects, uint8 [m, H, W].
        matched: of each image's regions, int64 [k], the object that it shows.
        labels: of each image's regions, int64 [k], at least 1.
    """
    side = logits.shape[-1]
    parts = []
    for boxes, image_masks, objects in zip(regions, masks, matched, strict=True):
        rois = torch.cat([objects[:, None].to(boxes), boxes], dim=1)
        shares = roi_align(image_masks[:, None].to(boxes), rois, side, 1.0, 0, aligned=True)[:, 0]
        parts.append(shares >= 0.5)
    classes = torch.cat(labels)
    class_logits = logits[torch.arange(len(classes), device=classes.device), classes]
    total = F.binary_cross_entropy_with_logits(class_logits, torch.cat(parts).to(class_logits.dtype), reduction="sum")
    return total / (_mean_count(len(classes), logits) * side**2)
