"""Drop-ins for code that is written for other libraries; none of these libraries is needed to import them.

docs/adapters.md shows the lines that change.
"""

from mixfast.adapters.lightning import LightningMethod
from mixfast.adapters.losses import MemoryBank, NTXentLoss, mocov2plus_loss_func, simclr_loss_func
from mixfast.adapters.pool import pool_boxes, token_map
from mixfast.models.split_bn import convert_split_bn

__all__ = [
    "LightningMethod",
    "MemoryBank",
    "NTXentLoss",
    "convert_split_bn",
    "mocov2plus_loss_func",
    "pool_boxes",
    "simclr_loss_func",
    "token_map",
]
