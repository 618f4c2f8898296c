"""masked_upsample_pool, forward and with backward, in the shapes of training runs, against what else there is."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from benchmarks.pooling import (
    Inputs,
    Pooled,
    Shape,
    both,
    by_mixfast,
    forward,
    inputs,
    interpolated,
    mask_of,
    weights_and_bmm,
)

SHAPES = [Shape(512, 128, 4, 32), Shape(512, 512, 4, 32), Shape(256, 2048, 7, 224)]
SMOKE = [Shape(4, 8, 4, 32), Shape(4, 16, 4, 32), Shape(2, 32, 7, 56)]
MATERIALISED = 0  # the one shape whose upsampled map (0.25 GiB; the others 1 and 96) is worth making


def draw(shape: Shape, dtype: torch.dtype = torch.float32, **options: Any) -> Inputs:
    return inputs(shape, dtype, generator=torch.Generator().manual_seed(0), **options)


def variants(shape: Shape) -> dict[str, Inputs]:
    return {
        "channels last": draw(shape, channels_last=True),
        "bool mask": draw(shape, regions="bool"),
        "float mask": draw(shape, regions="float32"),
        "bfloat16": draw(shape, torch.bfloat16),
    }


@pytest.mark.parametrize("task", [forward, both], ids=["forward", "both"])
@pytest.mark.parametrize("case", range(len(SHAPES)), ids=[str(shape) for shape in SHAPES])
def test_table(measure: Any, smoke: bool, case: int, task: Callable[..., Callable[[], object]]) -> None:
    shape = (SMOKE if smoke else SHAPES)[case]
    data = draw(shape)
    peers: dict[str, Callable[[Inputs], Pooled]] = {
        "mixfast cpu": by_mixfast("cpu"),
        "weights and bmm": weights_and_bmm,
    }
    if case == MATERIALISED:
        peers["interpolate, two means (the reference)"] = interpolated
        peers["torch.compile of the reference"] = torch.compile(interpolated, backend="eager" if smoke else "inductor")
    runs = {name: task(pool, data) for name, pool in peers.items()}
    runs |= {f"with {name}: mixfast": task(by_mixfast("auto"), variant) for name, variant in variants(shape).items()}
    runs["floor: copy of the map"] = data.features.detach().clone  # forward reads the map, backward writes one
    passes = "forward" if task is forward else "forward and backward"
    measure(f"masked_upsample_pool, {passes}: {shape}, float32", runs)


@pytest.mark.parametrize("shape", SMOKE, ids=str)
def test_baselines_agree(shape: Shape) -> None:
    data = draw(shape)
    large = F.interpolate(data.features, data.size, mode="bilinear")
    mask = mask_of(data)[:, None].float()
    expected = (large * mask).sum((2, 3)) / mask.sum((2, 3)).clamp_min(1)
    for pool in (interpolated, weights_and_bmm):
        torch.testing.assert_close(pool(data)[0], expected, rtol=1e-5, atol=1e-5)
