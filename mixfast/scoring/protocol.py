"""Protocol of localisation: map and threshold are chosen on validation images, and scored on test images.

    1. On the validation images every kind of map of a network is scored at every threshold. The kind with the highest
       MaxBoxAccV2 is kept, with the threshold that is best for each IoU.
    2. The test images are scored with that kind and these thresholds: CorLoc (largest component, IoU 0.5) and BoxAccV2
       (all components, mean over IoU 0.3, 0.5, 0.7), beside pointing, energy and PxAP, which need no threshold.
    3. MaxBoxAcc and MaxBoxAccV2 of the literature choose the threshold on the images that they score. They are reported
       too, as oracles.

Every contestant goes through the same steps: a trained network, the same one untrained, edges, a centred box.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from mixfast.scoring import bootstrap, localisation
from mixfast.scoring.baselines import centre_maps, edge_maps
from mixfast.scoring.boxes import Objects
from mixfast.scoring.labelling import connected_components
from mixfast.scoring.localisation import DELTAS, HITS_AT, BoxCurves, PixelCounts
from mixfast.scoring.maps import Mapper, enlarged

CORLOC_IOU = 0.5
_CHUNK_PIXELS = 1 << 21  # bound on the pixels of object masks in memory at once

# Makes raw maps [N, h, w] of some kinds, by kind; None: of all kinds.
MapMaker = Callable[[Objects, Sequence[str] | None], dict[str, Tensor]]


class Options(NamedTuple):
    """Options of the scores."""

    align_corners: bool = False  # whether maps are enlarged with aligned corners
    tolerance: float = 0.0  # pixels by which the pointing game may miss
    thresholds: int = localisation.THRESHOLDS


DEFAULTS = Options()


class Measured(NamedTuple):
    """Scores by image of one kind of map on N images, on the CPU."""

    pointing: Tensor  # float32 [N], 1 for a hit
    tie: Tensor  # float32 [N], 1 for a tie, which does not count as a hit
    energy: Tensor  # float32 [N]
    curves: BoxCurves
    pixels: PixelCounts | None  # None without masks
    hits: Tensor | None  # float32 [N, len(HITS_AT)]; None if images have a single object


class Choice(NamedTuple):
    """Map and thresholds that are best on the validation images."""

    kind: str
    corloc: int  # number of the threshold for CorLoc
    deltas: tuple[int, ...]  # number of the threshold for each of DELTAS
    validation: dict[str, float]  # MaxBoxAccV2 of every kind on the validation images, in percent


class Outcome(NamedTuple):
    """A contestant's result on the test images: its choice, and values per image [N, ...] by metric of `METRICS`."""

    choice: Choice
    images: dict[str, Tensor]


def mapper_contestant(mapper: Mapper, kinds: Sequence[str] | None = None) -> MapMaker:
    """The maps of the network of `mapper` as a contestant; `kinds` limits the maps that it may choose from."""
    able = mapper.kinds() if kinds is None else tuple(kinds)

    def make(objects: Objects, wanted: Sequence[str] | None) -> dict[str, Tensor]:
        labelled = bool((objects.labels >= 0).all()) and objects.boxes.shape[1] == 1
        usable = [kind for kind in able if kind != "cam" or labelled]
        return mapper.maps(objects.images, usable if wanted is None else wanted, objects.labels)

    return make


def edge_contestant(objects: Objects, wanted: Sequence[str] | None) -> dict[str, Tensor]:
    """Maps [N, h, w] by kind: the length of the image gradient (`edge_maps`) of `objects`; `wanted` kinds or all."""
    return _pick(edge_maps(objects.images), wanted)


def centre_contestant(objects: Objects, wanted: Sequence[str] | None) -> dict[str, Tensor]:
    """Maps [N, h, w] by kind: fixed centred boxes (`centre_maps`) for `objects`; the `wanted` kinds or all."""
    return _pick(centre_maps(objects.images), wanted)


def _pick(maps: dict[str, Tensor], wanted: Sequence[str] | None) -> dict[str, Tensor]:
    return {kind: maps[kind] for kind in (maps if wanted is None else wanted)}


