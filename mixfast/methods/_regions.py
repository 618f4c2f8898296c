"""What Approaches 1 and 2 share: mixtures on both branches, region vectors, queues. Their files hold the losses."""

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, replace
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn

from mixfast.errors import ConfigError
from mixfast.losses import Term, infonce_sum, unit
from mixfast.methods._momentum import MomentumConfig, MomentumMethod, check
from mixfast.methods.base import Step
from mixfast.mix import paste, sample_boxes
from mixfast.models import Encoder
from mixfast.models.ema import follower, update_ema_
from mixfast.models.heads import region_vectors
from mixfast.models.initialise import initialise_
from mixfast.models.shuffle import encode_shuffled
from mixfast.models.split_bn import frozen_statistics
from mixfast.rng import Generators


@dataclass(frozen=True)
class RegionConfig(MomentumConfig):
    alpha: float = 1.0  # lam0 ~ Beta(alpha, alpha) sizes the boxes; 1 is uniform
    box_mode: Literal["independent", "shared"] = (
        "independent"  # key box: own centre (the paper's figures), or the query's
    )
    box_per_sample: bool = False  # a box and a lam for every image instead of one for the batch
    lam: Literal["ratio", "mean"] | float = "ratio"  # share outside the query's box, mean of both boxes', or a constant
    mixed_key: Literal["clean", "mixed"] = "clean"  # key of the mixed term: clean view (eq. 3) or mixture (the figures)
    gg_key: Literal["region", "whole"] = (
        "region"  # key of the global term: outside vector (eq. 4), or clean image (code)
    )
    queues: Literal[3, 2] = 3  # 2: no queue of global keys, their terms read the whole images' (published code)
    region_head: Literal["own", "shared_live", "fc"] = "own"  # follower for keys; one live head (code); encoder's head
    region_layer: int | None = None  # stage whose map is pooled, 1 is the first; none: the last
    shuffle_mixed: bool = True  # encode the key mixtures in shuffled order too (published code: no)
    bn_stats: Literal["all", "clean_only"] = "all"  # passes that move the running statistics used in evaluation

    def __post_init__(self) -> None:
        super().__post_init__()
        check(self.alpha > 0, "alpha", "above 0", self.alpha)
        fixed = isinstance(self.lam, int | float) and 0 <= self.lam <= 1
        check(self.lam in ("ratio", "mean") or fixed, "lam", "ratio, mean, or a number in [0, 1]", self.lam)


class Vectors(NamedTuple):
    """Unit vectors of one branch, [B, D] each."""

    whole: Tensor  # clean view
    mixed: Tensor  # its mixture
    outside: Tensor  # region of the mixture that keeps the view: global, G
    inside: Tensor  # region of the mixture that was pasted: local, L


