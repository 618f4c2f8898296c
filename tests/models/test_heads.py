"""models.heads: region vectors against the definition: project the map, upsample it, take masked means."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from mixfast.losses import unit
from mixfast.mix import box_mask, boxes_around, sample_centres, sample_lam
from mixfast.models import heads
from mixfast.models.heads import box_vectors, region_vectors
from mixfast.models.initialise import initialise_


def setting(rng: torch.Generator, dtype: torch.dtype, size: tuple[int, int] = (32, 24)):  # type: ignore[no-untyped-def]
    features = torch.randn(6, 10, 4, 3, generator=rng).to(dtype)
    boxes, lam = boxes_around(sample_centres(6, size, rng), sample_lam(6, rng), size)
    head = nn.Linear(10, 7)
    initialise_(head, rng)
    return features, boxes, lam.to(dtype), head.to(dtype)


def test_equals_projecting_the_map_first(rng: torch.Generator) -> None:
    features, boxes, _, head = setting(rng, torch.float64)
    projected = F.conv2d(features, head.weight[:, :, None, None], head.bias)
    large = F.interpolate(projected, (32, 24), mode="bilinear", align_corners=False)
    mask = box_mask(boxes, (32, 24))
    for n in range(6):
        inside, outside = (unit(large[n][:, m].mean(dim=1)[None])[0] for m in (mask[n], ~mask[n]))
        got_inside, got_outside = (v[n] for v in region_vectors(features, boxes, (32, 24), head))
        torch.testing.assert_close(got_inside, inside, atol=1e-12, rtol=0)
        torch.testing.assert_close(got_outside, outside, atol=1e-12, rtol=0)


def test_regions_are_a_convex_split_of_the_whole_image(rng: torch.Generator, monkeypatch) -> None:  # type: ignore[no-untyped-def]
    """lam * outside + (1 - lam) * inside = head(average pool), before normalisation."""
    monkeypatch.setattr(heads, "unit", lambda vectors: vectors)
    features, boxes, lam, head = setting(rng, torch.float32)
    inside, outside = region_vectors(features, boxes, (32, 24), head)
    whole = lam[:, None] * outside + (1 - lam[:, None]) * inside
    torch.testing.assert_close(whole, head(features.mean(dim=(2, 3))), atol=1e-5, rtol=0)


def test_vectors_are_unit_rows_in_float32_whatever_the_map(rng: torch.Generator) -> None:
    features, boxes, _, head = setting(rng, torch.bfloat16)
    for vectors in region_vectors(features, boxes, (32, 24), head):
        assert vectors.dtype == torch.float32
        torch.testing.assert_close(vectors.norm(dim=1), torch.ones(6))


def test_gradient_reaches_map_and_head(rng: torch.Generator) -> None:
    features, boxes, _, head = setting(rng, torch.float32)
    inside, outside = region_vectors(features.requires_grad_(), boxes, (32, 24), head)
    (inside[:, 0].sum() + outside[:, 1].sum()).backward()
    assert features.grad is not None and features.grad.any()
    assert head.weight.grad is not None and head.weight.grad.any()


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16], ids=str)
def test_several_boxes_of_an_image_are_as_single_ones(rng: torch.Generator, dtype: torch.dtype) -> None:
    features, _, _, head = setting(rng, dtype)
    several = torch.stack([setting(rng, dtype)[1] for _ in range(3)], dim=1)  # [6, 3, 4]
    features.requires_grad_()
    vectors = box_vectors(features, several, (32, 24), head)
    single = torch.stack([region_vectors(features, several[:, m], (32, 24), head)[0] for m in range(3)], dim=1)
    assert vectors.dtype == single.dtype
    tolerance = 1e-12 if dtype == torch.float64 else 1e-2  # a pooled number is rounded once to the map's dtype
    torch.testing.assert_close(vectors, single, atol=tolerance, rtol=0)
    ours, theirs = (torch.autograd.grad(rows[..., 0].sum(), features)[0] for rows in (vectors, single))
    torch.testing.assert_close(ours, theirs, atol=tolerance, rtol=tolerance)


def test_autocast_pools_boxes_in_float32(rng: torch.Generator) -> None:
    features, boxes, _, _ = setting(rng, torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        pooled = box_vectors(features, boxes[:, None], (32, 24), nn.Identity())
    wanted = region_vectors(features, boxes, (32, 24), nn.Identity())[0]
    torch.testing.assert_close(pooled[:, 0], wanted, atol=1e-6, rtol=0)