def measure(maps: Tensor, objects: Objects, options: Options = DEFAULTS) -> Measured:
    """All scores of raw maps [N, h, w] on N images, computed on the maps' device, a few images at a time."""
    per_image = objects.boxes.shape[1] * objects.images[0, 0].numel()
    several = bool(objects.boxes.shape[1] > 1)
    parts = []
    for index in torch.arange(len(maps)).split(max(1, min(64, _CHUNK_PIXELS // per_image))):
        part = objects.take(index)
        boxes = part.boxes.to(maps.device)
        big = enlarged(maps[index.to(maps.device)], objects.size, options.align_corners)
        point = localisation.pointing(big, boxes, options.tolerance)
        measured = Measured(
            pointing=point.hit.float(),
            tie=point.tie.float(),
            energy=localisation.energy(big, boxes),
            curves=localisation.box_curves(big, boxes, options.thresholds),
            pixels=None if part.masks is None else localisation.pixel_counts(big, part.masks.to(maps.device)),
            hits=localisation.object_hits(big, boxes) if several else None,
        )
        parts.append(measured)
    return _joined(parts)


def _joined(parts: list[Any]) -> Any:
    """Nested named tuples of tensors, or None, concatenated along images and moved to the CPU."""
    first = parts[0]
    if first is None or isinstance(first, Tensor):
        return None if first is None else torch.cat(parts).cpu()
    return type(first)(*(_joined(list(fields)) for fields in zip(*parts, strict=True)))


def reaches(curve: Tensor, delta: float) -> Tensor:
    """float32 [N, T]: 1 where the IoU [N, T] reaches `delta`, so that a mean over images is an accuracy."""
    return (curve >= delta).float()


def choose(validation: dict[str, Measured]) -> Choice:
    """The kind of map with the highest MaxBoxAccV2, and its best thresholds; of equal ones the first."""
    accuracies = {
        kind: torch.stack([reaches(measured.curves.any, delta).mean(0) for delta in DELTAS])
        for kind, measured in validation.items()
    }
    scores = {kind: 100 * table.amax(1).mean().item() for kind, table in accuracies.items()}
    kind = max(scores, key=lambda name: scores[name])
    corloc = reaches(validation[kind].curves.largest, CORLOC_IOU).mean(0).argmax().item()
    return Choice(kind, int(corloc), tuple(accuracies[kind].argmax(1).tolist()), scores)


def choose_and_score(contestant: MapMaker, validation: Objects, test: Objects, options: Options = DEFAULTS) -> Outcome:
    """The scores on `test` of the map and the thresholds that are best on `validation`.

    Args:
        contestant: makes the maps, such as `mapper_contestant(fit_mapper(network, images))`.
        validation: images on which map and thresholds are chosen; disjoint from `test`.
        test: images to score.
        options: how maps are enlarged and scored.
    """
    candidates = contestant(validation, None)
    choice = choose({kind: measure(maps, validation, options) for kind, maps in candidates.items()})
    measured = measure(contestant(test, [choice.kind])[choice.kind], test, options)
    return Outcome(choice, values_per_image(measured, choice))


def values_per_image(measured: Measured, choice: Choice) -> dict[str, Tensor]:
    """Values per image [N, ...] by metric of `METRICS`; some metrics need masks, or several objects."""
    largest, anywhere = measured.curves
    by_delta = [reaches(anywhere, delta) for delta in DELTAS]
    v2 = [values[:, threshold] for values, threshold in zip(by_delta, choice.deltas, strict=True)]
    values = {
        "pointing": measured.pointing,
        "tie": measured.tie,
        "energy": measured.energy,
        "corloc": reaches(largest[:, choice.corloc], CORLOC_IOU),
        "box_v2": torch.stack(v2).mean(0),
        "max_box_acc": reaches(largest, CORLOC_IOU),
        "max_box_acc_v2": torch.stack(by_delta, dim=1),
    }
    if measured.pixels is not None:
        values["pxap"] = torch.stack(measured.pixels, dim=1)
    if measured.hits is not None:
        values |= {f"hit_at_{k}": measured.hits[:, i] for i, k in enumerate(HITS_AT)}
        values["background"] = 1 - measured.energy
    return values


def _mean(sums: Tensor, count: int) -> Tensor:
    return 100 * sums / count


# From sums over `count` images, [R, ...], to percent [R].
METRICS: dict[str, Callable[..., Tensor]] = {
    "pointing": _mean,
    "tie": _mean,
    "energy": _mean,
    "pxap": lambda sums, count: 100 * localisation.average_precision(sums[:, 0], sums[:, 1]),
    "corloc": _mean,
    "box_v2": _mean,
    **{f"hit_at_{k}": _mean for k in HITS_AT},
    "background": _mean,
    "max_box_acc": lambda sums, count: 100 * sums.amax(1) / count,  # oracle: the best threshold on the same images
    "max_box_acc_v2": lambda sums, count: 100 * sums.amax(2).mean(1) / count,
}


def summarise(outcomes: Sequence[Outcome], draws: Tensor) -> dict[str, dict[str, Any]]:
    """Every metric of one or more runs (seeds) of one method: {metric: {"mean", "std", "low", "high", "values"}}.

    Args:
        outcomes: one per run, all on the same test images.
        draws: [R, N] from `bootstrap.resamples`.
    """
    names = [name for name in METRICS if name in outcomes[0].images]
    scores = {name: partial(METRICS[name], count=draws.shape[1]) for name in names}
    return {name: bootstrap.summary([o.images[name] for o in outcomes], scores[name], draws) for name in names}


def margin(ours: Sequence[Outcome], theirs: Sequence[Outcome], draws: Tensor, name: str) -> dict[str, float]:
    """Mean of `ours` minus mean of `theirs` on the metric `name`, with the interval of bootstrap `draws` [R, N].

    Both sides are scored on the same images, so the interval is narrower than those of the two means suggest.
    """
    first_values, second_values = ([outcome.images[name] for outcome in side] for side in (ours, theirs))
    return bootstrap.margin(first_values, second_values, partial(METRICS[name], count=draws.shape[1]), draws)


def predicted(maps: Tensor, choice: Choice, thresholds: int = localisation.THRESHOLDS) -> Tensor:
    """int64 [N, 4]: the box that CorLoc scores on maps [N, H, W] as `enlarged` makes them."""
    components = connected_components(maps >= choice.corloc / thresholds * maps.amax(dim=(1, 2), keepdim=True))
    order = components.area.argsort(stable=True, descending=True)
    first = torch.full((len(maps),), -1, device=maps.device)
    for number in order.flip(0).tolist():  # the largest is last, and overwrites the others
        first[components.mask[number]] = number
    return components.box[first]
