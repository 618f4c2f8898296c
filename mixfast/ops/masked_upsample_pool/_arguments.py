"""What the compiled backends share: tensors made ready for a call by pointers and sizes."""

import torch
from torch import Tensor

# The numbers of csrc/masked_upsample_pool/kernels.h; -1 stands for boxes.
DTYPES = {torch.float32: 0, torch.float64: 1, torch.float16: 2, torch.bfloat16: 3}
_MASK_DTYPES = {**DTYPES, torch.bool: 4, torch.uint8: 4}


def dense(features: Tensor) -> tuple[Tensor, bool]:
    """The maps as they are, if they are contiguous or channels last, else a copy; and whether channels are last."""
    if features.is_contiguous():
        return features, False
    if features.is_contiguous(memory_format=torch.channels_last):
        return features, True
    return features.contiguous(), False


def plain_regions(regions: Tensor) -> tuple[Tensor, int]:
    """Boxes as contiguous int64, or a contiguous mask; and the number of the mask's dtype."""
    if regions.ndim == 3:
        return regions.contiguous(), _MASK_DTYPES[regions.dtype]
    return (regions if regions.dtype == torch.int64 else regions.to(torch.int64)).contiguous(), -1


def sums_dtype(dtype: torch.dtype) -> torch.dtype:
    """What maps of `dtype` are summed in, and so the dtype of their weights."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def empty_maps(like: Tensor, h: int, w: int, channels_last: bool) -> Tensor:
    """[B, C, h, w] for the gradient of maps whose results are [B, C]."""
    layout = torch.channels_last if channels_last else torch.contiguous_format
    return torch.empty((*like.shape, h, w), dtype=like.dtype, device=like.device, memory_format=layout)
