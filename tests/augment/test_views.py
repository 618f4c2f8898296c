"""Whole views: every recipe against torchvision, the distributions of the parameters, and no wait for the host."""

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from mixfast.augment import PRESETS, AugmentConfig, augment, normalise, views
from mixfast.errors import ConfigError

MEAN, STD = (0.49, 0.48, 0.44), (0.21, 0.2, 0.25)
EVERYTHING = AugmentConfig(blur=0.5, solarise=0.3, grey_first=True, interpolation="bicubic", hue=0.5)
RECIPES = {**PRESETS, "everything": EVERYTHING, "everything, colour first": replace(EVERYTHING, colour_first=True)}
MODES = {"bilinear": 2, "bicubic": 3}


def byte_images(count: int, rng: torch.Generator, size: tuple[int, int] = (32, 32)) -> torch.Tensor:
    return torch.randint(0, 256, (count, 3, *size), generator=rng, dtype=torch.uint8)


def one_by_one(image: torch.Tensor, how: views.Parameters, i: int, cfg: AugmentConfig, size: int) -> torch.Tensor:
    """View i with torchvision's functions on one float image, in the order that the configuration documents."""
    import torchvision.transforms.v2.functional as functional

    def crop(x: torch.Tensor) -> torch.Tensor:
        mode = MODES[cfg.interpolation]
        x = functional.resized_crop(x, *how.boxes[i].tolist(), [size, size], mode, antialias=False).clamp(0, 1)
        return functional.horizontal_flip(x) if how.flip[i] else x

    def jitter(x: torch.Tensor) -> torch.Tensor:
        steps: list[Any] = [functional.adjust_brightness, functional.adjust_contrast, functional.adjust_saturation]
        amounts = [how.brightness[i].item(), how.contrast[i].item(), how.saturation[i].item(), how.hue[i].item()]
        order = how.order[i].tolist()
        order.insert(int(how.hue_place[i]), 3)
        for step in order:
            x = [*steps, functional.adjust_hue][step](x, amounts[step])
        return x

    def grey(x: torch.Tensor) -> torch.Tensor:
        return functional.rgb_to_grayscale(x, num_output_channels=3) if how.grey[i] else x

    colour = (grey, jitter) if cfg.grey_first else (jitter, grey)
    x = image.float() / 255
    for step in (*colour, crop) if cfg.colour_first else (crop, *colour):
        x = step(x)
    if cfg.blur and how.blur[i]:
        reach = min(math.ceil(3 * cfg.blur_sigma[1]), size - 1)
        x = functional.gaussian_blur(x, [2 * reach + 1] * 2, [how.sigma[i].item()] * 2)
    if cfg.solarise and how.solarise[i]:
        x = functional.solarize(x, threshold=0.5)
    return functional.normalize(x, list(MEAN), list(STD))


@pytest.mark.parametrize("name", RECIPES)
def test_recipe_matches_torchvision(name, rng) -> None:
    pytest.importorskip("torchvision", reason="torchvision is the oracle")
    cfg, images, size = RECIPES[name], byte_images(48, rng), 24
    how = views.draw(48, (32, 32), cfg, rng)
    ours = views.apply(images, how, cfg, MEAN, STD, (size, size))
    theirs = torch.stack([one_by_one(images[i], how, i, cfg, size) for i in range(48)])
    # solarising jumps at one half, where the last bit of what came before decides
    decided = ((ours - theirs).abs() < 0.1) if cfg.solarise else torch.ones_like(ours, dtype=torch.bool)
    assert decided.float().mean() > 0.9999
    torch.testing.assert_close(ours[decided], theirs[decided], rtol=0, atol=2e-5)


def test_augment_is_draw_then_apply_whatever_the_chunk(rng, monkeypatch) -> None:
    images = byte_images(150, rng)
    results = []
    for chunk in (7, 64, 1000):
        monkeypatch.setattr(views, "_CPU_CHUNK", chunk)
        results.append(augment(images, EVERYTHING, torch.Generator().manual_seed(3), MEAN, STD, size=20))
    how = views.draw(150, (32, 32), EVERYTHING, torch.Generator().manual_seed(3))
    whole = views.apply(images, how, EVERYTHING, MEAN, STD, (20, 20))
    for result in results:
        assert result.shape == (150, 3, 20, 20) and result.dtype == torch.float32
        torch.testing.assert_close(result, whole, rtol=0, atol=2e-6)


def test_same_seed_same_view_and_views_differ(rng) -> None:
    images = byte_images(8, rng)
    first, second, again = (
        augment(images, AugmentConfig(), generator, MEAN, STD)
        for generator in [torch.Generator().manual_seed(1)] * 2 + [torch.Generator().manual_seed(1)]
    )
    assert torch.equal(first, again)
    assert all(not torch.equal(a, b) for a, b in zip(first, second, strict=True))


def test_recipes_share_their_draws() -> None:
    """Switching one thing off changes nothing else."""
    for cfg in (replace(AugmentConfig(), hue=0, jitter=1.0), replace(AugmentConfig(), blur=0.5, grey=0.0)):
        a, b = (views.draw(100, (32, 32), c, torch.Generator().manual_seed(0)) for c in (AugmentConfig(), cfg))
        assert torch.equal(a.boxes, b.boxes) and torch.equal(a.flip, b.flip) and torch.equal(a.order, b.order)


