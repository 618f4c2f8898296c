"""Retrieval equals a plain count; the vectors are the pooled regions of the mixtures."""

from types import SimpleNamespace

import pytest
import torch
from torch import Tensor, nn

from mixfast.scoring.components import component_scores, mixture_boxes, retrieval
from mixfast.scoring.maps import Network

COUNT, SIDE = 40, 16


class Pixels(nn.Module):
    """An encoder that sees pixels alone: its map is the image."""

    def forward(self, images: Tensor, layer: int | None = None) -> SimpleNamespace:
        return SimpleNamespace(map=images)


def plain(generator: torch.Generator) -> Tensor:
    """Images of one colour each, so that any part identifies its image."""
    colours = torch.randint(256, (COUNT, 3), generator=generator)
    return colours[:, :, None, None].expand(-1, -1, SIDE, SIDE).to(torch.uint8)


def network() -> Network:
    return Network(Pixels(), lambda images: images.float() - 127)  # type: ignore[arg-type]


def test_retrieval_equals_the_loop(rng: torch.Generator) -> None:
    gallery = torch.randn(12, 5, generator=rng)
    donors = torch.arange(12).roll(3)
    inside = gallery[donors] + 0.7 * torch.randn(12, 5, generator=rng)
    outside = gallery + 0.7 * torch.randn(12, 5, generator=rng)
    found = retrieval(inside, outside, gallery, donors)
    counts = dict.fromkeys(found, 0.0)
    for i in range(12):
        for name, vector, right, wrong in (
            ("inside", inside[i], ("pasted", int(donors[i])), ("base", i)),
            ("outside", outside[i], ("base", i), ("pasted", int(donors[i]))),
        ):
            near = [torch.cosine_similarity(vector, row, dim=0).item() for row in gallery]
            best = near.index(max(near))
            counts[f"{name}_finds_{right[0]}"] += 100 * (best == right[1]) / 12
            counts[f"{name}_finds_{wrong[0]}"] += 100 * (best == wrong[1]) / 12
            counts[f"{name}_prefers_{right[0]}"] += 100 * (near[right[1]] > near[wrong[1]]) / 12
    assert found == pytest.approx(counts)
    assert 0 < found["inside_finds_pasted"] < 100  # the case tells right from wrong


@pytest.mark.parametrize("area", [0.1, 0.25, 0.5])
def test_pixels_find_both_components(area: float, rng: torch.Generator) -> None:
    """A map as fine as the image has no leakage: inside and outside are of one colour each."""
    found = component_scores(network(), plain(rng), area, rng, batch_size=7)
    for name in ("inside_finds_pasted", "outside_finds_base", "inside_prefers_pasted", "outside_prefers_base"):
        assert found[name] == 100
    assert found["inside_finds_base"] == found["outside_finds_pasted"] == 0 and found["chance"] == 2.5


def test_a_network_that_sees_everything_everywhere_finds_nothing(rng: torch.Generator) -> None:
    class Blind(Pixels):
        def forward(self, images: Tensor, layer: int | None = None) -> SimpleNamespace:
            return SimpleNamespace(map=images.mean((2, 3), keepdim=True).expand_as(images))

    blind = Network(Blind(), network().normalise)  # type: ignore[arg-type]
    found = component_scores(blind, plain(rng), 0.25, rng)
    assert found["inside_prefers_pasted"] < 20 and found["outside_prefers_base"] > 80  # three quarters are the base's


def test_views_head_and_layer_are_used(rng: torch.Generator) -> None:
    seen: list[int | None] = []

    class Watched(Pixels):
        def forward(self, images: Tensor, layer: int | None = None) -> SimpleNamespace:
            seen.append(layer)
            return super().forward(images, layer)

    watched = Network(Watched(), network().normalise)  # type: ignore[arg-type]
    wrong = component_scores(watched, plain(rng), 0.25, rng, layer=2, view=lambda images: 127 - images.float())
    assert wrong["inside_finds_pasted"] == 0 and set(seen) == {2}  # negatives resemble nothing
    head = nn.Linear(3, 3, bias=False)
    with torch.no_grad():
        head.weight.zero_()
    constant = component_scores(watched, plain(rng), 0.25, rng, head=head)
    assert constant["inside_prefers_pasted"] == 0  # every cosine is equal


def test_boxes_have_the_area_and_stay_inside(rng: torch.Generator) -> None:
    boxes = mixture_boxes(500, (SIDE, 20), 0.25, rng)
    assert ((boxes[:, 2] - boxes[:, 0]) == 10).all() and ((boxes[:, 3] - boxes[:, 1]) == 8).all()
    assert boxes.min() == 0 and boxes[:, 2].max() == 20 and boxes[:, 3].max() == SIDE
    assert mixture_boxes(3, (4, 4), 0.999, rng)[:, 2:].sub(1).max() <= 3  # something stays outside
    with pytest.raises(ValueError, match="area must be a share between 0 and 1; got 1"):
        mixture_boxes(3, (4, 4), 1, rng)
