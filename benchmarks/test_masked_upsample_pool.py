"""masked_upsample_pool, forward and with backward, in the shapes of training runs, against what else there is."""

from collections.abc import Callable
from typing import NamedTuple

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import mixfast
from mixfast import masked_upsample_pool

SHAPES = [(512, 128, 4, 32), (512, 512, 4, 32), (256, 2048, 7, 224)]  # images, channels, side of the map, of the image
SMOKE = [(4, 8, 4, 32), (4, 16, 4, 32), (2, 32, 7, 56)]
MATERIALISED = 0  # the one shape whose upsampled map (0.25 GiB; the others 1 and 96) is worth making
OURS = [name for name, reason in mixfast.backends()["masked_upsample_pool"].items() if reason is None]
Pooled = tuple[Tensor, Tensor]


class Inputs(NamedTuple):
    features: Tensor
    regions: Tensor
    size: tuple[int, int]
    grad: Tensor  # [images, channels]


def inputs(case: int, smoke: bool, *, dtype: torch.dtype = torch.float32) -> Inputs:
    images, channels, side, pixels = (SMOKE if smoke else SHAPES)[case]
    generator = torch.Generator().manual_seed(0)
    corners = torch.randint(0, pixels + 1, (2, images, 2), generator=generator).sort(0).values
    features = torch.randn(images, channels, side, side, generator=generator).to(dtype)
    grad = torch.randn(images, channels, generator=generator).to(dtype)
    return Inputs(features.requires_grad_(), torch.cat([*corners], dim=1), (pixels, pixels), grad)


def mask_of(given: Inputs) -> Tensor:
    """[B, H, W], bool."""
    x0, y0, x1, y1 = (side[:, None, None] for side in given.regions.unbind(1))
    y, x = torch.arange(given.size[0])[:, None], torch.arange(given.size[1])
    return (x0 <= x) & (x < x1) & (y0 <= y) & (y < y1)


def weights_and_bmm(given: Inputs) -> Pooled:
    """The adjoint in PyTorch: upsampling's own backward turns masks into weights, a matrix product applies them."""
    mask = mask_of(given).float()
    both = torch.stack([mask, 1 - mask], dim=1)
    b, _, h, w = given.features.shape
    weights = torch.ops.aten.upsample_bilinear2d_backward(both, given.size, [b, 2, h, w], False)
    weights = weights / both.sum((2, 3)).clamp_min(1)[:, :, None, None]
    pooled = torch.bmm(given.features.flatten(2), weights.flatten(2).transpose(1, 2))
    return pooled[..., 0], pooled[..., 1]


def interpolated(given: Inputs) -> Pooled:
    return masked_upsample_pool(given.features, given.regions, given.size, backend="reference")


def task(pool: Callable[[Inputs], Pooled], given: Inputs, backward: bool) -> Callable[[], object]:
    if not backward:
        detached = given._replace(features=given.features.detach())
        return lambda: pool(detached)
    return lambda: torch.autograd.grad(pool(given), [given.features], [given.grad, given.grad])


def group(case: int, smoke: bool, backward: bool) -> str:
    images, channels, side, pixels = (SMOKE if smoke else SHAPES)[case]
    passes = "forward and backward" if backward else "forward"
    return f"masked_upsample_pool, {passes}: [{images}, {channels}, {side}, {side}] to {pixels} x {pixels}, float32"


Measure = Callable[[str, str, Callable[[], object]], None]
each_pass = pytest.mark.parametrize("backward", [False, True], ids=["forward", "both"])
each_case = pytest.mark.parametrize("case", range(len(SHAPES)), ids=[str(shape) for shape in SHAPES])


@each_pass
@each_case
@pytest.mark.parametrize("backend", [name for name in OURS if name != "reference"])
def test_ours(measure: Measure, smoke: bool, case: int, backward: bool, backend: str) -> None:
    given = inputs(case, smoke)
    run = task(lambda g: masked_upsample_pool(g.features, g.regions, g.size, backend=backend), given, backward)
    measure(group(case, smoke, backward), f"mixfast {backend}", run)


@each_pass
@each_case
@pytest.mark.parametrize("variant", ["channels last", "bool mask", "float mask", "bfloat16"])
def test_variants(measure: Measure, smoke: bool, case: int, backward: bool, variant: str) -> None:
    given = inputs(case, smoke, dtype=torch.bfloat16 if variant == "bfloat16" else torch.float32)
    if variant == "channels last":
        last = given.features.detach().contiguous(memory_format=torch.channels_last)
        given = given._replace(features=last.requires_grad_())
    if "mask" in variant:
        mask = mask_of(given)
        given = given._replace(regions=mask if variant == "bool mask" else mask.float())
    run = task(lambda g: masked_upsample_pool(g.features, g.regions, g.size), given, backward)
    measure(group(case, smoke, backward), f"with {variant}: mixfast", run)


@each_pass
@each_case
def test_weights_and_bmm(measure: Measure, smoke: bool, case: int, backward: bool) -> None:
    measure(group(case, smoke, backward), "weights and bmm", task(weights_and_bmm, inputs(case, smoke), backward))


@each_pass
def test_interpolate(measure: Measure, smoke: bool, backward: bool) -> None:
    run = task(interpolated, inputs(MATERIALISED, smoke), backward)
    measure(group(MATERIALISED, smoke, backward), "interpolate, two means (the reference)", run)


@each_pass
def test_interpolate_compiled(measure: Measure, smoke: bool, backward: bool) -> None:
    compiled = torch.compile(interpolated, backend="eager" if smoke else "inductor")
    run = task(compiled, inputs(MATERIALISED, smoke), backward)
    measure(group(MATERIALISED, smoke, backward), "torch.compile of the reference", run)


@each_pass
@each_case
def test_copy(measure: Measure, smoke: bool, case: int, backward: bool) -> None:
    """Forward reads the map and backward writes one: a copy does both."""
    features = inputs(case, smoke).features.detach()
    measure(group(case, smoke, backward), "floor: copy of the map", features.clone)


@each_case
def test_baselines_agree(case: int) -> None:
    given = inputs(case, True)
    large = F.interpolate(given.features, given.size, mode="bilinear")
    mask = mask_of(given)[:, None].float()
    expected = (large * mask).sum((2, 3)) / mask.sum((2, 3)).clamp_min(1)
    for pool in (interpolated, weights_and_bmm):
        torch.testing.assert_close(pool(given)[0], expected, rtol=1e-5, atol=1e-5)
