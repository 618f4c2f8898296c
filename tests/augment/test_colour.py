"""Colour operations and blur: torchvision's definitions on float images, image by image."""

import colorsys
import itertools
from typing import Any

import pytest
import torch

from mixfast.ops.views import reference

ORDERS = list(itertools.permutations(range(4)))  # 0 brightness, 1 contrast, 2 saturation, 3 hue


@pytest.fixture(scope="module")
def functional() -> Any:
    return pytest.importorskip("torchvision.transforms.v2.functional", reason="torchvision is the oracle")


def draw_images(count: int, rng: torch.Generator, side: int = 12) -> torch.Tensor:
    """float32 [count, 3, side, side] with saturated, grey, black and white pixels among random ones."""
    images = torch.rand(count, 3, side, side, generator=rng)
    images[:, :, 0] = images[:, :1, 0]
    images[:, :, 1] = (images[:, :, 1] > 0.5).float()
    images[:, :, 2] = images[:, :, 2].mul(4).round().div(4)
    return images


def place(order: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """(order, hue_place) of a reference.Jitter for permutations of 0..3 [B, 4], of which 3 is the hue."""
    rest = torch.tensor([[step for step in row if step != 3] for row in order.tolist()])
    return rest, (order == 3).long().argmax(1)


def test_jitter_matches_torchvision_in_every_order(functional, rng) -> None:
    order = torch.tensor(ORDERS)
    images = draw_images(len(ORDERS), rng)
    brightness, contrast, saturation = torch.rand(3, len(ORDERS), generator=rng) * 1.6 + 0.2
    hue = torch.rand(len(ORDERS), generator=rng) - 0.5
    how = reference.Jitter(brightness, contrast, saturation, hue, *place(order))
    ours = reference.jitter(images.flatten(2), how).view(images.shape)
    steps = {
        0: (functional.adjust_brightness, brightness),
        1: (functional.adjust_contrast, contrast),
        2: (functional.adjust_saturation, saturation),
        3: (functional.adjust_hue, hue),
    }
    for i, row in enumerate(ORDERS):
        theirs = images[i].double()  # the definition, without its own rounding
        for step in row:
            adjust, amount = steps[step]
            theirs = adjust(theirs, amount[i].item())
        torch.testing.assert_close(
            ours[i].double(), theirs, rtol=0, atol=6e-6, msg=lambda text, row=row: f"order {row}: {text}"
        )


@pytest.mark.parametrize("step", ["brightness", "contrast", "saturation", "hue"])
@pytest.mark.parametrize("amount", [0.0, 0.4, 1.0, 1.7], ids=str)
def test_one_step_matches_torchvision(functional, step, amount, rng) -> None:
    amount = amount / 2 - 0.5 if step == "hue" else amount
    images = draw_images(5, rng)
    values = {name: torch.ones(5) for name in ("brightness", "contrast", "saturation")} | {"hue": torch.zeros(5)}
    values[step] = torch.full((5,), amount)
    order = torch.tensor([[2, 0, 1]] * 5)
    how = reference.Jitter(**values, order=order, hue_place=torch.tensor([0, 1, 2, 3, 1]))
    ours = reference.jitter(images.flatten(2), how).view(images.shape)
    theirs = getattr(functional, f"adjust_{step}")(images, amount) if step != "contrast" else None
    if theirs is None:  # of a batch as well: the mean is each image's own
        theirs = torch.stack([functional.adjust_contrast(image, amount) for image in images])
    torch.testing.assert_close(ours, theirs, rtol=0, atol=2e-6)


def test_neutral_jitter_keeps_every_image(rng) -> None:
    images = draw_images(6, rng).flatten(2)
    ones, order = torch.ones(6), torch.tensor([[1, 2, 0]] * 6)
    how = reference.Jitter(ones, ones, ones, torch.zeros(6), order, torch.tensor([0, 1, 2, 3, 0, 1]))
    torch.testing.assert_close(reference.jitter(images, how), images, rtol=0, atol=1e-6)


def test_hue_matches_the_standard_library(rng) -> None:
    images = draw_images(1, rng)[0].flatten(1)
    turned = reference.shift_hue(images[None].double(), torch.tensor([0.3], dtype=torch.float64))[0]
    for before, after in zip(images.double().T.tolist(), turned.T.tolist(), strict=True):
        h, s, v = colorsys.rgb_to_hsv(*before)
        assert colorsys.hsv_to_rgb((h + 0.3) % 1, s, v) == pytest.approx(after, abs=1e-6)


def test_hue_of_known_colours() -> None:
    red = torch.tensor([1.0, 0.0, 0.0])[None, :, None]
    third = torch.tensor([1 / 3])
    green = reference.shift_hue(red, third)
    torch.testing.assert_close(green[0, :, 0], torch.tensor([0.0, 1.0, 0.0]), rtol=0, atol=1e-6)
    torch.testing.assert_close(
        reference.shift_hue(green, third)[0, :, 0], torch.tensor([0.0, 0.0, 1.0]), rtol=0, atol=2e-6
    )
    cyan = reference.shift_hue(red, torch.tensor([0.5]))
    torch.testing.assert_close(cyan[0, :, 0], torch.tensor([0.0, 1.0, 1.0]), rtol=0, atol=1e-6)


def test_grey_matches_torchvision(functional, rng) -> None:
    images = draw_images(4, rng)
    which = torch.tensor([True, False, True, False])
    ours = torch.bmm(reference.grey_matrices(which), images.flatten(2)).view(images.shape)
    theirs = functional.rgb_to_grayscale(images, num_output_channels=3)
    torch.testing.assert_close(ours[::2], theirs[::2], rtol=0, atol=3e-7)
    assert torch.equal(ours[1::2], images[1::2])


def test_solarise_matches_torchvision(functional, rng) -> None:
    images = draw_images(4, rng)
    which = torch.tensor([True, False, True, False])
    ours = reference.solarise(images.flatten(2), which).view(images.shape)
    assert torch.equal(ours[::2], functional.solarize(images[::2], threshold=0.5))
    assert torch.equal(ours[1::2], images[1::2])


@pytest.mark.parametrize("side", [(16, 16), (9, 13), (5, 32)], ids=str)
def test_blur_matches_torchvision(functional, side, rng) -> None:
    images = torch.rand(6, 3, *side, generator=rng)
    sigma = torch.tensor([0.1, 0.5, 1.0, 1.3, 0.0, 0.7])
    reach = min(4, min(side) - 1)  # ceil(3 * 1.3)
    ours = reference.blur(images, sigma, reach)
    for i in range(6):
        kernel = [2 * reach + 1] * 2
        theirs = functional.gaussian_blur(images[i], kernel, [sigma[i].item()] * 2) if sigma[i] else images[i]
        torch.testing.assert_close(ours[i], theirs, rtol=0, atol=1e-6)
