"""Parts that methods are built from: plain functions and small modules, no base classes. All of them are public."""

from mixfast.methods.bases.options import check_option, check_queue_size, keys_per_step
from mixfast.methods.bases.queues import Queues, key_dtype
from mixfast.methods.bases.recipes import LIGHTLY, WMSE
from mixfast.methods.bases.regions import box_vectors, build_region_head, region_vectors
from mixfast.methods.bases.symmetry import concatenated, directions
from mixfast.models.ema import follower, update_ema_
from mixfast.models.heads import build_head
from mixfast.models.initialise import initialise_
from mixfast.models.shuffle import encode_shuffled

__all__ = [
    "LIGHTLY",
    "WMSE",
    "Queues",
    "box_vectors",
    "build_head",
    "build_region_head",
    "check_option",
    "check_queue_size",
    "concatenated",
    "directions",
    "encode_shuffled",
    "follower",
    "initialise_",
    "key_dtype",
    "keys_per_step",
    "region_vectors",
    "update_ema_",
]
