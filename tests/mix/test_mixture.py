"""mix.mixture: what is mixed, by how much, and from which draws."""

import math

import pytest
import torch
from torch import Tensor

from mixfast.errors import ConfigError
from mixfast.mix import SALIENCY_SHARE, Mixture, MixtureConfig, mix, peaks

BATCH, SIZE = 6, (12, 20)


def batches(rng: torch.Generator, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    base, donor = (torch.randn(BATCH, 3, *SIZE, generator=rng).to(dtype) for _ in range(2))
    return base, donor


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def box_of(lam0: float, centre: tuple[int, int]) -> list[int]:
    """The rule of CutMix in plain words, as (x0, y0, x1, y1)."""
    sides = []
    for extent, middle in zip(SIZE, centre, strict=True):
        half = math.floor(extent * math.sqrt(1 - lam0)) // 2
        first = max(middle - half, 0)
        sides.append((first, max(min(middle + half, extent), first + 1)))
    (y0, y1), (x0, x1) = sides
    return [x0, y0, x1, y1]


def by_loops(base: Tensor, donor: Tensor, boxes: list[list[int]]) -> Tensor:
    out = base.clone()
    for n, (x0, y0, x1, y1) in enumerate(boxes):
        out[n, :, y0:y1, x0:x1] = donor[n, :, y0:y1, x0:x1]
    return out


def check_cut(mixed: Mixture, base: Tensor, donor: Tensor, boxes: list[list[int]]) -> None:
    """The donor is in the boxes, and lam is the share outside."""
    assert mixed.boxes.tolist() == boxes and mixed.boxes.dtype == torch.int64
    assert torch.equal(mixed.images, by_loops(base, donor, boxes))
    shares = [1 - (x1 - x0) * (y1 - y0) / (SIZE[0] * SIZE[1]) for x0, y0, x1, y1 in boxes]
    assert mixed.lam.tolist() == pytest.approx(shares, abs=1e-6) and mixed.lam.dtype == torch.float32


def check_blend(mixed: Mixture, base: Tensor, donor: Tensor, lam0: Tensor) -> None:
    share = lam0[:, None, None, None].double()
    wanted = share * base.double() + (1 - share) * donor.double()
    torch.testing.assert_close(mixed.images.double(), wanted, atol=1e-6, rtol=1e-6)
    assert torch.equal(mixed.lam, lam0.expand(BATCH)) and not mixed.boxes.any()


def check_clean(mixed: Mixture, base: Tensor) -> None:
    assert torch.equal(mixed.images, base) and (mixed.lam == 1).all() and not mixed.boxes.any()


@pytest.mark.parametrize("per_sample", [False, True])
def test_cutmix_draws_lam0_then_row_then_column(per_sample: bool, rng: torch.Generator) -> None:
    base, donor = batches(rng)
    draws = BATCH if per_sample else 1
    for seed in range(10):
        mixed = mix(base, donor, seeded(seed), MixtureConfig(box_per_sample=per_sample))
        again = seeded(seed)
        lam0 = torch.rand(draws, generator=again).tolist()
        rows, columns = (torch.randint(extent, (draws,), generator=again).tolist() for extent in SIZE)
        boxes = [box_of(*each) for each in zip(lam0, zip(rows, columns, strict=True), strict=True)]
        check_cut(mixed, base, donor, boxes if per_sample else boxes * BATCH)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("per_sample", [False, True])
def test_mixup_blends_by_lam0(per_sample: bool, dtype: torch.dtype, rng: torch.Generator) -> None:
    base, donor = batches(rng, dtype)
    mixed = mix(base, donor, seeded(1), MixtureConfig(mixture="mixup", box_per_sample=per_sample))
    assert mixed.images.dtype == dtype
    check_blend(mixed, base, donor, torch.rand(BATCH if per_sample else 1, generator=seeded(1)))


def test_none_leaves_the_images_alone(rng: torch.Generator) -> None:
    base, donor = batches(rng)
    check_clean(mix(base, donor, rng, MixtureConfig(mixture="none"), p_global=1.0), base)


@pytest.mark.parametrize("kind", ["cutmix", "mixup", "none"])
def test_alpha_shapes_lam0(kind: str, rng: torch.Generator) -> None:
    """A huge alpha makes lam0 one half: half the image is left outside an unclipped box."""
    base, donor = batches(rng)
    mixed = mix(base, donor, rng, MixtureConfig(mixture=kind, alpha=1e6))  # type: ignore[arg-type]
    if kind == "mixup":
        assert mixed.lam.tolist() == pytest.approx([0.5] * BATCH, abs=0.01)
    assert (mixed.lam >= {"cutmix": 0.5, "mixup": 0.0, "none": 1.0}[kind]).all()


def test_unmix_draws_the_choice_first_then_the_rest() -> None:
    """One choice for the batch; a global step takes lam0 from the same draw."""
    base, donor = batches(seeded(0))
    config = MixtureConfig()
    kinds = []
    for seed in range(40):
        mixed = mix(base, donor, seeded(seed), config, p_global=0.5)
        again = seeded(seed)
        choice, lam0 = torch.rand(1, generator=again).item(), torch.rand(1, generator=again)
        kinds.append(choice < 0.5)
        if kinds[-1]:
            check_blend(mixed, base, donor, lam0)
        else:
            centre = tuple(int(torch.randint(extent, (1,), generator=again)) for extent in SIZE)
            check_cut(mixed, base, donor, [box_of(lam0.item(), centre)] * BATCH)  # type: ignore[arg-type]
    assert 10 < sum(kinds) < 30


@pytest.mark.parametrize("p_global", [0.0, 0.25, 1.0])
def test_the_share_of_global_steps_is_p_global(p_global: float) -> None:
    base, donor = batches(seeded(0))
    rng, config = seeded(2), MixtureConfig()
    boxed = [mix(base, donor, rng, config, p_global=p_global).boxes.any().item() for _ in range(400)]
    assert 1 - sum(boxed) / 400 == pytest.approx(p_global, abs=4 * math.sqrt(p_global * (1 - p_global) / 400))


def test_without_global_steps_unmix_is_cutmix_to_the_bit() -> None:
    base, donor = batches(seeded(0))
    unmixed = mix(base, donor, seeded(3), MixtureConfig(), p_global=0.0)
    cut = mix(base, donor, seeded(3), MixtureConfig(mixture="cutmix"))
    assert all(torch.equal(a, b) for a, b in zip(unmixed, cut, strict=True))


def test_saliency_centres_each_box_on_the_donors_peak() -> None:
    """A bright pixel in the donor at a place of its own; one lam0 for the batch, so sizes differ by clipping alone."""
    base, donor = torch.zeros(BATCH, 3, *SIZE), torch.zeros(BATCH, 3, *SIZE)
    places = [(1, 2), (10, 18), (6, 10), (3, 15), (9, 4), (0, 0)]
    for n, (row, column) in enumerate(places):
        donor[n, :, row, column] = 5.0
    assert peaks(donor).tolist() == [list(place) for place in places]
    again = seeded(2)
    lam0, choice = (torch.rand(1, generator=again).item() for _ in range(2))
    assert choice < SALIENCY_SHARE  # this seed's step is mixed
    boxes = [box_of(lam0, place) for place in places]
    check_cut(mix(base, donor, seeded(2), MixtureConfig(mixture="saliency")), base, donor, boxes)
    assert len(set(map(tuple, boxes))) == BATCH


def test_saliency_mixes_a_share_of_the_steps() -> None:
    base, donor = batches(seeded(0))
    rng, applied = seeded(5), 0
    for _ in range(400):
        mixed = mix(base, donor, rng, MixtureConfig(mixture="saliency"))
        if mixed.boxes.any():
            applied += 1
            check_cut(mixed, base, donor, mixed.boxes.tolist())
        else:
            check_clean(mixed, base)
    assert applied / 400 == pytest.approx(0.5, abs=0.1)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"alpha": 0.0}, r"method.alpha must be above 0; got 0.0"),
        ({"alpha": math.nan}, r"method.alpha must be above 0; got nan"),
    ],
    ids=str,
)
def test_bad_options_are_named(options: dict[str, float], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        MixtureConfig(**options)  # type: ignore[arg-type]
