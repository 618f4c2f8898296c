"""Warnings before training: for each way to succeed at the wrong thing, with its numbers; none for sound runs."""

from typing import Any

import pytest
import torch

from mixfast.config.options import replace
from mixfast.config.presets import build, presets
from mixfast.data import ImageSet, Splits
from mixfast.run.sanity import queue_steps, warnings


def image_set(count: int, label: int) -> ImageSet:
    pixels = torch.full((1, 1, 1, 1), label, dtype=torch.uint8)  # no memory, however many
    return ImageSet(pixels.expand(count, 3, 32, 32), torch.full((count,), min(label, 0)), ("grey",))


def splits(images: int, labelled: bool = True) -> Splits:
    """Black training images and white test images, with or without a class."""
    sets = [image_set(count, 0) for count in (images, 10)]
    sets[1] = ImageSet(torch.full((10, 3, 32, 32), 255, dtype=torch.uint8), sets[1].labels, ("grey",))
    if not labelled:
        sets = [ImageSet(some.images, some.labels - 1, ()) for some in sets]
    return Splits(sets[0], sets[1], (0.5,) * 3, (0.5,) * 3, "grey")


@pytest.mark.parametrize("preset", presets())
def test_no_preset_is_warned_about_on_the_images_it_is_made_for(preset: str) -> None:
    config = build(preset, [], None)[0]
    images = {"demo": 10_000, "moco_v2_imagenet": 1_281_167}.get(preset, 50_000)
    assert warnings(config, splits(images)) == []


# options, training images, what the warning says
CASES: list[tuple[str, dict[str, Any], int, list[str]]] = [
    (
        "moco",
        {"train.epochs": 1, "optim.cosine_origin": 1},
        51_200,
        ["mean learning rate of the 100 steps (1 epoch) is 0, 0 % of --optim.lr 0.06", "moco_demo"],
    ),
    (
        "moco",
        {"train.epochs": 20, "optim.schedule": "step", "optim.steps": (0.05,), "optim.step_factor": 0.01},
        51_200,
        # (1 + 19 x 0.01) / 20 = 5.95 %
        ["is 0.00357, 6 % of --optim.lr 0.06", "--optim.steps 0.05 by --optim.step_factor 0.01"],
    ),
    # (1 + ... + 100) / 500 / 100 = 10.1 %
    ("simclr_wmse", {"train.epochs": 1}, 51_200, ["10 % of --optim.lr 0.003", "warm-up of 500 steps does not end"]),
    ("simclr", {"train.epochs": 3, "optim.warmup_epochs": 3}, 51_200, ["the warm-up of 3 epochs does not end"]),
    ("simclr", {"optim.lr": 0.0}, 51_200, ["0 % of --optim.lr 0: no weight moves"]),
    # 65536 / 50000; keys of an epoch: 97 x 512, a quarter of the images: 24 x 512
    (
        "moco",
        {"method.queue_size": 65536},
        50_000,
        [
            "queue of 65536 keys is larger than the 50000 training images: ",
            "1.3 of an image's negatives are keys of itself",
            "such as 12288",
        ],
    ),
    (
        "moco_sym",
        {"method.queue_size": 65536},
        20_000,
        ["larger than the 20000 training images with two keys each", "1.6 of", "such as 9216"],
    ),
    (
        "approach1",
        {"method.queue_size": 4096, "train.epochs": 4, "train.batch_size": 64, "method.ema": 0.9},
        500,
        ["larger than the 500 training images", "8.2 of"],
    ),
    # 4 epochs of 7 steps of 64
    (
        "approach1",
        {"method.queue_size": 4096, "train.epochs": 4, "train.batch_size": 64, "method.ema": 0.9},
        500,
        ["28 steps enqueue 1792 keys: 2304 of the queue's 4096 stay random vectors"],
    ),
    # 0.99 ** 97 = 37.7 %
    ("byol", {"train.epochs": 1}, 50_000, ["keeps 38 % of its first", "--method.ema 0.99 averages over 100", "has 97"]),
    ("moco", {"method.ema": 1.0}, 50_000, ["never moves: --method.ema is 1"]),
    ("moco", {"train.batch_size": 16}, 50_000, ["statistics of 2 images at a time", "16 / --train.accumulate 1", "8)"]),
    ("moco", {"train.batch_size": 8}, 50_000, ["the statistics of 1 image at a time"]),
    ("simclr", {"train.batch_size": 4, "train.accumulate": 4}, 50_000, ["the loss is 0 whatever the network does"]),
    ("moco", {"eval.bank": 100}, 50_000, ["the 200 nearest of 100 training images: k is cut to 100"]),
]


@pytest.mark.parametrize(("preset", "changes", "images", "parts"), CASES, ids=lambda value: str(value)[:60])
def test_a_warning_has_the_numbers(preset: str, changes: dict[str, Any], images: int, parts: list[str]) -> None:
    config = replace(build(preset, [], None)[0], changes)
    texts = warnings(config, splits(images))
    assert [text for text in texts if all(part in text for part in parts)], texts


@pytest.mark.parametrize(
    "changes",
    [
        {"train.epochs": 2, "optim.cosine_origin": 1},
        {"train.epochs": 2, "optim.schedule": "step", "optim.steps": (0.01,), "optim.step_factor": 0.001},
        {"train.epochs": 4, "optim.warmup_epochs": 3},
    ],
    ids=str,
)
def test_a_mean_of_a_quarter_of_the_rate_is_no_reason_to_warn(changes: dict[str, Any]) -> None:
    texts = warnings(replace(build("moco", [], None)[0], changes), splits(51_200))
    assert not [text for text in texts if "learning rate" in text]


def test_nothing_is_said_about_scores_that_there_will_not_be() -> None:
    config = replace(build("moco", [], None)[0], {"eval.k": 10**6})
    assert len(warnings(config, splits(50_000))) == 1 and warnings(config, splits(50_000, labelled=False)) == []


def test_steps_until_a_queue_is_renewed() -> None:
    steps = {name: queue_steps(build(name, [], None)[0]) for name in ("moco", "moco_sym", "demo", "simclr", "byol")}
    assert steps == {"moco": 8, "moco_sym": 4, "demo": 8, "simclr": 0, "byol": 0}
