"""Aligned mixture: the loss by hand, and index-valued images that show where regions and patches come from."""

from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor

from mixfast.augment import Augment, AugmentConfig, Views, augment
from mixfast.errors import ConfigError
from mixfast.methods import Method, load
from mixfast.mix import box_mask
from mixfast.models import ModelConfig
from mixfast.rng import Generators
from tests.methods.hand import BATCH, build, double, infonce, mean, region_rows, rows

COUNT, WIDTH = 32, 32
MODEL = ModelConfig(depth=8, width=8, dim=6)
PLAIN = AugmentConfig(jitter=0.0, grey=0.0, crop_scale=(0.3, 1.0))  # crops and flips alone


def cut_out(generators: Generators) -> Augment:
    """The augmenter of a run, without colours and normalisation: a pixel is byte / 255."""
    return partial(_augment, generators.counter("augment"))


def _augment(state: Tensor, images: Tensor, count: int = 2) -> Views:
    return augment(images, PLAIN, state, (0.0,) * 3, (1.0,) * 3, count)


def views_of(images: Tensor, **options: Any) -> dict[str, Tensor]:
    """The views of uint8 images; the same crops, boxes and patches whatever the images show."""
    method, generators = build(load("aligned_mixture"), MODEL, 4, queue_size=4 * COUNT, **options)
    return method.views(images, cut_out(generators), generators)


def numbered() -> Tensor:
    """Image n is the byte n."""
    return torch.arange(COUNT, dtype=torch.uint8)[:, None, None, None].expand(COUNT, 3, WIDTH, WIDTH)


def owners(view: Tensor) -> Tensor:
    """int64 [B, H, W]: which numbered image a pixel shows."""
    return (view[:, 0] * 255).round().long()


def extent(view: Tensor, box: Tensor) -> Tensor:
    """The place in the image that a box of a view [3, H, W] shows: x0, y0, x1, y1, from the pixels themselves."""
    x0, y0, x1, y1 = box.tolist()
    pixels = view[:2, y0:y1, x0:x1].flatten(1) * (255 / 8)  # a place of 8 k means column, or row, k
    return torch.cat([pixels.amin(dim=1), pixels.amax(dim=1)])


def test_both_boxes_of_a_pair_show_the_same_place() -> None:
    """Images whose pixels are their place. Rounding moves a border by half a pixel in each view, clamping at the border
    of a crop by half a pixel of the image."""
    columns, size = torch.arange(WIDTH, dtype=torch.uint8) * 8, (WIDTH, WIDTH)
    place = torch.stack([columns.expand(size), columns[:, None].expand(size), torch.zeros(size, dtype=torch.uint8)])
    images = place.expand(COUNT, 3, *size)
    plain, mixed = views_of(images, p_mix=0.0, boxes=3), views_of(images, p_mix=1.0, boxes=3)
    for n, m in plain["weight_region"].nonzero().tolist():
        query = extent(plain["query"][n], plain["boxes_query"][n, m])
        key = extent(plain["key"][n], plain["boxes_key"][n, m])
        torch.testing.assert_close(query, key, atol=1.6, rtol=0)
    assert plain["weight_region"].sum() > 2 * COUNT
    for n in mixed["weight_patch"].nonzero()[:, 0].tolist():  # patch n was cut from image COUNT - 1 - n
        query = extent(mixed["query"][n], mixed["boxes_query"][n, 3])
        key = extent(mixed["key"][COUNT - 1 - n], mixed["boxes_key"][COUNT - 1 - n, 3])
        torch.testing.assert_close(query, key, atol=1.6, rtol=0)
    assert COUNT / 4 < mixed["weight_patch"].sum() < COUNT


def test_patches_lie_in_the_first_queries_and_show_the_last_images() -> None:
    views = views_of(numbered())  # a quarter
    shown, own = owners(views["query"]), torch.arange(COUNT)[:, None, None]
    assert torch.equal(owners(views["key"]), own.expand_as(shown))
    count = COUNT // 4
    assert torch.equal(shown[count:], own[count:].expand(-1, WIDTH, WIDTH)) and views["lam"][count:].eq(1).all()
    for n in range(count):
        donor = shown[n] == COUNT - 1 - n
        assert (donor | (shown[n] == n)).all()
        assert views["lam"][n] == pytest.approx(1 - donor.float().mean().item(), abs=1e-6)
        assert 0.08 < donor.float().mean() < 0.42  # area 0.1 to 0.4, rounded to pixels
        patch = box_mask(views["boxes_query"][n, 2:], (WIDTH, WIDTH))[0]
        assert donor[patch].all(), "the region of the patch shows the other image alone"
        for m in range(2):
            box = box_mask(views["boxes_query"][n, m : m + 1], (WIDTH, WIDTH))[0]
            covered = donor[box].float().mean()
            assert views["weight_region"][n, m] == (covered < 0.3)
    assert views["weight_region"][:count].eq(0).any() and views["weight_region"][count:].eq(1).all()


def chosen_crops(third: list[int], key: list[int]) -> Augment:
    """Views of one colour, cut out as it is told: a third view, and a pair of views whose query is the left half."""

    def augment(images: Tensor, count: int = 2) -> Views:
        crops = torch.tensor([third] if count == 1 else [[0, 0, 32, 16, 0], key], dtype=torch.float32)
        return Views([images.float()] * count, crops[:, None].expand(count, len(images), 5))

    return augment


