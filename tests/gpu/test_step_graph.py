"""The training step as CUDA graphs ends in the same bits as the step that is launched kernel by kernel."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from mixfast.run import machine
from tests.gpu.device import DEVICE

NEEDED = "the trainer needs packages that are missing here (tyro, rich, safetensors): scripts/gpu_check.sh --wheels"
engine = pytest.importorskip("mixfast.run.engine", reason=NEEDED)
tiny_run = pytest.importorskip("tests.tiny_run", reason=NEEDED)
assert_same, open_tiny, records = tiny_run.assert_same, tiny_run.open_tiny, tiny_run.records
pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no GPU")]


@pytest.fixture(autouse=True)
def deterministic() -> Iterator[None]:
    before = torch.are_deterministic_algorithms_enabled()
    machine.set_determinism(True)
    yield
    machine.set_determinism(before)


def trained(out: Path, method: str, **options: Any) -> Any:
    """Twelve steps, of which the recorded run replays nine."""
    run = open_tiny(out, method, DEVICE, train__log_every=3, eval__every=0, **options)
    engine.train(run)
    return run


@pytest.mark.parametrize(
    ("method", "options"),
    [
        ("moco", {"optim__warmup_steps": 8}),
        ("moco_unmix", {"train__accumulate": 2, "method__p_global": 0.25}),
        ("approach1", {"train__accumulate": 2, "train__precision": "fp32"}),
        ("approach1", {"train__precision": "bf16"}),
        ("approach2", {"method__mixture": "saliency", "method__box_per_sample": True}),
        ("simclr_unmix", {"optim__name": "adam", "optim__lr": 3e-3}),
        ("byol_unmix", {"optim__name": "lars", "method__ema_schedule": "cosine", "method__ema_when": "after"}),
    ],
    ids=lambda value: value if isinstance(value, str) else "-".join(map(str, value.values())),
)
def test_same_bits(method: str, options: dict[str, Any], tmp_path: Path) -> None:
    eager, graphed = (trained(tmp_path / graph, method, train__graph=graph, **options) for graph in ("off", "on"))
    assert eager.graph is None and graphed.graph is not None
    ours, theirs = graphed.state_dict(), eager.state_dict()
    for state in (ours, theirs):
        for name in ("seconds", "metrics_bytes", "config"):
            del state[name]
    assert_same(ours, theirs)
    assert records(tmp_path / "on") == records(tmp_path / "off")


def test_stopped_and_continued(tmp_path: Path) -> None:
    """A run that continues records anew; what it saved does not know of graphs."""
    whole = trained(tmp_path / "whole", "approach1", train__graph="off")
    first = open_tiny(tmp_path / "first", "approach1", DEVICE, train__graph="on", train__log_every=3, eval__every=0)
    engine.train_epoch(first)
    first.epoch = first.evaluated = 1
    second = open_tiny(tmp_path / "second", "approach1", DEVICE, train__graph="on", train__log_every=3, eval__every=0)
    second.load(first.save())
    engine.train(second)
    assert_same(second.state_dict()["method"], whole.state_dict()["method"])
    assert_same(second.state_dict()["optimizer"], whole.state_dict()["optimizer"])
