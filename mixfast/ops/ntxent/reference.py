"""nt_xent by its definition, in plain PyTorch: all 2N x 2N logits, then their cross entropy.

It shares no code with the other backends, which are tested against it. PyTorch computes all derivatives.
"""

import torch
import torch.nn.functional as F
from torch import Tensor


def unavailable() -> str | None:
    return None


def why_not(device_type: str, dtype: torch.dtype, dim: int) -> str | None:
    return None


def losses(
    first: Tensor, second: Tensor, excluded: Tensor | None, temperature: float | Tensor, reduction: str
) -> Tensor:
    """[2N] for reduction "none", else []."""
    with torch.autocast(first.device.type, enabled=False):
        statistics = torch.float64 if first.dtype == torch.float64 else torch.float32
        rows = torch.cat([first, second]).to(statistics)  # [2N, D]
        index = torch.arange(len(rows), device=rows.device)
        positive = index.roll(len(first))
        hidden = index[:, None] == index
        if excluded is not None:
            hidden = hidden | ((excluded[:, None] == index) & (positive[:, None] != index))
        logits = (rows @ rows.T / temperature).masked_fill(hidden, float("-inf"))
        return F.cross_entropy(logits, positive, reduction=reduction)
