"""Losses that count both views as queries: the directions of the loss, and the keys of all directions."""

from collections.abc import Sequence

import torch
from torch import Tensor


def directions(symmetric: bool) -> list[tuple[str, str, str]]:
    """(suffix of the terms' names, view of the queries, view of the keys) of each direction: two if `symmetric`."""
    return [("", "query", "key"), ("_swapped", "key", "query")][: 2 if symmetric else 1]


def concatenated(keys: Sequence[dict[str, Tensor]]) -> dict[str, Tensor]:
    """The keys [B, D] of each direction by queue, put together: [B, D] or [2 B, D] by queue."""
    return {name: torch.cat([direction[name] for direction in keys]) for name in keys[0]}
