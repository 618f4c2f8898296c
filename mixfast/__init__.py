"""Fast operations for self-supervised learning with mixed images, and a trainer that uses them."""

from mixfast.ops import (
    augment_views,
    backends,
    draw_views,
    masked_upsample_pool,
    mix_views,
    multi_queue_infonce,
    nt_xent,
    region_weights,
    weighted_pool,
)

__version__ = "0.1.0"
__all__ = [
    "__version__",
    "augment_views",
    "backends",
    "draw_views",
    "masked_upsample_pool",
    "mix_views",
    "multi_queue_infonce",
    "nt_xent",
    "region_weights",
    "weighted_pool",
]
