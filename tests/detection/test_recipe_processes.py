"""Recipes in several processes: the same detector as of one, in float64, and the command itself."""

import json
from collections.abc import Callable
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from mixfast import world
from mixfast.config.arguments import parse
from mixfast.detection.originals import OriginalFiles
from mixfast.errors import ConfigError
from mixfast.evaluate import recipe
from mixfast.evaluate.detect import Detect
from mixfast.evaluate.recipe_training import Training, precise_statistics, predict, train_step
from mixfast.evaluate.runs import load_runs
from mixfast.models.split_bn import convert_split_bn
from mixfast.run.console import Console
from mixfast.train.__main__ import main as train
from tests.detection.annotated import coco, voc
from tests.tiny_run import train_in_children, words
from tests.worlds import largest_difference, together

pytest.importorskip("torchvision")
pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("command_settings")]

STEPS = 3
CASES = {"voc-c4-24k": 1} | ({"coco-fpn-1x": 2} if find_spec("pycocotools") else {})  # --accumulate


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run r8, and folders voc and coco of 20 photographs."""
    place = tmp_path_factory.mktemp("recipes")
    changes = {"train__epochs": 1, "optim__cosine_origin": 0, "eval__every": 0, "data__scenes": 16}
    assert train([*words(place / "r8", "moco", **changes), "--eval.no-baselines"]) == 0
    voc(place, 20)
    coco(place, 20)
    return place


def command(place: Path, name: str, *more: str) -> list[str]:
    data = ["voc", str(place / "voc")]
    if name != "voc-c4-24k":
        data = ["coco", *[str(place / "coco"), str(place / "instances.json")] * 2]
    return [str(place / "r8"), "--threads", "1", "--dry-run", "--recipe", name, "--data", *data, *more]


def open_double(place: Path, name: str, accumulate: int, out: Path) -> tuple[Training, recipe.RecipeData]:
    """A training at step 0 whose detector and images are float64."""
    options = parse(Detect, command(place, name, "--accumulate", str(accumulate)), "detect")
    (run,) = load_runs(options, print_line=lambda _: None)
    _, chosen = recipe.chosen(options)
    data = recipe.load(options, chosen)
    folder = out / name
    world.current().first(partial(folder.mkdir, exist_ok=True))
    training = recipe.prepare(options, run, chosen, data, 0, folder)
    training.model.double()
    plain: Callable[[Any], list[torch.Tensor]] = training.images
    training.images = lambda shots: [image.double() for image in plain(shots)]  # type: ignore[method-assign]
    return training, data


def after(training: Training, data: recipe.RecipeData, skip: int) -> dict[str, Any]:
    """Losses of the remaining steps, then the state, and what is found in the test's photographs."""
    training.model.train()
    losses = [train_step(training, parts) for parts in training.batches("recipe", skip, STEPS)]
    state = {"losses": losses, "weights": {name: value.clone() for name, value in training.model.state_dict().items()}}
    precise_statistics(training)
    found, runs = predict(training, OriginalFiles(data.test, data.class_names), Console(quiet=True))
    return {**state, "precise": training.model.state_dict(), "found": found._asdict(), "runs": runs}


def normed() -> list[torch.Tensor]:
    """8 maps of regions, of which the first of two processes has 3: normalised, their gradients, mean and variance."""
    norm = convert_split_bn(nn.BatchNorm2d(8).double(), 1, name="the norm")
    norm.momentum = None
    maps, slopes = torch.randn(2, 8, 8, 2, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    own = {1: slice(8), 2: slice(3) if world.current().rank == 0 else slice(3, 8)}[world.current().size]
    rows = maps[own].requires_grad_()
    values = norm(rows)
    values.backward(slopes[own])
    return [values.detach(), rows.grad, norm.running_mean, norm.running_var]


def whole(place: Path, out: Path) -> dict[str, Any]:
    """By recipe, what a training gives; its checkpoint is of step 1."""
    found: dict[str, Any] = {"normed": normed()}
    for name, accumulate in CASES.items():
        training, data = open_double(place, name, accumulate, out)
        training.model.train()
        (first,) = (train_step(training, parts) for parts in training.batches("recipe", 0, 1))
        training.save()
        found[name] = {"first": first, **after(training, data, 1)}
    return found


@pytest.fixture(scope="module")
def one(trained: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return whole(trained, tmp_path_factory.mktemp("one"))


@pytest.fixture(scope="module")
def two(trained: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[dict[str, Any]]]:
    place = tmp_path_factory.mktemp("two")
    return place, together(whole, 2, place, trained)


@pytest.mark.parametrize("name", CASES)
def test_two_processes_train_the_detector_of_one(name: str, one: dict[str, Any], two: Any) -> None:
    first, second = (found[name] for found in two[1])
    assert largest_difference(first, second)[0] == 0
    difference, where = largest_difference(one[name], first)
    assert difference < 1e-10, (difference, where)
    assert all(loss > 0 for losses in first["losses"] for loss in losses.values())


@pytest.mark.parametrize("name", CASES)
def test_one_process_continues_what_two_began(name: str, trained: Path, one: dict[str, Any], two: Any) -> None:
    training, data = open_double(trained, name, CASES[name], two[0])
    training.load(Console(quiet=True))
    assert training.step == 1
    again = after(training, data, 1)
    difference, where = largest_difference({key: one[name][key] for key in again}, again)
    assert difference < 1e-10, (difference, where)


def test_batch_norm_of_unequally_many_regions(one: dict[str, Any], two: Any) -> None:
    """Each process has as many regions as its images give."""
    first, second = (found["normed"] for found in two[1])
    for whole_batch, left, right in zip(one["normed"][:2], first, second, strict=False):
        torch.testing.assert_close(torch.cat([left, right]), whole_batch, atol=1e-12, rtol=0)
    for whole_batch, left, right in zip(one["normed"][2:], first[2:], second[2:], strict=True):
        torch.testing.assert_close(left, whole_batch, atol=1e-12, rtol=0)
        assert torch.equal(left, right)


def test_parts_that_processes_cannot_share_are_refused(trained: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    options = parse(Detect, command(trained, "voc-c4-24k", "--accumulate", "4"), "detect")
    monkeypatch.setattr(recipe, "current", lambda: world.World(size=2))
    with pytest.raises(ConfigError, match="--accumulate must divide the batch of 4 among 2 processes; got 4"):
        recipe.chosen(options)


def test_the_command_in_two_processes(trained: Path, tmp_path: Path) -> None:
    log, out = tmp_path / "log", tmp_path / "out"
    given = ["detect", *command(trained, "voc-c4-24k", "--out", str(out))]
    assert train_in_children(given, log, 2, program="evaluate") == [0, 0], log.read_text()
    folder = out / "recipe-voc-c4-24k-seed0-dry"
    assert log.read_text().count("training voc-c4-24k: 4 steps of 4") == 1
    assert log.read_text().count(str(folder / "result.json")) == 1
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [4]
    report = json.loads((folder / "result.json").read_text())
    assert report["settings"]["processes"] == 2
