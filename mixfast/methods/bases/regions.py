"""What methods with region terms share: region vectors of mixtures, and their queues. Their files hold the losses."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn

from mixfast.augment import Augment
from mixfast.errors import ConfigError
from mixfast.losses import Term, unit
from mixfast.methods.bases.method import Step
from mixfast.methods.bases.mixing import MixingConfig, Partner, donor
from mixfast.methods.bases.momentum import MomentumMethod, check
from mixfast.methods.bases.unmix import mixed_statistics
from mixfast.mix import draw, paste_in, place
from mixfast.models import Encoder
from mixfast.models.ema import follower, update_ema_
from mixfast.models.heads import region_vectors
from mixfast.models.initialise import initialise_
from mixfast.models.shuffle import encode_shuffled
from mixfast.rng import Generators


@dataclass(frozen=True)
class RegionConfig(MixingConfig):
    region_head: Literal["own", "shared_live", "fc"] = "own"  # follower for keys; one live head (code); encoder's head
    region_layer: int | None = None  # stage whose map is pooled, 1 is the first; none: the last

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.mixture == "mixup":
            raise ConfigError(
                "method.mixture mixup blends whole images, so no box has an inside and an outside for the region terms "
                "to compare; use cutmix, saliency or none, or the method moco_unmix"
            )


@dataclass(frozen=True)
class TwoBranchConfig(RegionConfig):
    lam: Literal["ratio", "mean"] | float = "ratio"  # share outside the query's box, mean of both boxes', or a constant
    box_mode: Literal["independent", "shared"] = (
        "independent"  # key box: own centre (the paper's figures), or the query's
    )
    mixed_key: Literal["clean", "mixed"] = "clean"  # key of the mixed term: clean view (eq. 3) or mixture (the figures)
    gg_key: Literal["region", "whole"] = (
        "region"  # key of the global term: outside vector (eq. 4), or clean image (code)
    )
    queues: Literal[3, 2] = 3  # 2: no queue of global keys, their terms read the whole images' (published code)
    shuffle_mixed: bool = True  # encode the key mixtures in shuffled order too (published code: no)

    def __post_init__(self) -> None:
        super().__post_init__()
        check_lam(self.lam, "ratio", "mean")


def check_lam(lam: str | float, *names: str) -> None:
    """Raise ConfigError unless `lam` is one of `names` or a share."""
    fixed = isinstance(lam, int | float) and 0 <= lam <= 1
    check(lam in names or fixed, "lam", f"{', '.join(names)}, or a number in [0, 1]", lam)


class Vectors(NamedTuple):
    """Unit vectors of one branch, [B, D] each."""

    whole: Tensor  # clean view
    mixed: Tensor  # its mixture
    outside: Tensor  # region of the mixture that keeps the view: global, G
    inside: Tensor  # region of the mixture that was pasted: local, L


class RegionMethod(MomentumMethod):
    """Subclasses say what is pasted (`partner`) and which vectors meet (`terms`)."""

    config: Any
    partner: Partner

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

    @property
    def mixed_branches(self) -> tuple[str, ...]:
        """Views that get a mixture."""
        return ("query", "key")

    @property
    def shared_box(self) -> bool:
        """Whether both mixtures have the query's box."""
        return bool(self.config.box_mode == "shared")

    def terms(self, query: Vectors, key: Vectors, lam: Tensor) -> list[Term]:
        """The loss of one direction; lam [B] is the weight of the query mixture's own image."""
        raise NotImplementedError

    def views(self, images: Tensor, augment: Augment, generators: Generators) -> dict[str, Tensor]:
        sides = dict(zip(("query", "key"), augment(images), strict=True))
        how = draw(len(images), generators["mix"], self.config)
        views: dict[str, Tensor] = {}
        for name, other in (("query", "key"), ("key", "query")):
            views[name] = sides[name]
            if name not in self.mixed_branches:
                continue
            patch = donor(self.partner, sides[name], sides[other])
            if name == "query" or not self.shared_box:
                boxes, outside = place(patch, how.lam0, generators["mix"], self.config)
            mixture = paste_in(sides[name], patch, boxes, outside, how.mixed)
            views[f"{name}_mixed"] = mixture.images
            views[f"boxes_{name}_mixed"] = boxes  # also where nothing is pasted: the regions stay
            # A patch of the same image leaves nothing to label; the box alone says how large its two parts are.
            views[f"lam_{name}_mixed"] = outside if self.partner == "other_view" else mixture.lam
        return views

    def step(self, views: dict[str, Tensor], generators: Generators) -> Step:
        terms: list[Term] = []
        keys: list[Vectors] = []
        for suffix, query, key in self.directions():
            query_vectors = self._queries(views, query)
            keys.append(self._keys(views, key, generators["shuffle"]))
            for term in self.terms(query_vectors, keys[-1], self._weight(views, query, key)):
                terms.append(replace(term, name=term.name + suffix))
        held = {"whole": "whole", "global": "outside", "local": "inside"}  # queue: vector
        carries = [{name: getattr(side, held[name]) for name in self.queues} for side in keys]
        return self.total(terms, carries, self._weight(views, "query", "key"))

    def begin(self, progress: Tensor) -> None:
        super().begin(progress)
        if self.config.region_head == "own":
            update_ema_(self.key_region_head, self.region_head, self.config.ema)

    def _weight(self, views: dict[str, Tensor], query: str, key: str) -> Tensor:
        own = views[f"lam_{query}_mixed"]
        if self.config.lam == "ratio":
            return own
        if self.config.lam == "mean":
            return (own + views[f"lam_{key}_mixed"]) / 2
        return torch.where(own < 1, self.config.lam, own)  # where nothing is mixed, 1 is no choice

    def _queries(self, views: dict[str, Tensor], name: str) -> Vectors:
        clean = self.encoder(views[name]).z
        with mixed_statistics(self.config, self.encoder):
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
