"""Train a detector on a network, and score it: the same images, weights and order for every network of a seed."""

import copy
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn

from mixfast.detection.average_precision import Detections, Truth
from mixfast.detection.body import Body, check_layers, pyramid_layers, stage_maps, whole_batches
from mixfast.detection.detectors import Shape, anchors_of, build, stacked
from mixfast.detection.images import LabelledImages
from mixfast.detection.scores import scores
from mixfast.errors import NonFiniteError
from mixfast.models import Backbone
from mixfast.rng import Generators
from mixfast.scoring.maps import Network

_WARM_UP = 50  # steps, but at most half of all steps
_DROPS = (0.75, 0.92)  # shares of the steps after which the rate falls to a tenth
_BATCH = 32  # images of a pass without gradients
MAX_STORED = 2 << 30  # bytes of maps of a frozen network; if they need more, they are computed in every step
Progress = Callable[[int, int], None]  # called with the steps done and the steps in all


@dataclass(frozen=True)
class Recipe:
    """The detector, and the options of its training."""

    detector: str = "fcos"  # a key of `detectors.DETECTORS`
    finetune: bool = False  # train the backbone too, its batch norms in training mode
    layers: tuple[int, ...] = ()  # stages whose maps are used; none: `pyramid_layers`, or for c4 the last but one
    steps: int = 400
    batch_size: int = 8
    lr: float = 1e-3  # AdamW's
    weight_decay: float = 1e-4
    clip: float = 10.0  # largest norm of the gradient


class Outcome(NamedTuple):
    """The scores of a trained detector."""

    scores: dict[str, float]  # percent
    detections: Detections  # in the test images
    losses: list[float]  # of every step
    seconds: float  # of training and scoring
    truth: Truth  # the objects of the test images


def transfer(
    network: Network,
    train: LabelledImages,
    test: LabelledImages,
    recipe: Recipe,
    seed: int,
    progress: Progress = lambda step, steps: None,
) -> Outcome:
    """Train a detector on `train` above a copy of a network, and score it on `test`.

    Args:
        network: an encoder, of which the backbone is used, and its normalisation.
        train: images with an object each, at least `recipe.batch_size` of them.
        test: images of the same size and classes.
        recipe: the detector and its training.
        seed: of the detector's weights, the order of the images, the flips and the detector's samples.
        progress: called after every step.

    Raises:
        NonFiniteError: the loss is NaN or infinite. ConfigError: the network lacks one of the layers.
    """
    started = time.monotonic()
    device = next(network.encoder.parameters()).device
    backbone = whole_batches(copy.deepcopy(network.encoder.backbone))
    shape = shape_of(backbone, train, recipe)
    generators = Generators(seed)
    # Torchvision draws weights and samples from the global generator.
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        torch.manual_seed(int(torch.randint(2**62, (), generator=generators["detection/weights"])))
        model = build(recipe.detector, backbone, shape, frozen=not recipe.finetune).to(device)
        losses = _fit(model, _Feed(model, network, train, recipe, flips=True), train, recipe, generators, progress)
    detections = _predict(model.eval(), _Feed(model, network, test, recipe, flips=False), test)
    return Outcome(scores(detections, test), detections, losses, time.monotonic() - started, test.truth)


def shape_of(backbone: Backbone, train: LabelledImages, recipe: Recipe) -> Shape:
    """The structure of the detector: its anchors follow the boxes of the training images."""
    layers = list(recipe.layers) or (
        [len(backbone.channels) - 1] if recipe.detector == "c4" else pyramid_layers(backbone, train.side)
    )
    check_layers(backbone, layers)
    boxes = train.boxes[(train.labels >= 0) & ~train.crowd]
    return Shape(layers, len(train.class_names), anchors_of(boxes, len(layers)))


