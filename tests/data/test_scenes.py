"""Scenes: reproducible, balanced, with true masks and boxes, and neither trivial nor hopeless."""

import math
from dataclasses import replace

import pytest
import torch

from mixfast.data import DataConfig, SceneConfig, load, scenes
from mixfast.errors import ConfigError

PLAIN = SceneConfig(background=0.0, clutter=0, noise=0.0)


def test_shapes_types_and_balance() -> None:
    for size, count in ((32, 205), (64, 30), (96, 21)):
        made = scenes.generate(count, size, 0, "train", SceneConfig())
        assert made.images.shape == (count, 3, size, size) and made.images.dtype == torch.uint8
        assert made.masks.shape == (count, size, size) and made.masks.unique().tolist() == [0, 1]
        assert made.boxes.shape == (count, 4) and made.boxes.dtype == made.labels.dtype == torch.int64
        counts = made.labels.bincount(minlength=10)
        assert len(made.class_names) == 10 and counts.max() - counts.min() <= 1
        assert made.labelled and made.masks.flatten(1).any(dim=1).all()


def test_every_number_follows_from_the_seed() -> None:
    cfg = SceneConfig()
    first, again = (scenes.generate(300, 32, 5, "train", cfg) for _ in range(2))
    assert torch.equal(first.images, again.images) and torch.equal(first.labels, again.labels)
    assert torch.equal(first.masks, again.masks)
    for other in (scenes.generate(300, 32, 6, "train", cfg), scenes.generate(300, 32, 5, "test", cfg)):
        assert not torch.equal(first.labels, other.labels)
        assert (first.images != other.images).float().mean() > 0.9


def test_threads_do_not_change_the_pixels() -> None:
    before = torch.get_num_threads()
    made = []
    try:
        for threads in (1, 3):
            torch.set_num_threads(threads)
            made.append(scenes.generate(100, 31, 0, "train", SceneConfig()).images)
    finally:
        torch.set_num_threads(before)
    assert torch.equal(*made)


def test_boxes_are_tight() -> None:
    made = scenes.generate(60, 32, 1, "train", SceneConfig())
    for mask, box in zip(made.masks, made.boxes.tolist(), strict=True):
        rows, columns = mask.nonzero().unbind(1)
        expected = [columns.min().item(), rows.min().item(), columns.max().item() + 1, rows.max().item() + 1]
        assert box == expected


def test_boxes_of_odd_masks() -> None:
    masks = torch.zeros(4, 5, 7, dtype=torch.uint8)
    masks[1, 4, 6] = 1
    masks[2] = 1
    masks[3, 0, 2] = masks[3, 3, 5] = 1
    assert scenes.boxes_of(masks).tolist() == [[0, 0, 0, 0], [6, 4, 7, 5], [0, 0, 7, 5], [2, 0, 6, 4]]


def test_masks_cover_the_object_and_nothing_else() -> None:
    """On a flat background: pixels away from the mask are background, and next to none well inside it are.

    Away: 4 pixels, for the tips of a crescent, which are thinner than half a pixel, are outside the mask.
    """
    made = scenes.generate(200, 48, 2, "train", PLAIN)
    grown = torch.nn.functional.max_pool2d(made.masks.float(), 7, 1, 3) > 0
    shrunk = torch.nn.functional.max_pool2d(1 - made.masks.float(), 3, 1, 1) == 0
    for image, near, inside in zip(made.images, grown, shrunk, strict=True):
        background = image[:, ~near]
        assert (background == background[:, :1]).all()
        assert (image[:, inside] == background[:, :1]).all(dim=0).sum() <= 0.2 * inside.sum()


def lens(r: float, d: float) -> float:
    """Area common to a unit circle and a circle of radius r at distance d."""
    a = r**2 * math.acos((d**2 + r**2 - 1) / (2 * d * r)) + math.acos((d**2 + 1 - r**2) / (2 * d))
    return a - 0.5 * math.sqrt((r + 1 - d) * (d + r - 1) * (d - r + 1) * (d + r + 1))


AREAS = {  # of a shape of radius 1
    "disc": math.pi,
    "square": 1.5**2,
    "triangle": 3 * math.sqrt(3) / 4,
    "star": math.pi * (0.72**2 + 0.28**2 / 2),
    "cross": 8 * 0.95**2 * 0.33 - 4 * (0.95 * 0.33) ** 2,
    "ring": math.pi * (1 - 0.36**2),
    "half": math.pi / 2,
    "crescent": math.pi - lens(0.7, 0.55),
    "clover": math.pi * (0.65**2 + 0.35**2 / 2),
    "bar": 4 * 0.95 * 0.4,
}


