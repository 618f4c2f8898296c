"""What mixing methods with queues share: their options, and MoCo with one more query, a mixture of the first view."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from mixfast.augment import Augment
from mixfast.losses import Term
from mixfast.methods.bases.method import Step
from mixfast.methods.bases.momentum import MomentumConfig, MomentumMethod
from mixfast.methods.bases.unmix import mixed_statistics
from mixfast.mix import Mixture, MixtureConfig
from mixfast.models import Encoder
from mixfast.rng import Generators

Partner = Literal["batch_reverse", "other_view"]


@dataclass(frozen=True)
class MixingConfig(MomentumConfig, MixtureConfig):
    bn_stats: Literal["all", "clean_only"] = "all"  # passes that move the running statistics used in evaluation

    def __post_init__(self) -> None:
        MomentumConfig.__post_init__(self)
        MixtureConfig.__post_init__(self)


def donor(partner: Partner, view: Tensor, other: Tensor) -> Tensor:
    """What is mixed into `view` [B, 3, H, W], whose other view of the same images is `other`."""
    return other if partner == "other_view" else view.flip(0)


class MixingMoCo(MomentumMethod):
    """Subclasses say how the first view is mixed."""

    config: Any
    reverse = True  # whether mixture B-1-i must find the key of image i too, which has the share 1 - lam in it

    def __init__(self, config: Any, make_encoder: Callable[[], Encoder], generators: Generators):
        super().__init__(config, make_encoder, generators, ["whole"])

    def mixture(self, first: Tensor, second: Tensor, generator: torch.Generator) -> Mixture:
        """The mixture of the first view."""
        raise NotImplementedError

    def views(self, images: Tensor, augment: Augment, generators: Generators) -> dict[str, Tensor]:
        first, second = augment(images)
        mixed = self.mixture(first, second, generators["mix"])
        return {
            "query": first,
            "query_mixed": mixed.images,
            "boxes_query_mixed": mixed.boxes,
            "lam_query_mixed": mixed.lam,
            "key": second,
        }

    def step(self, views: dict[str, Tensor], generators: Generators) -> Step:
        pairs = [
            (suffix, self.query(views[query]), self.key(views[key], generators["shuffle"]))
            for suffix, query, key in self.directions()
        ]
        with mixed_statistics(self.config, self.encoder):
            mixed = self.query(views["query_mixed"])
        lam, terms = views["lam_query_mixed"], []
        for suffix, query, key in pairs:
            terms.append(Term(f"original{suffix}", query, key, "whole"))
            terms.append(Term(f"mixed{suffix}", mixed, key, "whole", lam))
            if self.reverse:
                terms.append(Term(f"mixed_reverse{suffix}", mixed.flip(0), key, "whole", (1 - lam).flip(0)))
        return self.total(terms, [{"whole": key} for _, _, key in pairs], lam)
