"""The operations. Each is a folder: the public function, its definition in plain PyTorch, and one file per backend."""

from mixfast.ops._dispatch import backends
from mixfast.ops.infonce import multi_queue_infonce
from mixfast.ops.norm import split_batch_norm
from mixfast.ops.ntxent import nt_xent
from mixfast.ops.pool import masked_upsample_pool, region_weights, weighted_pool
from mixfast.ops.views import augment_views, draw_views, mix_views

__all__ = [
    "augment_views",
    "backends",
    "draw_views",
    "masked_upsample_pool",
    "mix_views",
    "multi_queue_infonce",
    "nt_xent",
    "region_weights",
    "split_batch_norm",
    "weighted_pool",
]
