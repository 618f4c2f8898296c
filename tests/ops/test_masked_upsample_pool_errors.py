"""Bad input to the pooling operations: every message names the argument, what was expected and what came."""

import re
from collections.abc import Callable
from typing import Any

import pytest
import torch

from mixfast import masked_upsample_pool, region_weights, weighted_pool
from tests.backends import each_backend

FEATURES = torch.zeros(2, 3, 4, 4)
BOXES = torch.tensor([[0, 0, 8, 8], [3, 4, 9, 10]])
MASK = torch.zeros(2, 16, 16, dtype=torch.bool)
WEIGHTS = torch.zeros(2, 2, 4, 4)
SIZE = (16, 16)


def pool(features: Any = FEATURES, regions: Any = BOXES, size: Any = SIZE, **options: Any) -> Any:
    return masked_upsample_pool(features, regions, size, **options)


def weights(regions: Any = BOXES, size: Any = SIZE, feature_size: Any = (4, 4), **options: Any) -> Any:
    return region_weights(regions, size, feature_size, **options)


def box(*corners: int) -> torch.Tensor:
    return torch.tensor([[0, 0, 8, 8], corners])


CASES: list[tuple[Callable[[], Any], type[Exception], str]] = [
    (lambda: pool(features=[1.0]), TypeError, "features must be a tensor [B, C, h, w]; got list"),
    (lambda: pool(features=FEATURES[0]), ValueError, "features must be [B, C, h, w]; got 3-D [3, 4, 4]"),
    (lambda: pool(features=FEATURES.long()), TypeError, "features must be float16, bfloat16, float32 or float64; got"),
    (lambda: pool(features=FEATURES.to(torch.complex64)), TypeError, "got torch.complex64"),
    (lambda: pool(features=FEATURES.to_sparse()), TypeError, "features must be dense; got layout torch.sparse_coo"),
    (lambda: pool(features=FEATURES[:, :, :0]), ValueError, "at least one position; got [B, C, h, w] = [2, 3, 0, 4]"),
    (lambda: pool(regions=(0, 0, 8, 8)), TypeError, "regions must be a tensor, boxes [B, 4] or a mask"),
    (lambda: pool(regions=BOXES.to("meta")), ValueError, "on the device of features, cpu; got meta. Call regions.to("),
    (
        lambda: pool(regions=BOXES[:, :3]),
        ValueError,
        "as (x0, y0, x1, y1), or a mask [B, H, W] or [B, 1, H, W]; got [2, 3]",
    ),
    (lambda: pool(regions=torch.tensor(3)), ValueError, "must be boxes [B, 4] or [4]"),
    (lambda: pool(regions=MASK[:, None].expand(2, 2, 16, 16)), ValueError, "or [B, 1, H, W]; got [2, 2, 16, 16]"),
    (
        lambda: pool(regions=BOXES[:, None].expand(2, 5, 4)),
        ValueError,
        "one box for each image, [B, 4] or [4]; got [2,",
    ),
    (lambda: pool(regions=torch.rand(2, 5, 4)), ValueError, "5 boxes for each. Pass features.repeat_interleave(5, dim"),
    (
        lambda: weights(regions=torch.rand(2, 5, 4)),
        ValueError,
        "region_weights: regions must be one box for each image",
    ),
    (lambda: pool(regions=BOXES.float()), TypeError, "boxes must be integers, in output pixels; got torch.float32"),
    (lambda: pool(regions=BOXES.bool()), TypeError, "boxes must be integers, in output pixels; got torch.bool"),
    (lambda: pool(regions=BOXES[:1]), ValueError, "boxes must be [B, 4] with B = 2 as in features"),
    (lambda: pool(size=None), TypeError, "boxes need output_size=(height, width)"),
    (lambda: pool(size=16), TypeError, "output_size must be (height, width), two integers; got 16"),
    (lambda: pool(size=(16, 16, 16)), TypeError, "two integers; got (16, 16, 16)"),
    (lambda: pool(size=(16.0, 16)), TypeError, "two integers; got (16.0, 16)"),
    (lambda: pool(size=(True, 16)), TypeError, "two integers; got (True, 16)"),
    (lambda: pool(size=(0, 16)), ValueError, "sides between 1 and 2**24; got (0, 16)"),
    (lambda: pool(size=(16, (1 << 24) + 1)), ValueError, "sides between 1 and 2**24"),
    (lambda: pool(regions=MASK.long(), size=None), TypeError, "a mask must be bool, uint8, or a float in [0, 1]; got"),
    (lambda: pool(regions=MASK[:1], size=None), ValueError, "a mask must be [B, H, W] with B = 2 as in features; got"),
    (lambda: pool(regions=MASK[:, :0], size=None), ValueError, "the mask's size must have sides between 1"),
    (lambda: pool(regions=MASK, size=(16, 8)), ValueError, "must be None or the mask's own size (16, 16); got (16, 8)"),
    (lambda: pool(regions=MASK.float().requires_grad_(), size=None), ValueError, "Pass regions.detach()"),
    (lambda: pool(regions=MASK.float().to_sparse(), size=None), TypeError, "regions must be dense"),
    (lambda: pool(backend="fast"), ValueError, "masked_upsample_pool: backend must be auto, "),
    (lambda: pool(backend=["cpu"]), TypeError, "masked_upsample_pool: backend must be auto, "),
    (lambda: pool(backend="cuda"), RuntimeError, "masked_upsample_pool: no backend can run this call"),
    (lambda: weights(regions="box"), TypeError, "region_weights: regions must be a tensor"),
    (lambda: weights(feature_size=4), TypeError, "feature_size must be (height, width), two integers; got 4"),
    (lambda: weights(feature_size=(0, 4)), ValueError, "feature_size must have sides between 1 and 2**24; got (0, 4)"),
    (lambda: weights(dtype=torch.float16), TypeError, "dtype must be torch.float32 or torch.float64; got"),
    (lambda: weights(size=None), TypeError, "region_weights: boxes need output_size=(height, width)"),
    (lambda: weighted_pool(FEATURES[0], WEIGHTS), ValueError, "weighted_pool: features must be [B, C, h, w]"),
    (lambda: weighted_pool(FEATURES, [WEIGHTS]), TypeError, "weights must be a tensor [B, 2, h, w]; got list"),
    (lambda: weighted_pool(FEATURES, WEIGHTS[0]), ValueError, "= [2 or 1, 2, 4, 4] as features [2, 3, 4, 4] ask; got"),
    (lambda: weighted_pool(FEATURES, WEIGHTS[:, :1]), ValueError, "got [2, 1, 4, 4]. region_weights makes them"),
    (lambda: weighted_pool(FEATURES, WEIGHTS.double()), TypeError, "weights must be torch.float32 for torch.float32"),
    (lambda: weighted_pool(FEATURES.double(), WEIGHTS), TypeError, "must be torch.float64 for torch.float64 features"),
    (lambda: weighted_pool(FEATURES, WEIGHTS.to("meta")), ValueError, "on the device of features, cpu; got meta"),
    (lambda: weighted_pool(FEATURES, WEIGHTS.clone().requires_grad_()), ValueError, "Pass weights.detach()"),
]