def test_shapes_have_their_areas() -> None:
    side, radius = 128, 0.3
    made = scenes.generate(100, side, 3, "train", replace(PLAIN, radius=(radius, radius)))
    assert list(AREAS) == [shape for shape, _, _ in scenes.CLASSES]
    x0, y0, x1, y1 = made.boxes.unbind(1)
    whole = (x0 > 0) & (y0 > 0) & (x1 < side) & (y1 < side)
    for label, (name, area) in enumerate(AREAS.items()):
        chosen = (made.labels == label) & whole
        assert chosen.sum() >= 3
        pixels = made.masks[chosen].flatten(1).sum(1).double().mean().item()
        assert pixels == pytest.approx(area * (radius * side) ** 2, rel=0.02), name


def test_classes_share_hues_and_textures() -> None:
    names, families, textures = zip(*scenes.CLASSES, strict=True)
    assert len(set(names)) == 10 and len(set(zip(families, textures, strict=True))) == 10
    assert all(families.count(f) == 2 for f in families) and all(textures.count(t) == 2 for t in textures)


def test_raw_pixels_know_little() -> None:
    """Weighted kNN on pixels: better than chance (10 %), far from good. Seeds 0 to 5 gave 26.5 to 29.8 %."""
    splits = load(DataConfig(scenes=4000, test_scenes=600), seed=0)
    mean, std = (torch.tensor(x)[:, None, None] for x in (splits.mean, splits.std))
    bank, queries = (
        torch.nn.functional.normalize(((s.images.float() / 255 - mean) / std).flatten(1), dim=1)
        for s in (splits.train, splits.test)
    )
    similarity, index = (queries @ bank.T).topk(20, dim=1)
    votes = torch.zeros(len(queries), 10).scatter_add_(1, splits.train.labels[index], (similarity / 0.1).exp())
    accuracy = (votes.argmax(1) == splits.test.labels).double().mean().item()
    assert 0.2 < accuracy < 0.36


def test_load_applies_limits_and_statistics() -> None:
    splits = load(DataConfig(scenes=100, test_scenes=50, limit=30, test_limit=20), seed=0)
    assert splits.name == "scenes" and len(splits.train) == 30 and len(splits.test) == 20
    assert splits.train.labels.bincount().tolist() == [3] * 10 and splits.test.labels.bincount().tolist() == [2] * 10
    whole = load(DataConfig(scenes=100, test_scenes=50), seed=0)
    values = splits.train.images.double() / 255
    assert torch.tensor(splits.mean) == pytest.approx(values.mean((0, 2, 3)).numpy(), abs=1e-6)
    assert whole.mean != splits.mean
    for box, mask in zip(splits.test.boxes.tolist(), splits.test.masks, strict=True):  # taken along with the images
        assert scenes.boxes_of(mask[None])[0].tolist() == box


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("radius", (0.0, 0.3)), ("radius", (0.3, 0.2)), ("radius", (0.3, 0.6)), ("texture", (0.5, 1.5)),
        ("texture_period", (0.0, 1.0)), ("brightness", (-0.1, 1.0)), ("saturation", (0.5, 2.0)), ("hue_spread", 0.6),
        ("background", -1.0), ("clutter", -1), ("clutter_radius", (0.0, 0.1)), ("noise", 2.0),
    ],
)  # fmt: skip
def test_bad_options_are_named(key, value) -> None:
    with pytest.raises(ConfigError, match=rf"data\.scene\.{key} must be .*; got"):
        SceneConfig(**{key: value})


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("size", 0),
        ("scenes", 0),
        ("test_scenes", 0),
        ("limit", 0),
        ("test_limit", -1),
        ("holdout", 1.0),
        ("workers", -1),
    ],
)
def test_bad_data_options_are_named(key, value) -> None:
    with pytest.raises(ConfigError, match=rf"data\.{key} must be .*; got"):
        DataConfig(**{key: value})


def test_scenes_need_a_few_pixels() -> None:
    with pytest.raises(ConfigError, match=r"data\.size must be at least 8 for scenes; got 7"):
        load(DataConfig(size=7), 0)
