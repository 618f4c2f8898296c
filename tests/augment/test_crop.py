"""Crops: torchvision's law and pixels, flips, and the linear algebra they are made of."""

import math

import numpy as np
import pytest
import torch
from PIL import Image

from mixfast.augment import AugmentConfig
from mixfast.data import SceneConfig
from mixfast.data.scenes import generate
from mixfast.ops import augment_views, backends, draw_views
from mixfast.ops.views.reference import axis_weights, crop_resize
from tests.ops.augmenting import keys

SCALE, RATIO = (0.08, 1.0), (3 / 4, 4 / 3)


def torchvision_boxes(count: int, size: tuple[int, int], scale, ratio, rng: torch.Generator) -> torch.Tensor:
    """torchvision's rejection loop, one image at a time, in Python numbers: [count, 4] (top, left, height, width)."""
    height, width = size
    uniform = iter(torch.rand(count * 40, generator=rng, dtype=torch.float64).tolist())
    boxes = []
    for _ in range(count):
        for _ in range(10):
            area = height * width * (scale[0] + (scale[1] - scale[0]) * next(uniform))
            log = [math.log(r) for r in ratio]
            aspect = math.exp(log[0] + (log[1] - log[0]) * next(uniform))
            w, h = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
            if 0 < w <= width and 0 < h <= height:
                boxes.append((int(next(uniform) * (height - h + 1)), int(next(uniform) * (width - w + 1)), h, w))
                break
        else:
            w, h = width, height
            if width / height < ratio[0]:
                h = round(width / ratio[0])
            elif width / height > ratio[1]:
                w = round(height * ratio[1])
            boxes.append(((height - h) // 2, (width - w) // 2, h, w))
    return torch.tensor(boxes)


def sample_crops(count: int, size: tuple[int, int], scale, ratio, rng: torch.Generator) -> torch.Tensor:
    """int64 [count, 4] (top, left, height, width), by a key from `rng`."""
    state = torch.tensor([int(torch.randint(2**62, (), generator=rng)), 0])
    recipe = AugmentConfig(crop_scale=scale, crop_ratio=ratio)
    return draw_views(state, count, size, [recipe])[0, :, :4].long()


def ks_distance(a: torch.Tensor, b: torch.Tensor) -> float:
    """Largest difference between two empirical distribution functions."""
    points = torch.cat([a, b]).unique()
    return ((a[:, None] <= points).double().mean(0) - (b[:, None] <= points).double().mean(0)).abs().max().item()


@pytest.mark.parametrize("size", [(32, 32), (24, 40), (9, 90)], ids=str)
@pytest.mark.parametrize("scale", [(0.08, 1.0), (0.9, 1.0)], ids=str)
def test_crops_follow_torchvisions_law(size, scale, rng) -> None:
    """Two-sample Kolmogorov-Smirnov at level 1e-4 for each marginal; (0.9, 1) and the long image use the fallback."""
    n = 4000
    ours = sample_crops(n, size, scale, RATIO, rng)
    theirs = torchvision_boxes(n, size, scale, RATIO, rng)
    limit = math.sqrt(-math.log(1e-4 / 2) / 2) * math.sqrt(2 / n)
    area, edges = (lambda b: b[:, 2] * b[:, 3]), (lambda b: b[:, :2].sum(1))
    for name, of in {"area": area, "edges": edges, **{f"column {i}": lambda b, i=i: b[:, i] for i in range(4)}}.items():
        assert ks_distance(of(ours), of(theirs)) < limit, name


def test_crops_lie_inside_the_image(rng) -> None:
    top, left, height, width = sample_crops(20_000, (17, 33), SCALE, RATIO, rng).unbind(1)
    assert height.min() >= 1 and width.min() >= 1 and top.min() >= 0 and left.min() >= 0
    assert (top + height).max() <= 17 and (left + width).max() <= 33
    assert (top + height == 17).any() and (left + width == 33).any() and (top == 0).any() and (left == 0).any()


def test_impossible_crops_fall_back_to_the_centre(rng) -> None:
    wide = sample_crops(5, (10, 100), (1.0, 1.0), RATIO, rng)
    assert wide.tolist() == [[0, 43, 10, 13]] * 5  # width round(10 * 4 / 3), left (100 - 13) // 2
    tall = sample_crops(5, (100, 10), (1.0, 1.0), RATIO, rng)
    assert tall.tolist() == [[43, 0, 13, 10]] * 5


def test_whole_image_crops(rng) -> None:
    assert sample_crops(3, (32, 32), (1.0, 1.0), (1.0, 1.0), rng).tolist() == [[0, 0, 32, 32]] * 3


@pytest.mark.parametrize("out", [32, 17, 48], ids=str)
def test_bilinear_pixels_match_torchvision(out, rng) -> None:
    functional = pytest.importorskip("torchvision.transforms.v2.functional", reason="torchvision is the oracle")
    images = torch.rand(60, 3, 32, 40, generator=rng)
    boxes = torch.cat([sample_crops(30, (32, 40), scale, RATIO, rng) for scale in ((0.0005, 0.01), SCALE)])
    assert boxes[:, 2:].min() == 1
    flip = torch.rand(60, generator=rng) < 0.5
    ours = crop_resize(images, boxes, (out, out + 3), "bilinear", flip)
    for i, (box, flipped) in enumerate(zip(boxes.tolist(), flip.tolist(), strict=True)):
        theirs = functional.resized_crop(images[i], *box, [out, out + 3], antialias=False)
        theirs = functional.horizontal_flip(theirs) if flipped else theirs
        # both round the sampling point to float32, and sum 4 products in different orders
        torch.testing.assert_close(ours[i], theirs, rtol=0, atol=3e-6)


@pytest.mark.parametrize("backend", [name for name, missing in backends()["augment_views"].items() if missing is None])
@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
def test_pixels_match_pillow_to_rounding(backend, interpolation, rng) -> None:
    """Crops of pictures, enlarged: Pillow rounds and clips to 8 bits after each of its two passes, here neither."""
    images = generate(12, 32, 0, "train", SceneConfig()).images
    boxes = sample_crops(12, (32, 32), SCALE, RATIO, rng)
    parameters = torch.zeros(1, 12, 16)
    parameters[0, :, :4], parameters[0, :, 5:8], parameters[0, :, 10:12] = boxes, 1, torch.tensor([1.0, 2.0])
    plain = {"mean": (0, 0, 0), "std": (1, 1, 1), "interpolation": interpolation, "size": (32, 40)}
    ours = augment_views(images, parameters, backend=backend, **plain)[0] * 255
    mode = Image.Resampling[interpolation.upper()]
    for view, image, (top, left, height, width) in zip(ours, images, boxes.tolist(), strict=True):
        picture = Image.fromarray(image.permute(1, 2, 0).numpy()).crop((left, top, left + width, top + height))
        theirs = torch.from_numpy(np.array(picture.resize((40, 32), mode))).permute(2, 0, 1)
        difference = (view - theirs).abs()
        assert difference.mean() < 0.35 and difference.flatten().quantile(0.99) < 1.1


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
def test_weights_match_loops(interpolation, rng) -> None:
    """Against a float64 loop over output pixels and taps."""
    start, length, flip = (
        torch.tensor([0, 3, 7, 2]),
        torch.tensor([9, 4, 1, 7]),
        torch.tensor([False, True, False, True]),
    )
    ours = axis_weights(start, length, 9, 6, interpolation, flip)
    truth = torch.zeros(4, 6, 9, dtype=torch.float64)
    for b in range(4):
        n, s = int(length[b]), int(start[b])
        for i in range(6):
            x = (i + 0.5) * n / 6 - 0.5
            if interpolation == "bilinear":
                x = min(max(x, 0.0), n - 1.0)
            for tap in range(math.floor(x) - 1, math.floor(x) + 3):
                d = abs(x - tap)
                w = max(0.0, 1 - d) if interpolation == "bilinear" else keys(d) if 0 <= tap < n else 0.0
                truth[b, 5 - i if flip[b] else i, s + min(max(tap, 0), n - 1)] += w
    truth /= truth.sum(2, keepdim=True)
    torch.testing.assert_close(ours.double(), truth, rtol=0, atol=1e-6)
    torch.testing.assert_close(ours.sum(2), torch.ones(4, 6), rtol=0, atol=1e-6)


def test_identity_crop_keeps_every_bit(rng) -> None:
    images = torch.rand(2, 3, 8, 12, generator=rng)
    whole = torch.tensor([[0, 0, 8, 12]] * 2)
    for interpolation in ("bilinear", "bicubic"):
        assert torch.equal(crop_resize(images, whole, (8, 12), interpolation), images)
