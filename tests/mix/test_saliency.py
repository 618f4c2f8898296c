"""mix.saliency: the map against loops, what it does not see, and whether its peak lands on objects."""

import pytest
import torch
from torch import Tensor

from mixfast.data.scenes import SceneConfig, generate
from mixfast.mix import peaks, saliency_map


def by_loops(image: Tensor) -> Tensor:
    """Squared distance to the mean of the window, then the mean of that with zeros outside the image."""
    _, height, width = image.shape
    rows, columns = (max(side * 5 // 32, 2) // 2 for side in (height, width))  # reach of the window
    contrast = torch.zeros(height, width, dtype=torch.float64)
    for y in range(height):
        for x in range(width):
            window = image[:, max(y - rows, 0) : y + rows + 1, max(x - columns, 0) : x + columns + 1]
            contrast[y, x] = (image[:, y, x] - window.mean(dim=(1, 2))).square().sum()
    smooth = torch.zeros_like(contrast)
    for y in range(height):
        for x in range(width):
            window = contrast[max(y - rows, 0) : y + rows + 1, max(x - columns, 0) : x + columns + 1]
            smooth[y, x] = window.sum() / ((2 * rows + 1) * (2 * columns + 1))
    return smooth


@pytest.mark.parametrize("size", [(32, 32), (6, 45)], ids=str)
def test_map_by_loops(size: tuple[int, int], rng: torch.Generator) -> None:
    images = torch.randn(2, 3, *size, generator=rng)
    wanted = torch.stack([by_loops(image.double()) for image in images])
    found = saliency_map(images)
    assert found.shape == (2, *size) and found.dtype == torch.float32
    torch.testing.assert_close(found.double(), wanted, atol=1e-5, rtol=1e-5)
    rows, columns = peaks(images).T
    assert torch.equal(wanted[torch.arange(2), rows, columns], wanted.flatten(1).amax(dim=1))


def test_normalisation_need_not_be_undone(rng: torch.Generator) -> None:
    """An offset per channel cancels, and one common scale does not move the peak."""
    pixels = torch.rand(20, 3, 32, 32, generator=rng, dtype=torch.float64)
    mean, std = torch.tensor([0.49, 0.48, 0.45]).view(1, 3, 1, 1), 0.2
    torch.testing.assert_close(saliency_map((pixels - mean) / std) * std**2, saliency_map(pixels), atol=1e-6, rtol=1e-4)
    assert torch.equal(peaks((pixels - mean) / std), peaks(pixels))


def test_a_flat_image_is_nowhere_salient_and_its_peak_is_inside() -> None:
    assert not saliency_map(torch.full((1, 3, 16, 16), 0.5)).any()
    assert peaks(torch.full((1, 3, 16, 16), 0.5)).tolist() == [[0, 0]]


@pytest.mark.parametrize("side", [32, 48])
def test_the_peak_lands_on_the_object_of_a_scene(side: int) -> None:
    """Boxes cover 37 % and masks 22 % of a scene; peaks lie in 93 % and 84 % (the image's centre: 95 % and 71 %)."""
    scenes = generate(1000, side, 0, "train", SceneConfig())
    assert scenes.boxes is not None and scenes.masks is not None
    rows, columns = peaks((scenes.images.float() / 255 - 0.5) / 0.2).T
    x0, y0, x1, y1 = scenes.boxes.unbind(dim=1)
    in_box = (columns >= x0) & (columns < x1) & (rows >= y0) & (rows < y1)
    in_mask = scenes.masks[torch.arange(len(rows)), rows, columns]
    area = ((x1 - x0) * (y1 - y0)).float().mean().item() / side**2
    assert 0.35 < area < 0.40 and 0.20 < scenes.masks.float().mean().item() < 0.24
    assert in_box.float().mean().item() > 0.9
    assert in_mask.float().mean().item() > 0.8
