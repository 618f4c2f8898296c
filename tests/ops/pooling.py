"""The pooling operations under test: called on the backend's device, with results on the CPU."""

from typing import Any

import torch
from torch import Tensor

import mixfast
from tests.backends import device_of, refusal

NAME = "masked_upsample_pool"


def widest(backend: str) -> torch.dtype:
    """float64, or float32 for a backend that has no float64."""
    return torch.float64 if refusal(NAME, backend, torch.float64) is None else torch.float32


def masked_upsample_pool(
    features: Tensor, regions: Tensor, output_size: Any = None, *, backend: str = "auto"
) -> tuple[Tensor, Tensor]:
    device = device_of(backend)
    pooled = mixfast.masked_upsample_pool(features.to(device), regions.to(device), output_size, backend=backend)
    return pooled[0].to("cpu"), pooled[1].to("cpu")


def region_weights(
    regions: Tensor, output_size: Any, feature_size: Any, *, dtype: torch.dtype = torch.float32, backend: str = "auto"
) -> Tensor:
    regions = regions.to(device_of(backend))
    return mixfast.region_weights(regions, output_size, feature_size, dtype=dtype, backend=backend).to("cpu")


def weighted_pool(features: Tensor, weights: Tensor, *, backend: str = "auto") -> tuple[Tensor, Tensor]:
    device = device_of(backend)
    pooled = mixfast.weighted_pool(features.to(device), weights.to(device), backend=backend)
    return pooled[0].to("cpu"), pooled[1].to("cpu")