@pytest.mark.parametrize(
    ("key", "weight"),
    [
        ([0, 0, 32, 32, 0], 1),
        ([0, 14, 32, 16, 0], 1),  # 2 of the 16 columns are shared, an eighth
        ([0, 15, 32, 16, 1], 0),
        ([0, 16, 32, 16, 0], 0),
        ([29, 0, 3, 32, 0], 0),
        ([28, 0, 4, 32, 0], 1),
    ],
    ids=str,
)
def test_boxes_of_crops_that_hardly_overlap_weigh_nothing(key: list[int], weight: int) -> None:
    method, generators = build(load("aligned_mixture"), MODEL, p_mix=0.0)
    views = method.views(numbered()[:BATCH], chosen_crops([], key), generators)
    assert views["weight_region"].eq(weight).all()
    boxes = views["boxes_key"]
    assert (boxes[..., 2:] > boxes[..., :2]).all() and boxes.amin() >= 0 and boxes.amax() <= WIDTH


def test_a_patch_counts_if_the_key_shows_more_than_half_of_it() -> None:
    """The third view is the whole image, so that a patch's columns are the image's; the key shows its left 20."""
    method, generators = build(load("aligned_mixture"), MODEL, 3, p_mix=1.0)
    images = numbered()[:BATCH]
    views = method.views(images, chosen_crops([0, 0, 32, 32, 0], [0, 0, 32, 20, 0]), generators)
    shown = views["query"][:, 0].round().long()
    weights = []
    for n in range(BATCH):
        columns = (shown[n] == BATCH - 1 - n).any(dim=0).nonzero()[:, 0]
        weights.append(float((columns < 20).float().mean() > 0.5))
        if weights[-1]:
            x0, _, x1, _ = views["boxes_query"][n, 2].tolist()
            assert (x0, x1) == (columns[0], min(int(columns[-1]) + 1, 20))
    assert views["weight_patch"].tolist() == weights and 0 < sum(weights) < BATCH


@torch.no_grad()
def inside(method: Any, side: str, view: str, views: dict[str, Tensor]) -> list[Any]:
    """By column of the boxes, the vectors of the view's regions by their definition."""
    encoder, head = (
        (method.encoder, method.region_head) if side == "query" else (method.key_encoder, method.key_region_head)
    )
    features, boxes = encoder(views[view], method.config.region_layer).map, views[f"boxes_{view}"]
    unused = torch.tensor([0, 0, 1, 1])  # in place of the empty box of an image without a patch
    filled = torch.where((boxes[..., 2:] > boxes[..., :2]).all(dim=-1, keepdim=True), boxes, unused)
    return [region_rows(features, filled[:, m], head)[0] for m in range(boxes.shape[1])]


@pytest.mark.parametrize(
    "options",
    [{}, {"p_mix": 1.0, "weight": 0.7}, {"p_mix": 0.0, "boxes": 3}, {"region_layer": 2, "boxes": 1}, {"p_mix": 0.01}],
    ids=str,
)
def test_loss_by_hand(options: dict[str, Any]) -> None:
    method, generators, views = double(load("aligned_mixture"), seed=3, **options)
    config, queues = method.config, method.queues.keys()
    q, k = rows(method.encoder(views["query"]).z), rows(method.key_encoder(views["key"]).z)
    qR, kR = inside(method, "query", "query", views), inside(method, "key", "key", views)
    lam, weights = views["lam"].tolist(), views["weight_region"].tolist()
    whole, region = queues["whole"], queues["region"]
    expected = mean(infonce(q, k, whole), lam)
    for m in range(config.boxes):
        share = [config.weight / config.boxes * row[m] for row in weights]
        expected += mean(infonce(qR[m], kR[m], region), share)
    count = {0.0: 0, 0.01: 1, 0.25: 2, 1.0: 8}[config.p_mix]
    assert sum(value < 1 for value in lam) == count
    if count:
        rest = [1 - value for value in lam]
        expected += mean(infonce(q, k[::-1], whole), rest)
        patch = [config.weight * value for value in views["weight_patch"].tolist()] + [0.0] * (BATCH - count)
        expected += mean(infonce(qR[-1], kR[-1][::-1], region), patch)
    step = method.step(views, generators)
    assert step.loss.item() == pytest.approx(expected, rel=1e-7)
    for name, keys in (("whole", k), ("region", kR[0])):
        torch.testing.assert_close(step.carry[name], torch.tensor(keys, dtype=torch.float64), atol=1e-8, rtol=0)


def test_a_step_costs_the_encoder_passes_of_moco() -> None:
    method, generators, views = double(load("aligned_mixture"))
    passes = []
    for encoder in (method.encoder, method.key_encoder):
        encoder.register_forward_pre_hook(lambda _, args: passes.append(len(args[0])))
    method.step(views, generators)
    assert passes == [BATCH, BATCH]


def test_the_patch_and_the_donor_count_over_the_patched_queries_alone() -> None:
    """Their means are what a reader of the log compares with the chance level."""
    method, generators, views = double(load("aligned_mixture"), p_mix=0.5)
    terms = {term.name: term for term in method.step(views, generators).terms}
    assert {name: len(term.query) for name, term in terms.items()} == {
        "original": BATCH, "region": 2 * BATCH, "donor": BATCH // 2, "patch": BATCH // 2,
    }  # fmt: skip
    shares = [torch.as_tensor(terms[name].weight).mean().item() for name in ("original", "donor")]
    assert sum(shares) == pytest.approx(1, abs=1e-6) and shares[1] > 0.05


def method_of(**options: Any) -> Method:
    return build(load("aligned_mixture"), MODEL, **options)[0]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"area": (0.5, 0.2)}, r"method.area must be \(low, high\) with low <= high; got \(0.5, 0.2\)"),
        ({"area": (0.1, 1.0)}, r"--method.area must be values, each in \(0, 1\); got \(0.1, 1.0\)"),
        ({"region_layer": 9}, r"method.region_layer must be in 1 ... 3 for this backbone; got 9"),
    ],
    ids=str,
)
def test_bad_options_are_named(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        method_of(**options)
