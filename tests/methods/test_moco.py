"""MoCo: the loss by hand, with and without symmetry."""

import pytest
import torch

from mixfast.config.options import OptimConfig
from mixfast.methods import load
from mixfast.methods.moco import PRESETS
from tests.methods.hand import double, infonce, mean, rows


@torch.no_grad()
def test_loss_by_hand() -> None:
    method, generators, views = double(load("moco"))
    q, k = rows(method.encoder(views["query"]).z), rows(method.key_encoder(views["key"]).z)
    step = method.step(views, generators)
    assert step.loss.item() == pytest.approx(mean(infonce(q, k, method.queues.keys()["whole"])), rel=1e-10)
    torch.testing.assert_close(step.carry["whole"], torch.tensor(k, dtype=torch.float64), atol=1e-10, rtol=0)
    assert step.parts["original"].item() == step.loss.item()


@torch.no_grad()
def test_symmetric_loss_is_the_sum_of_both_directions_and_enqueues_both_keys() -> None:
    method, generators, views = double(load("moco"), symmetric=True)
    queue = method.queues.keys()["whole"]
    q = {name: rows(method.encoder(views[name]).z) for name in ("query", "key")}
    k = {name: rows(method.key_encoder(views[name]).z) for name in ("query", "key")}
    forward = mean(infonce(q["query"], k["key"], queue))
    backward = mean(infonce(q["key"], k["query"], queue))
    step = method.step(views, generators)
    assert step.loss.item() == pytest.approx(forward + backward, rel=1e-10)
    wanted = torch.tensor(k["key"] + k["query"], dtype=torch.float64)
    torch.testing.assert_close(step.carry["whole"], wanted, atol=1e-10, rtol=0)
    assert step.parts["original_swapped"].item() == pytest.approx(backward, rel=1e-10)


def test_an_mlp_head_works_too() -> None:
    method, generators, views = double(load("moco"), head="mlp")
    q, k = rows(method.encoder(views["query"]).z.detach()), rows(method.key_encoder(views["key"]).z)
    wanted = mean(infonce(q, k, method.queues.keys()["whole"]))
    assert method.step(views, generators).loss.item() == pytest.approx(wanted, rel=1e-10)


def test_v1_differs_in_temperature_schedule_and_augmentation() -> None:
    """The rate falls at 60 % and 80 %, epochs 120 and 160 of 200; strong jitter of every image, after the grey."""
    assert PRESETS["moco_v1"] == {
        "method.temperature": 0.07,
        "optim.schedule": "step",
        "optim.steps": (0.6, 0.8),
        "augment.crop_scale": (0.2, 1.0),
        "augment.hue": 0.4,
        "augment.jitter": 1.0,
        "augment.grey_first": True,
    }
    assert OptimConfig().steps == (0.6, 0.9) and OptimConfig().step_factor == 0.1