class RegionMethod(MomentumMethod):
    """Subclasses say what is pasted (`partner`) and which vectors meet (`terms`)."""

    config: Any

    def __init__(
        self, config: Any, make_encoder: Callable[[], Encoder], generators: Generators, queue_names: list[str]
    ):
        super().__init__(config, make_encoder, generators, queue_names)
        channels = self.encoder.backbone.channels[self._checked_layer() - 1]
        if config.region_head == "fc":
            return
        self.region_head = nn.Linear(channels, self.encoder.dim, device=generators.device)
        initialise_(self.region_head, generators["weights"])
        if config.region_head == "own":
            self.key_region_head = follower(self.region_head)

    def _checked_layer(self) -> int:
        last = self.encoder.layers
        layer = last if self.config.region_layer is None else self.config.region_layer
        check(1 <= layer <= last, "region_layer", f"in 1 ... {last} for this backbone", layer)
        if self.config.region_head == "fc" and (layer != last or not isinstance(self.encoder.head, nn.Linear)):
            raise ConfigError(
                "method.region_head fc reuses the encoder's head as a 1x1 convolution, so it needs model.head linear "
                f"and the last layer; got {type(self.encoder.head).__name__} and layer {layer} of {last}"
            )
        return layer

    def partner(self, view: Tensor, other: Tensor) -> Tensor:
        """What is pasted into `view` [B, 3, H, W], whose other view of the same images is `other`."""
        raise NotImplementedError

    def terms(self, query: Vectors, key: Vectors, lam: Tensor) -> list[Term]:
        """The loss of one direction; lam [B] is the weight of the query mixture's own image."""
        raise NotImplementedError

    def views(self, images: Tensor, augment: Callable[[Tensor], Tensor], generators: Generators) -> dict[str, Tensor]:
        config, first, second = self.config, augment(images), augment(images)
        count = 1 if config.box_mode == "shared" else 2
        pairs = sample_boxes(
            len(first),
            (first.shape[2], first.shape[3]),
            generators["mix"],
            alpha=config.alpha,
            per_sample=config.box_per_sample,
            count=count,
        )
        (query_boxes, query_lam), (key_boxes, key_lam) = pairs[0], pairs[-1]
        return {
            "query": first,
            "query_mixed": paste(first, self.partner(first, second), query_boxes),
            "boxes_query_mixed": query_boxes,
            "lam_query_mixed": query_lam,
            "key": second,
            "key_mixed": paste(second, self.partner(second, first), key_boxes),
            "boxes_key_mixed": key_boxes,
            "lam_key_mixed": key_lam,
        }

    def step(self, views: dict[str, Tensor], generators: Generators) -> Step:
        directions = [("", "query", "key")]
        if self.config.symmetric:
            directions.append(("_swapped", "key", "query"))
        terms: list[Term] = []
        keys: list[Vectors] = []
        for suffix, query, key in directions:
            query_vectors = self._queries(views, query)
            keys.append(self._keys(views, key, generators["shuffle"]))
            lam = self._weight(views[f"lam_{query}_mixed"], views[f"lam_{key}_mixed"])
            for term in self.terms(query_vectors, keys[-1], lam):
                terms.append(replace(term, name=term.name + suffix))
        loss, parts = infonce_sum(terms, self.negatives(), self.config.temperature)
        parts["lam"] = self._weight(views["lam_query_mixed"], views["lam_key_mixed"]).mean()
        held = {"whole": "whole", "global": "outside", "local": "inside"}  # queue: vector
        carry = {name: torch.cat([getattr(side, held[name]) for side in keys]) for name in self.queues}
        return Step(loss, parts, carry)

    def begin(self) -> None:
        super().begin()
        if self.config.region_head == "own":
            update_ema_(self.key_region_head, self.region_head, self.config.ema)

    def _weight(self, own: Tensor, other: Tensor) -> Tensor:
        if self.config.lam == "ratio":
            return own
        return (own + other) / 2 if self.config.lam == "mean" else torch.full_like(own, self.config.lam)

    def _queries(self, views: dict[str, Tensor], name: str) -> Vectors:
        clean = self.encoder(views[name]).z
        frozen = frozen_statistics(self.encoder) if self.config.bn_stats == "clean_only" else nullcontext()
        with frozen:
            mixture = self.encoder(views[f"{name}_mixed"], self.config.region_layer)
        return self._vectors(views, name, clean, mixture.z, mixture.map, self._heads()[0])

    @torch.no_grad()
    def _keys(self, views: dict[str, Tensor], name: str, generator: torch.Generator) -> Vectors:
        layer, mixed = self.config.region_layer, views[f"{name}_mixed"]
        clean = encode_shuffled(self.key_encoder, views[name], generator).z
        if self.config.shuffle_mixed:
            mixture = encode_shuffled(self.key_encoder, mixed, generator, layer)
        else:
            mixture = self.key_encoder(mixed, layer)
        return self._vectors(views, name, clean, mixture.z, mixture.map, self._heads()[1])

    def _heads(self) -> tuple[nn.Module, nn.Module]:
        """What turns a region's mean feature into a vector: for queries, for keys."""
        if self.config.region_head == "fc":
            return self.encoder.head, self.key_encoder.head
        return self.region_head, self.key_region_head if self.config.region_head == "own" else self.region_head

    def _vectors(
        self, views: dict[str, Tensor], name: str, clean: Tensor, mixed: Tensor, features: Tensor, head: nn.Module
    ) -> Vectors:
        size = (views[name].shape[2], views[name].shape[3])
        inside, outside = region_vectors(features, views[f"boxes_{name}_mixed"], size, head)
        return Vectors(unit(clean), unit(mixed), outside, inside)
