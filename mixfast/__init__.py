"""Fast operations for self-supervised learning with mixed images, and a trainer that uses them."""

from mixfast.ops import (
    backends,
    enqueue_,
    masked_upsample_pool,
    multi_queue_infonce,
    nt_xent,
    region_weights,
    weighted_pool,
)

__version__ = "0.1.0"
__all__ = [
    "__version__",
    "backends",
    "enqueue_",
    "masked_upsample_pool",
    "multi_queue_infonce",
    "nt_xent",
    "region_weights",
    "weighted_pool",
]
