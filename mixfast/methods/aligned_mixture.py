"""Aligned mixture: a patch of another image is pasted into a query, and each region must find its own place in a key.

MoCo, whose crops say which part of the image a view shows: a box of the image is known in both views, and a pasted
patch is known in the key view of the image that it was cut from. I(query, positive, queue) is InfoNCE; rho reverses the
batch.

    x1M = x1 with a patch P of rho(x3) in `p_mix` of the queries; x1 in the others     lam = share of x1M outside P
    R: a box of the image, within what x1 and x2 both show      P: the part of the patch that rho(x2) shows too

    loss = lam I(q, k, whole) + (1 - lam) I(q, rho k, whole)
         + w mean over boxes R of I(qR, kR, region) + w I(qP, rho kP, region)

    view 1 --+-- f_q --+-- head ---------- q
    view 3 --+         `-- map -- g_q --+-- qR: mean over R as view 1 shows it
    (of image B-1-n)                    `-- qP: mean over the patch
    view 2 -- shuffle -- f_k --+-- head ---------- k  -> whole
                               `-- map -- g_k --+-- kR: mean over R as view 2 shows it  -> region
                                                `-- kP: mean over what was cut out of this image, as view 2 shows it

g is a linear region head. The key encoder f_k and head g_k follow f_q and g_q by exponential moving average; an arrow
names the queue that takes a key (of the first R of each image). A step makes MoCo's two encoder passes. Region vectors
are means over the bilinearly enlarged map within boxes, computed without that map (`mixfast.ops.region_weights`).

As in the paper, local and global regions of a mixture are queries. Two things differ from Approach 1. Approach 1 pastes
pixels of the key's own view, so that query and key have the same colours; here the patch shows a third view, whose crop
and colours no key shares. Approach 1 compares a region with another part of the image; here a region is compared with
the same part of the image.

Rows and weights: the patched queries are the first rows of a batch, whose order is random, and the patches come from
its last rows. The sides of a box are between `min_side` and 1 times the sides of the area that both views show. A box
has weight 0 if both views share less than an eighth of a view's width or height, or if the patch covers three tenths of
the box or more. A patch has weight 0 as a region if the key view shows half of it or less. The mean over rows counts
boxes of weight 0 too, so that small crops make the region terms weaker. Borders are rounded to pixels.

With `p_mix 0` nothing is pasted, and only aligned regions remain (preset `aligned_regions`). That is the idea of SCRL
(Roh et al. 2021), which has BYOL's loss. Related methods: ReSim (Xiao et al. 2021) and PixPro (Xie et al. 2021) align
parts of overlapping crops; SoCo (Wei et al. 2021) aligns boxes of selective search; DenseCL (Wang et al. 2021) matches
cells by their features; RegionCL (Xu et al. 2022) swaps regions within the batch and compares them with whole views.
None of them compares a pasted patch with the same part of the image it came from. The combination, the weights of the
terms and all defaults are ours. The label of a mixture is that of CutMix (Yun et al. 2019).
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from mixfast.augment import Augment, Views
from mixfast.augment.geometry import areas, crop_boxes, intersection, to_image, to_view, whole_pixels
from mixfast.losses import Term, infonce_sum, unit
from mixfast.methods import Method, Step
from mixfast.methods.bases import (
    Queues,
    box_vectors,
    build_region_head,
    check_option,
    check_queue_size,
    encode_shuffled,
    follower,
    update_ema_,
)
from mixfast.mix import boxes_of_area, boxes_within
from mixfast.models import Encoder
from mixfast.ops import mix_views
from mixfast.ranges import Count, InnerShare, Positive, Share, check_ranges
from mixfast.rng import Generators
from mixfast.world import current

PATCH_RATIO = (2 / 3, 3 / 2)  # width / height of a patch, in units of the view's
LEAST_OVERLAP = 1 / 8  # of a view's sides: below it, boxes weigh 0
MOST_COVERED = 0.3  # of a box by the patch: from this share on, the box weighs 0
LEAST_SHOWN = 0.5  # of a patch by the key view: up to this share, the patch weighs 0 as a region


@dataclass(frozen=True)
class AlignedMixtureConfig:
    temperature: Positive = 0.1  # cosines are divided by it
    queue_size: Count = 4096  # past keys in each queue
    ema: Share = 0.99  # share of the key networks that survives one step
    p_mix: Share = 0.25  # share of the queries that get a patch; 0: aligned regions alone
    area: tuple[InnerShare, InnerShare] = (0.1, 0.4)  # share of the query that a patch covers, uniform
    weight: Positive = 1.0  # of the mean over an image's boxes, and of the patch; the whole image's terms have 1
    boxes: Count = 2  # boxes of each image that are compared
    min_side: InnerShare = 0.3  # least side of a box, in units of the side of what both views show
    region_layer: int | None = None  # stage whose map gives the region vectors, 1 is the first; none: the last

    def __post_init__(self) -> None:
        check_ranges(self, "method")
        check_option(self.area[0] <= self.area[1], "area", "(low, high) with low <= high", self.area)


class AlignedMixture(Method):
    Config = AlignedMixtureConfig
    summary = "patches of other images; each region meets its own place in a clean key view"
    config: AlignedMixtureConfig

    def __init__(self, config: AlignedMixtureConfig, make_encoder: Callable[[], Encoder], generators: Generators):
        super().__init__(config, make_encoder, generators)
        self.encoder = make_encoder()
        self.key_encoder = follower(self.encoder)
        self.queues = Queues(("whole", "region"), self.encoder.dim, config.queue_size, generators["queue"])
        self.region_head = build_region_head(self.encoder, config.region_layer, generators["weights"])
        self.key_region_head = follower(self.region_head)

    def begin(self, progress: Tensor) -> None:
        update_ema_(self.key_encoder, self.encoder, self.config.ema)
        update_ema_(self.key_region_head, self.region_head, self.config.ema)

    def views(self, images: Tensor, augment: Augment, generators: Generators) -> dict[str, Tensor]:
        both = augment(images)
        views = self.shared_boxes(both, generators["mix"])
        if self.config.p_mix:
            here = current()
            whole = max(1, round(self.config.p_mix * here.size * len(images)))
            count = whole if here.size == 1 else len(here.rows(whole))
            views |= self.patched(views, both, augment(images[-count:], 1), generators["mix"])
        return views

    def shared_boxes(self, both: Views, generator: torch.Generator) -> dict[str, Tensor]:
        """Unmixed views, boxes [B, M, 4] that show the same parts of the images in both, and their weights [B, M]."""
        x1, x2 = both
        size = (x1.shape[2], x1.shape[3])
        first, second = crop_boxes(both.crops)
        shared = intersection(first, second)
        sides, largest = shared[:, 2:] - shared[:, :2], torch.maximum(both.crops[0, :, 2:4], both.crops[1, :, 2:4])
        overlaps = (sides >= LEAST_OVERLAP * largest.flip(1)).all(dim=1, keepdim=True)  # crops have their height first
        shared = torch.where(overlaps, shared, second)  # a box of the key alone is a negative as good as others
        boxes = boxes_within(shared, self.config.boxes, self.config.min_side, generator)
        in_query, in_key = whole_pixels(to_view(boxes, both.crops[:, :, None], size), size)
        return {
            "query": x1,
            "boxes_query": in_query,
            "key": x2,
            "boxes_key": in_key,
            "weight_region": overlaps.float().expand(-1, self.config.boxes),
            "lam": x1.new_ones(len(x1), dtype=torch.float32),
        }

    def patched(
        self, views: dict[str, Tensor], both: Views, third: Views, generator: torch.Generator
    ) -> dict[str, Tensor]:
        """Paste patches of the last images into the first queries, in place, and return what else changes in `views`.

        A patch is one more box of the image that it was cut from.
        """
        x1, boxes, weight, lam = (views[name] for name in ("query", "boxes_query", "weight_region", "lam"))
        batch, count, size = len(x1), len(third[0]), (x1.shape[2], x1.shape[3])
        cut, crops, key_crops = third[0].flip(0), third.crops[0].flip(0), both.crops[1, -count:].flip(0)
        patches = boxes_of_area(count, size, self.config.area, PATCH_RATIO, generator)  # [count, 4]
        x1[:count] = mix_views(x1[:count], cut, patches, lam[:count])
        outside = 1 - areas(patches.float()) / (size[0] * size[1])
        covered = areas(intersection(boxes[:count].float(), patches[:, None].float())) / areas(boxes[:count].float())
        cut_out = to_image(patches.float(), crops, size)
        shown = intersection(cut_out, crop_boxes(key_crops))
        in_query, in_key = whole_pixels(to_view(shown, torch.stack([crops, key_crops]), size), size)
        none = boxes.new_zeros(batch - count, 4)
        return {
            "boxes_query": torch.cat([boxes, torch.cat([in_query, none])[:, None]], dim=1),
            "boxes_key": torch.cat([views["boxes_key"], torch.cat([none, in_key.flip(0)])[:, None]], dim=1),
            "weight_region": torch.cat([weight[:count] * (covered < MOST_COVERED), weight[count:]]),
            "weight_patch": (areas(shown) > LEAST_SHOWN * areas(cut_out)).float(),
            "lam": torch.cat([outside, lam[count:]]),
        }

    def step(self, views: dict[str, Tensor], generators: Generators) -> Step:
        layer, size = self.config.region_layer, (views["query"].shape[2], views["query"].shape[3])
        query = self.encoder(views["query"], layer)
        q = unit(query.z)  # [B, D]
        qR = box_vectors(query.map, views["boxes_query"], size, self.region_head)  # [B, M, D]; the patch comes last
        with torch.no_grad():
            key = encode_shuffled(self.key_encoder, views["key"], generators["shuffle"], layer)
            k = unit(key.z)
            kR = box_vectors(key.map, views["boxes_key"], size, self.key_region_head)
        boxes, weight, lam = self.config.boxes, self.config.weight, views["lam"]
        terms = [
            Term("original", q, k, "whole", lam),
            Term("region", by_box(qR, boxes), by_box(kR, boxes), "region", weight * views["weight_region"].T.flatten()),
        ]
        if self.config.p_mix:
            count = len(views["weight_patch"])
            share = count / len(q)  # their means are over the patched queries alone
            donor, patch = share * (1 - lam[:count]), share * weight * views["weight_patch"]
            terms += [
                Term("donor", q[:count], k.flip(0)[:count], "whole", donor),
                Term("patch", qR[:count, boxes], kR[:, boxes].flip(0)[:count], "region", patch),
            ]
        loss, parts = infonce_sum(terms, self.queues.keys(), self.config.temperature)
        return Step(loss, {**parts, "lam": lam.mean()}, {"whole": k, "region": kR[:, 0]}, terms)

    def update(self, carry: dict[str, Tensor]) -> None:
        self.queues.push_(carry)

    def negatives(self) -> dict[str, Tensor]:
        return self.queues.keys()

    @classmethod
    def check(cls, config: AlignedMixtureConfig, batch: int) -> None:
        check_queue_size(config, batch)

    @classmethod
    def candidates(cls, config: AlignedMixtureConfig, batch: int) -> int:
        return 1 + config.queue_size


def by_box(vectors: Tensor, boxes: int) -> Tensor:
    """[M B, D], the first box of every image, then the second, of [B, M or more, D]."""
    return vectors[:, :boxes].transpose(0, 1).flatten(0, 1)


METHOD = AlignedMixture
PRESETS: dict[str, dict[str, object]] = {
    "aligned_mixture": {},
    "aligned_regions": {"method.p_mix": 0.0},
}
HELP = {
    "aligned_mixture": ("1x", "none published; aligned regions and patches"),
    "aligned_regions": ("1x", "none published; aligned regions alone, as in SCRL"),
}
