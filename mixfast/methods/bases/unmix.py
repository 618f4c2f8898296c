"""What Un-Mix adds to a method without queues: a mixture of the first view, and its passes' batch statistics."""

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, Literal

from torch import Tensor, nn

from mixfast.augment import Augment
from mixfast.mix import UnMixConfig, mix
from mixfast.models.split_bn import frozen_statistics
from mixfast.rng import Generators


@dataclass(frozen=True)
class PairUnMixConfig(UnMixConfig):
    bn_stats: Literal["all", "clean_only"] = "all"  # passes that move the running statistics used in evaluation


def unmix_views(images: Tensor, augment: Augment, generators: Generators, config: UnMixConfig) -> dict[str, Tensor]:
    """Two views, and the first one mixed with the first view of the batch in reverse order."""
    first, second = augment(images)
    mixed = mix(first, first.flip(0), generators["mix"], config, p_global=config.p_global)
    return {
        "first": first,
        "second": second,
        "first_mixed": mixed.images,
        "boxes_first_mixed": mixed.boxes,
        "lam_first_mixed": mixed.lam,
    }


def mixed_statistics(config: PairUnMixConfig, network: nn.Module) -> AbstractContextManager[Any]:
    """Within it, passes of mixtures move the running statistics of `network` only if the options want it."""
    return frozen_statistics(network) if config.bn_stats == "clean_only" else nullcontext()
