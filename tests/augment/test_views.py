"""Whole views by a recipe: what is drawn, what it is drawn from, plain normalisation, and bad input."""

from dataclasses import replace

import pytest
import torch

import mixfast
from mixfast.augment import AugmentConfig, augment, normalise, second_view
from mixfast.errors import ConfigError
from tests.ops.augmenting import EVERYTHING, MEAN, RECIPES, STD, byte_images, new_state, options


@pytest.mark.parametrize("name", RECIPES)
def test_augment_draws_then_makes_the_views(name: str, rng: torch.Generator) -> None:
    """The first view follows the recipe, the others the second view's; blur runs if either recipe asks for it."""
    cfg, images, state = (
        replace(RECIPES[name], blur_second=0.7, solarise_second=0.4),
        byte_images(6, rng),
        new_state(rng),
    )
    parameters = mixfast.draw_views(state.clone(), 6, (32, 32), [cfg, second_view(cfg), second_view(cfg)])
    wanted = mixfast.augment_views(images, parameters, **options(cfg, size=20, blur_reach=6))
    made = augment(images, cfg, state, MEAN, STD, 3, size=20)
    assert len(made) == 3 and state[1] == 1
    assert all(torch.equal(view, other) for view, other in zip(made, wanted, strict=True))


def test_same_state_same_view_and_views_differ(rng: torch.Generator) -> None:
    images, state = byte_images(8, rng), new_state(rng)
    again = state.clone()
    first, second = augment(images, AugmentConfig(), state, MEAN, STD)
    assert torch.equal(first, augment(images, AugmentConfig(), again, MEAN, STD, 1)[0])
    (third,) = augment(images, AugmentConfig(), state, MEAN, STD, 1)
    for one, other in ((first, second), (first, third), (second, third)):
        assert all(not torch.equal(a, b) for a, b in zip(one, other, strict=True))


def test_images_keep_their_own_size_by_default(rng: torch.Generator) -> None:
    images, state = byte_images(3, rng, (20, 28)), new_state(rng)
    assert augment(images, AugmentConfig(), state, MEAN, STD)[1].shape == (3, 3, 20, 28)
    assert augment(images, AugmentConfig(), state, MEAN, STD, size=(9, 11))[0].shape == (3, 3, 9, 11)


def test_other_layouts_of_images_are_taken(rng: torch.Generator) -> None:
    images, state = byte_images(3, rng), new_state(rng)
    laid = images.to(memory_format=torch.channels_last)
    for view, other in zip(
        augment(images, EVERYTHING, state.clone(), MEAN, STD), augment(laid, EVERYTHING, state, MEAN, STD), strict=True
    ):
        assert torch.equal(view, other)


def test_normalise_matches_float64(rng: torch.Generator) -> None:
    images = byte_images(5, rng)
    mean, std = (torch.tensor(x, dtype=torch.float64)[:, None, None] for x in (MEAN, STD))
    truth = (images.double() / 255 - mean) / std
    torch.testing.assert_close(normalise(images, MEAN, STD).double(), truth, rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    "images",
    [torch.zeros(2, 3, 8, 8), torch.zeros(3, 8, 8, dtype=torch.uint8), torch.zeros(2, 1, 8, 8, dtype=torch.uint8)],
)
def test_other_images_are_refused(images: torch.Tensor, rng: torch.Generator) -> None:
    with pytest.raises(ValueError, match=r"images must be uint8 \[B, 3, H, W\]; got torch\."):
        augment(images, AugmentConfig(), new_state(rng), MEAN, STD)
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