class _Feed:
    """Batches of images for a detector. Maps of a frozen network are computed once, if they fit into `MAX_STORED`."""

    def __init__(self, model: nn.Module, network: Network, data: LabelledImages, recipe: Recipe, flips: bool):
        body = model.backbone
        assert isinstance(body, Body)
        self.body, self.normalise, self.images = body, network.normalise, data.images
        self.maps: list[Tensor] | None = None
        if not recipe.finetune and _bytes(body, data, 1 + flips) <= MAX_STORED:
            images = torch.cat([data.images, data.images.flip(3)]) if flips else data.images
            self.maps = stage_maps(body.backbone, images, body.layers, self.normalise, _BATCH)

    def __call__(self, index: Tensor, flipped: Tensor | None = None) -> Tensor:
        """Images [B, 3, S, S] for the detector; if the maps are stored, a meta tensor, as only its shape is read."""
        if self.maps is not None:
            rows = index if flipped is None else index + flipped * len(self.images)
            self.body.stored = [features[rows.to(features.device)] for features in self.maps]
            return torch.empty(len(index), *self.images.shape[1:], device="meta")
        images = self.images[index]
        if flipped is not None:
            images = torch.where(flipped[:, None, None, None], images.flip(3), images)
        return self.normalise(images)


def _bytes(body: Body, data: LabelledImages, times: int) -> int:
    """Bytes of the maps that the detector reads, for `times` as many images."""
    channels, strides = body.backbone.channels, body.backbone.strides
    cells = [channels[layer - 1] * (-(-data.side // strides[layer - 1])) ** 2 for layer in body.layers]
    return 4 * times * len(data) * sum(cells)


def _targets(data: LabelledImages, device: torch.device) -> list[tuple[dict[str, Tensor], dict[str, Tensor]]]:
    """The targets of torchvision's detectors for each image and its mirror image; classes from 1, without crowds."""
    targets = []
    for boxes, labels, crowd in zip(data.boxes, data.labels, data.crowd, strict=True):
        is_object = (labels >= 0) & ~crowd
        x0, y0, x1, y1 = boxes[is_object].unbind(1)
        mirrored = torch.stack([data.side - x1, y0, data.side - x0, y1], dim=1)
        classes = labels[is_object].to(device) + 1
        pair = (boxes[is_object], mirrored)
        original, mirror = ({"boxes": box_set.to(device), "labels": classes} for box_set in pair)
        targets.append((original, mirror))
    return targets


def _fit(
    model: nn.Module, feed: _Feed, data: LabelledImages, recipe: Recipe, generators: Generators, progress: Progress
) -> list[float]:
    order, flips = generators["detection/order"], generators["detection/flips"]
    weights = [weight for weight in model.parameters() if weight.requires_grad]
    device = weights[0].device
    optimizer = torch.optim.AdamW(weights, lr=recipe.lr, weight_decay=recipe.weight_decay, fused=True)
    targets = _targets(data, device)
    batch, warm_up = min(recipe.batch_size, len(data)), min(_WARM_UP, recipe.steps // 2 + 1)
    model.train()
    losses: list[float] = []
    while True:
        for index in torch.randperm(len(data), generator=order)[: len(data) // batch * batch].split(batch):
            step = len(losses)
            if step == recipe.steps:
                return losses
            factor = 0.1 ** sum(step >= share * recipe.steps for share in _DROPS) * min(1.0, (step + 1) / warm_up)
            optimizer.param_groups[0]["lr"] = recipe.lr * factor
            flipped = torch.rand(batch, generator=flips) < 0.5
            pairs = zip(index.tolist(), flipped.tolist(), strict=True)
            loss = sum(model(feed(index, flipped), [targets[image][flip] for image, flip in pairs]).values())
            losses.append(loss.item())
            if not torch.isfinite(loss.detach()):
                raise NonFiniteError(
                    f"the detector's loss is {losses[-1]} at step {step + 1} of {recipe.steps}. Give a smaller --lr "
                    f"than {recipe.lr:g}, or check whether the run's weights are finite."
                )
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(weights, recipe.clip)
            optimizer.step()
            progress(len(losses), recipe.steps)


@torch.no_grad()
def _predict(model: nn.Module, feed: _Feed, data: LabelledImages) -> Detections:
    batches = torch.arange(len(data)).split(_BATCH)
    return data.detections(*stacked((image for index in batches for image in model(feed(index))), len(data)))