@pytest.mark.parametrize("case", CASES, ids=[message[:40] for _, _, message in CASES])
def test_message(case: tuple[Callable[[], Any], type[Exception], str]) -> None:
    call, error, message = case
    with pytest.raises(error, match=re.escape(message)):
        call()


VALUES: list[tuple[Any, Any, str]] = [
    (box(5, 2, 3, 9), SIZE, "box 1 is inverted: (x0, y0, x1, y1) = (5, 2, 3, 9) needs x0 <= x1"),
    (box(2, 9, 5, 4), SIZE, "box 1 is inverted"),
    (box(-1, 0, 5, 4), SIZE, "box 1 leaves the map: (x0, y0, x1, y1) = (-1, 0, 5, 4) must lie within width 16"),
    (box(0, -2, 5, 4), SIZE, "box 1 leaves the map"),
    (box(0, 0, 17, 4), SIZE, "must lie within width 16 and height 16. Clamp it"),
    (box(0, 0, 16, 20), SIZE, "box 1 leaves the map"),
    (torch.full((2, 16, 16), 1.5), None, "must lie in [0, 1]; got 1.5 in image 0 at y = 0, x = 0. Call .clamp(0, 1)"),
    (torch.full((2, 16, 16), -0.1), None, "a float mask must lie in [0, 1]; got -0.1"),
    (torch.full((2, 5, 3), float("nan")), None, "a float mask must lie in [0, 1]; got nan"),
]


@each_backend("masked_upsample_pool", but=("cuda", "triton"))  # a GPU would have to wait for the values
@pytest.mark.parametrize("regions, size, message", VALUES, ids=[v[2][:40] for v in VALUES])
def test_values_are_checked_on_the_cpu(backend: str, regions: torch.Tensor, size: Any, message: str) -> None:
    for call in (pool, weights):
        with pytest.raises(ValueError, match=re.escape(message)):
            call(regions=regions, size=size, backend=backend)
    with pytest.raises(ValueError, match=re.escape(message)):
        torch.vmap(lambda r: pool(regions=r, size=size, backend=backend))(regions[None])


def test_one_bad_pixel_is_found_wherever_it_is() -> None:
    for shape in ((1, 9, 9), (2, 16, 40), (1, 3, 5)):
        for place in ((0, 0, 0), (-1, -1, -1), (0, 1, 2)):
            for dtype in (torch.float32, torch.float64, torch.bfloat16, torch.float16):
                mask = torch.zeros(shape, dtype=dtype)
                mask[place] = 2.0
                with pytest.raises(ValueError, match="got 2 in image"):
                    region_weights(mask, None, (3, 3))
