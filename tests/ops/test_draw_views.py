"""draw_views: Philox's known answers, every number against plain Python, and the laws of the parameters."""

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor

import mixfast
from mixfast.augment import AugmentConfig, second_view
from mixfast.ops.views import _philox
from mixfast.ops.views._layout import COLUMNS
from tests.backends import device_of, each_backend
from tests.ops.augmenting import RECIPES, new_state

# "philox4x32 10" of kat_vectors in Random123 1.14 (Salmon et al. 2011): counter, key, answer
KNOWN = [
    ((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
    ((0xFFFFFFFF,) * 4, (0xFFFFFFFF,) * 2, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
    (
        (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
        (0xA4093822, 0x299F31D0),
        (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
    ),
]
PERMUTATIONS = [(0, 1, 2), (0, 2, 1), (1, 0, 2), (1, 2, 0), (2, 0, 1), (2, 1, 0)]


def philox(counter: tuple[int, ...], key: tuple[int, ...]) -> list[int]:
    """In Python's integers, as the paper writes it."""
    c, k = list(counter), list(key)
    for _ in range(10):
        p0, p1 = c[0] * 0xD2511F53, c[2] * 0xCD9E8D57
        c = [p1 >> 32 ^ c[1] ^ k[0], p1 % 2**32, p0 >> 32 ^ c[3] ^ k[1], p0 % 2**32]
        k = [(k[0] + 0x9E3779B9) % 2**32, (k[1] + 0xBB67AE85) % 2**32]
    return c


def draw(backend: str, state: Tensor, count: int, size: tuple[int, int], *recipes: AugmentConfig) -> Tensor:
    """On the backend's device and back; the state too."""
    there = state.to(device_of(backend))
    drawn = mixfast.draw_views(there, count, size, recipes, backend=backend)
    state.copy_(there)
    return drawn.cpu()


def by_hand(key: int, number: int, image: int, view: int, size: tuple[int, int], cfg: AugmentConfig) -> list[float]:
    """A row of parameters in Python's numbers: the definition, with the standard library's exponential."""

    def block(i: int) -> list[int]:
        return philox((number % 2**32, image, view, i), (key % 2**32, (key >> 32) % 2**32))

    def uniform(n: int, low: float, high: float) -> float:
        return low + n / 2**32 * (high - low)

    box = None
    for t in range(10):
        a, r, y, x = block(t)
        area = size[0] * size[1] * uniform(a, *cfg.crop_scale)
        ratio = math.exp(uniform(r, math.log(cfg.crop_ratio[0]), math.log(cfg.crop_ratio[1])))
        w, h = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < w <= size[1] and 0 < h <= size[0]:
            box = [y * (size[0] - h + 1) >> 32, x * (size[1] - w + 1) >> 32, h, w]
            break
    if box is None:
        h, w = size
        h, w = (
            (round(w / cfg.crop_ratio[0]), w)
            if w / h < cfg.crop_ratio[0]
            else (h, round(h * cfg.crop_ratio[1]) if w / h > cfg.crop_ratio[1] else w)
        )
        box = [(size[0] - h) // 2, (size[1] - w) // 2, h, w]
    (flip, jitter, grey, blur), (solarise, sigma, order, _), strengths = (block(i) for i in (10, 11, 12))
    on = jitter / 2**32 < cfg.jitter
    factors = [
        uniform(n, max(0.0, 1 - x), 1 + x) if on else 1.0
        for n, x in zip(strengths, (cfg.brightness, cfg.contrast, cfg.saturation), strict=False)
    ]
    hue = uniform(strengths[3], -cfg.hue, cfg.hue) if on else 0.0
    place = order * 24 >> 32
    happens = {
        "flip": flip / 2**32 < cfg.flip,
        "grey": grey / 2**32 < cfg.grey,
        "solarise": solarise / 2**32 < cfg.solarise,
    }
    width = uniform(sigma, *cfg.blur_sigma) if blur / 2**32 < cfg.blur else 0.0
    orders = (*PERMUTATIONS[place // 4], place % 4)
    return [*box, happens["flip"], *factors, hue, *orders, happens["grey"], width, happens["solarise"]]


@pytest.mark.parametrize(("counter", "key", "answer"), KNOWN)
def test_known_answers(counter: tuple[int, ...], key: tuple[int, int], answer: tuple[int, ...]) -> None:
    assert philox(counter, key) == list(answer)
    words = tuple(torch.tensor(word) for word in counter)
    signed = key[0] + (key[1] - (key[1] >> 31 << 32)) * 2**32  # the same 64 bits as an int64
    ours = _philox.philox(torch.tensor(signed), words)  # type: ignore[arg-type]
    assert ours.tolist() == list(answer)


@each_backend("augment_views")
@pytest.mark.parametrize("size", [(32, 32), (24, 40), (9, 90), (1, 1), (224, 224)], ids=str)
@pytest.mark.parametrize("key", [0, 12345678901234567, -3], ids=str)
def test_every_number_is_the_one_that_is_defined(backend: str, size: tuple[int, int], key: int) -> None:
    recipes = [RECIPES["everything"], second_view(replace(RECIPES["byol"], crop_scale=(0.9, 1.0)))]
    state = torch.tensor([key, 2**32 + 7])
    ours = draw(backend, state, 30, size, *recipes)
    assert state.tolist() == [key, 2**32 + 8] and ours.dtype == torch.float32
    for view, cfg in enumerate(recipes):
        rows = [by_hand(key, 7, image, view, size, cfg) for image in range(30)]
        torch.testing.assert_close(ours[view], torch.tensor(rows), rtol=1.2e-7, atol=0)


@each_backend("augment_views", but=("reference",))
@pytest.mark.parametrize("name", RECIPES)
def test_all_backends_draw_the_same_bits(backend: str, name: str, rng: torch.Generator) -> None:
    state = new_state(rng)
    other = state.clone()
    for size in ((32, 32), (17, 250)):
        ours, theirs = (
            draw(backend, state, 500, size, RECIPES[name]),
            draw("reference", other, 500, size, RECIPES[name]),
        )
        assert torch.equal(ours, theirs)
    assert torch.equal(state, other)


def test_exponential_is_the_exponential() -> None:
    x = torch.linspace(-6.9, 6.9, 5001, dtype=torch.float64)
    truth = torch.tensor([math.exp(value) for value in x.tolist()], dtype=torch.float64)
    torch.testing.assert_close(_philox.exponential(x), truth, rtol=1e-12, atol=0)


def test_a_draw_depends_on_neither_batch_nor_other_recipes(rng: torch.Generator) -> None:
    """And the next draw differs, as do another key's and the other view's."""
    state, cfg = new_state(rng), RECIPES["demo"]
    many = mixfast.draw_views(state.clone(), 20, (32, 32), [cfg] * 3)
    few = mixfast.draw_views(state, 7, (32, 32), [cfg, RECIPES["v2"]])
    assert torch.equal(many[0, :7], few[0])
    following, stranger = (mixfast.draw_views(s, 20, (32, 32), [cfg]) for s in (state, state + torch.tensor([1, 0])))
    for other in (following[0], stranger[0], many[1], many[2]):
        assert (many[0] != other).any(dim=1).all()


def test_recipes_share_their_draws(rng: torch.Generator) -> None:
    """Switching one thing off changes nothing else."""
    state = new_state(rng)
    plain, other = (
        mixfast.draw_views(state.clone(), 100, (32, 32), [cfg])[0]
        for cfg in (AugmentConfig(), AugmentConfig(hue=0, jitter=1.0, blur=0.5, grey=0.0))
    )
    same = [COLUMNS.index(name) for name in ("top", "left", "height", "width", "flip", "order0", "order1", "hue_place")]
    assert torch.equal(plain[:, same], other[:, same])


@pytest.mark.parametrize("column", ["flip", "grey", "sigma", "solarise"])
@pytest.mark.parametrize("probability", [0.0, 0.2, 1.0], ids=str)
def test_probabilities(column: str, probability: float, rng: torch.Generator) -> None:
    n, name = 20_000, {"sigma": "blur"}.get(column, column)
    cfg = replace(AugmentConfig(), **{name: probability})  # type: ignore[arg-type]
    drawn = mixfast.draw_views(new_state(rng), n, (32, 32), [cfg])[0, :, COLUMNS.index(column)] != 0
    assert abs(drawn.double().mean().item() - probability) <= 5 * math.sqrt(probability * (1 - probability) / n)


def test_jitter_strengths_are_uniform_and_all_or_none(rng: torch.Generator) -> None:
    n = 20_000
    cfg = AugmentConfig(brightness=0.4, contrast=1.5, saturation=0.2, hue=0.1, jitter=0.8, blur=1.0)
    how = dict(zip(COLUMNS, mixfast.draw_views(new_state(rng), n, (32, 32), [cfg])[0].unbind(1), strict=True))
    on = how["hue"] != 0
    assert abs(on.double().mean().item() - 0.8) < 5 * math.sqrt(0.16 / n)
    for name, low, high in (
        ("brightness", 0.6, 1.4),
        ("contrast", 0.0, 2.5),  # torchvision: a factor is not negative
        ("saturation", 0.8, 1.2),
        ("hue", -0.1, 0.1),
        ("sigma", 0.1, 2.0),
    ):
        values = how[name] if name == "sigma" else how[name][on]
        unit = ((values.double() - low) / (high - low)).sort().values
        steps = torch.arange(1, len(unit) + 1) / len(unit)
        assert (unit - steps).abs().max() < math.sqrt(-math.log(1e-5 / 2) / 2 / len(unit))  # Kolmogorov, level 1e-5
        if name != "sigma":
            assert (how[name][~on] == (0 if name == "hue" else 1)).all()


def test_all_24_orders_are_equally_likely(rng: torch.Generator) -> None:
    drawn = mixfast.draw_views(new_state(rng), 24_000, (32, 32), [AugmentConfig()])[0]
    order = drawn[:, [COLUMNS.index(f"order{i}") for i in range(3)]]
    assert (order.sort(dim=1).values == torch.arange(3)).all()
    code = (order * torch.tensor([9, 3, 1])).sum(1) * 4 + drawn[:, COLUMNS.index("hue_place")]
    counts = code.unique(return_counts=True)[1].double()
    assert len(counts) == 24
    assert ((counts - 1000) ** 2 / 1000).sum() < 62  # chi-square, 23 degrees of freedom, level 2e-5