def test_images_keep_their_own_size_by_default(rng) -> None:
    images = byte_images(3, rng, (20, 28))
    assert augment(images, AugmentConfig(), rng, MEAN, STD).shape == (3, 3, 20, 28)
    assert augment(images, AugmentConfig(), rng, MEAN, STD, size=(9, 11)).shape == (3, 3, 9, 11)


@pytest.mark.parametrize("name", ["flip", "grey", "blur", "solarise"])
@pytest.mark.parametrize("probability", [0.0, 0.2, 1.0], ids=str)
def test_probabilities(name, probability, rng) -> None:
    n = 20_000
    how = views.draw(n, (32, 32), replace(AugmentConfig(), **{name: probability}), rng)
    five_sigma = 5 * math.sqrt(probability * (1 - probability) / n)
    assert abs(getattr(how, name).double().mean().item() - probability) <= five_sigma


def test_jitter_strengths_are_uniform_and_all_or_none(rng) -> None:
    n = 20_000
    cfg = AugmentConfig(brightness=0.4, contrast=1.5, saturation=0.2, hue=0.1, jitter=0.8)
    how = views.draw(n, (32, 32), cfg, rng)
    on = how.hue != 0
    assert abs(on.double().mean().item() - 0.8) < 5 * math.sqrt(0.16 / n)
    for values, low, high in (
        (how.brightness, 0.6, 1.4),
        (how.contrast, 0.0, 2.5),  # torchvision: a factor is not negative
        (how.saturation, 0.8, 1.2),
        (how.hue, -0.1, 0.1),
    ):
        unit = ((values[on].double() - low) / (high - low)).sort().values
        steps = torch.arange(1, len(unit) + 1) / len(unit)
        assert (unit - steps).abs().max() < math.sqrt(-math.log(1e-5 / 2) / 2 / len(unit))  # Kolmogorov, level 1e-5
        assert (values[~on] == (0 if values is how.hue else 1)).all()


def test_all_24_orders_are_equally_likely(rng) -> None:
    n = 24_000
    how = views.draw(n, (32, 32), AugmentConfig(), rng)
    assert (how.order.sort(dim=1).values == torch.arange(3)).all()
    code = (how.order * torch.tensor([9, 3, 1])).sum(1) * 4 + how.hue_place
    counts = code.unique(return_counts=True)[1].double()
    assert len(counts) == 24
    assert ((counts - 1000) ** 2 / 1000).sum() < 62  # chi-square, 23 degrees of freedom, level 2e-5


class NoHost(TorchDispatchMode):
    """Fails on every operation that hands a value to the host or has a shape that depends on data."""

    FORBIDDEN = ("_local_scalar_dense", "nonzero", "masked_select", "unique", "is_nonzero", "equal.")

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        assert not any(word in str(func) for word in self.FORBIDDEN), func
        if "index.Tensor" in str(func):
            assert all(i is None or i.dtype != torch.bool for i in args[1]), func
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("name", RECIPES)
def test_nothing_waits_for_the_host(name, rng) -> None:
    images = byte_images(4, rng)
    with NoHost():
        augment(images, RECIPES[name], rng, MEAN, STD)
        normalise(images, MEAN, STD)
    with pytest.raises(AssertionError), NoHost():
        images.sum().item()


def test_autocast_does_not_reach_the_pixels(rng) -> None:
    images = byte_images(4, rng)
    plain = augment(images, AugmentConfig(), torch.Generator().manual_seed(0), MEAN, STD)
    with torch.autocast("cpu", torch.bfloat16):
        cast = augment(images, AugmentConfig(), torch.Generator().manual_seed(0), MEAN, STD)
    assert torch.equal(plain, cast)


def test_normalise_matches_float64(rng) -> None:
    images = byte_images(5, rng)
    mean, std = (torch.tensor(x, dtype=torch.float64)[:, None, None] for x in (MEAN, STD))
    truth = (images.double() / 255 - mean) / std
    torch.testing.assert_close(normalise(images, MEAN, STD).double(), truth, rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    "images",
    [torch.zeros(2, 3, 8, 8), torch.zeros(3, 8, 8, dtype=torch.uint8), torch.zeros(2, 1, 8, 8, dtype=torch.uint8)],
)
def test_other_images_are_refused(images, rng) -> None:
    with pytest.raises(ValueError, match=r"images must be uint8 \[B, 3, H, W\]; got torch\."):
        augment(images, AugmentConfig(), rng, MEAN, STD)
    with pytest.raises(ValueError, match=r"images must be uint8 \[B, 3, H, W\]"):
        normalise(images, MEAN, STD)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("flip", 1.5), ("jitter", -0.1), ("grey", float("nan")), ("blur", 2), ("solarise", -1),
        ("brightness", -0.1), ("contrast", float("inf")), ("saturation", -2), ("hue", 0.6), ("hue", -0.1),
        ("crop_scale", (0.0, 1.0)), ("crop_scale", (0.5, 0.2)), ("crop_scale", (0.5, 1.2)),
        ("crop_ratio", (0.0, 1.0)), ("crop_ratio", (2.0, 1.0)), ("blur_sigma", (0.0, 1.0)), ("interpolation", "area"),
    ],
)  # fmt: skip
def test_bad_options_are_named(key, value) -> None:
    with pytest.raises(ConfigError, match=rf"augment\.{key} must be .*; got"):
        AugmentConfig(**{key: value})
