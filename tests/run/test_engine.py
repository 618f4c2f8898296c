"""The loop: one update by hand, accumulation, what is logged, and the reaction to NaN, signals and time."""

import math
import signal
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from mixfast.errors import CheckpointError, ConfigError, NonFiniteError
from mixfast.methods.bases.method import Method, Step
from mixfast.run import checkpoint, engine
from mixfast.run.signals import Stopped
from mixfast.run.state import Run
from tests.tiny_run import assert_same, open_tiny, records

pytestmark = pytest.mark.slow


@dataclass(frozen=True)
class Config:
    queue_size: int = 64
    poison: str = ""  # what turns into NaN once a step is reached
    poison_step: int = 0


class Plain(Method):
    """Mean of w * pixels, w a scalar: its gradient is the mean pixel, whatever the split into micro-batches."""

    Config = Config
    summary = "for these tests"

    def __init__(self, config: Config, make_encoder: Any, generators: Any):
        super().__init__(config, make_encoder, generators)
        self.encoder = make_encoder()
        for parameter in self.encoder.parameters():
            parameter.requires_grad_(False)
        self.weight = nn.Parameter(torch.ones(()))
        self.begun, self.updates, self.progress = 0, [], []  # type: ignore[var-annotated]

    def views(self, images: Tensor, augment: Any, generators: Any) -> dict[str, Tensor]:
        return {"query": images.float() / 255}

    def begin(self, progress: Tensor) -> None:
        self.begun += 1
        self.progress.append(progress.item())

    def step(self, views: dict[str, Tensor], generators: Any) -> Step:
        mean = views["query"].mean()
        term, loss = mean.detach(), self.weight * mean
        if self.config.poison and self.begun > self.config.poison_step:
            term = term * math.nan if self.config.poison == "term" else term
            loss = loss * math.inf if self.config.poison == "loss" else loss
            loss = loss + (self.weight * 0).sqrt() if self.config.poison == "gradient" else loss
        return Step(loss, {"term": term}, {"keys": views["query"].flatten(1)[:, :2]})

    def update(self, carry: dict[str, Tensor]) -> None:
        self.updates.append(carry["keys"])


METHOD = Plain


def plain(out: Path, **changes: Any) -> Run:
    without = {"optim__momentum": 0.0, "optim__weight_decay": 0.0, "optim__lr": 0.5, **changes}
    return open_tiny(out, "tests.run.test_engine", **without)


@pytest.mark.parametrize("accumulate", [1, 2, 4])
def test_one_update_by_hand(accumulate: int, tmp_path: Path) -> None:
    run = plain(tmp_path, train__accumulate=accumulate)
    images = run.batches.images[:16]
    means = engine.optimiser_step(run, images, check=True)
    mean = (images.double() / 255).mean().item()
    assert run.method.weight.item() == pytest.approx(1 - 0.5 * mean, abs=1e-6)
    values = {name: value.item() for name, value in means.items()}
    assert values == pytest.approx({"loss": mean, "term": mean, "total_weight": 1.0})
    assert run.method.weight.grad is None
    # one optimiser step: the follower moves once, all keys are enqueued together and in order
    assert run.method.begun == 1 and len(run.method.updates) == 1
    assert torch.equal(run.method.updates[0], (images.float() / 255).flatten(1)[:, :2])


def test_rate_follows_the_schedule_and_records_count(tmp_path: Path) -> None:
    run = plain(tmp_path, train__log_every=3, eval__every=0, eval__diagnostics=(), train__checkpoint_every=0)
    engine.train(run)
    train = [record for record in records(tmp_path) if record["kind"] == "train"]
    # every third step, and the ends of the epochs of 4 steps
    assert [(record["step"], record["epoch"]) for record in train] == [
        (3, 1), (4, 1), (6, 2), (8, 2), (9, 3), (12, 3)
    ]  # fmt: skip
    rates = [0.25 * (1 + math.cos(math.pi * epoch / 3)) for epoch in (1, 1, 2, 2, 3, 3)]
    assert [record["lr"] for record in train] == pytest.approx(rates)
    others = [record["kind"] for record in records(tmp_path) if record["kind"] != "train"]
    assert others == ["baseline", "baseline", "epoch", "epoch", "eval", "diagnostics", "epoch"]
    assert (run.step, run.epoch, run.steps) == (12, 3, 12)


def test_rate_rises_with_every_step_of_a_warm_up(tmp_path: Path) -> None:
    run = plain(tmp_path, optim__warmup_steps=6, optim__schedule="step", optim__steps=(0.5,), eval__every=0)
    engine.train(run)
    rates = [record["lr"] for record in records(tmp_path) if record["kind"] == "train"]
    # three epochs of four steps; half of the training ends inside the second epoch, so the third has a tenth
    assert rates == pytest.approx([0.5 * min(1, step / 6) for step in range(1, 9)] + [0.05] * 4)


def test_method_is_told_the_share_of_the_steps_that_are_done(tmp_path: Path) -> None:
    run = plain(tmp_path)
    engine.train(run)
    assert run.method.progress == pytest.approx([step / 12 for step in range(12)])


def test_recorded_loss_is_the_mean_since_the_last_record(tmp_path: Path) -> None:
    run = plain(tmp_path, optim__lr=0.0, train__log_every=4)
    losses = []
    step = engine.optimiser_step

    def remember(run: Run, images: Tensor, check: bool) -> dict[str, Tensor]:
        losses.append((images.double() / 255).mean().item())
        return step(run, images, check)

    engine.optimiser_step = remember
    try:
        engine.train_epoch(run)
    finally:
        engine.optimiser_step = step
    assert records(tmp_path)[0]["loss"] == pytest.approx(sum(losses) / 4, rel=1e-6)


def test_the_printed_loss_is_the_mean_over_the_epoch_and_the_weights(tmp_path: Path, capsys: Any) -> None:
    """Records of 3, 1, 2 and 2 steps; the row and the record of an epoch count each of its four steps once."""
    run = open_tiny(tmp_path, "approach1", train__log_every=3, train__epochs=2, eval__every=0)
    steps: list[dict[str, float]] = []
    add = run.meter.add

    def remember(values: dict[str, Tensor]) -> None:
        steps.append({name: value.item() for name, value in values.items()})
        add(values)

    run.meter.add = remember  # type: ignore[method-assign]
    engine.train(run)
    epochs = [record for record in records(tmp_path) if record["kind"] == "epoch"]
    rows = [line.split() for line in capsys.readouterr().out.splitlines() if line.startswith("approach1 ")]
    assert [(record["epoch"], record["step"]) for record in epochs] == [(1, 4), (2, 8)] and len(rows) == 2
    for number, (record, row) in enumerate(zip(epochs, rows, strict=True)):
        of_epoch = steps[4 * number : 4 * number + 4]
        means = {name: sum(step[name] for step in of_epoch) / 4 for name in of_epoch[0]}
        assert {name: record[name] for name in means} == pytest.approx(means, rel=1e-6)
        # one lam and three times 1 - lam beside the original term, whose weight is 1
        assert means["total_weight"] == pytest.approx(4 - 2 * means["lam"], rel=1e-6)
        assert row[1:4] == [
            str(number + 1), f"{record['lr']:.3g}", f"{means['loss'] / means['total_weight']:.3f}"
        ]  # fmt: skip
        assert record["lr"] == pytest.approx(0.03 * (1 + math.cos(math.pi * (number + 1) / 2)))


@pytest.mark.parametrize("stop_at", [1, 3, 4])  # of the four steps of an epoch: recorded are the third and the last
def test_an_epoch_in_two_parts_prints_the_row_of_a_whole_one(stop_at: int, tmp_path: Path, capsys: Any) -> None:
    options: dict[str, Any] = {"train__log_every": 3, "train__epochs": 1, "eval__every": 0, "optim__cosine_origin": 0}
    engine.train(open_tiny(tmp_path / "whole", "moco", **options))
    first = open_tiny(tmp_path / "parts", "moco", **options)
    begin = first.method.begin

    def begin_and_stop(progress: Tensor) -> None:
        first.stop.number = signal.SIGTERM * (first.step + 1 == stop_at)
        begin(progress)

    first.method.begin = begin_and_stop
    with pytest.raises(Stopped):
        engine.train(first)
    second = open_tiny(tmp_path / "parts", "moco", **options)
    second.load(checkpoint.find(tmp_path / "parts"))
    engine.train(second)
    whole, parts = (line.split() for line in capsys.readouterr().out.splitlines() if line.startswith("moco "))
    assert whole[:6] == parts[:6] and float(parts[2]) == 0.06 and float(parts[3]) > 0
    assert records(tmp_path / "parts") == records(tmp_path / "whole")


@pytest.mark.parametrize(
    ("poison", "message"),
    [
        ("loss", r"loss = -?inf; gradient of weight = inf"),
        ("term", "term = nan"),
        ("gradient", "gradient of weight = (nan|inf)"),
    ],
)
def test_non_finite_stops_before_the_weights_move(poison: str, message: str, tmp_path: Path) -> None:
    run = plain(tmp_path, method__poison=poison, method__poison_step=5)
    with pytest.raises(NonFiniteError, match=rf"step 5 \(epoch 1\), precision fp32: {message}") as caught:
        engine.train(run)
    assert caught.value.exit_code == 5
    assert "python -m mixfast.evaluate replay" in str(caught.value) and str(tmp_path / "nonfinite.pt") in str(
        caught.value
    )
    assert run.step == 5 and run.method.weight.isfinite()
    saved = torch.load(tmp_path / "nonfinite.pt", weights_only=True)
    assert saved["images"].shape == (16, 3, 16, 16) and saved["step"] == 5


ADAM = {"optim__name": "adam", "optim__lr": 3e-3, "optim__warmup_steps": 6, "optim__schedule": "step"}
LARS = {"optim__name": "lars", "method__ema_schedule": "cosine", "method__ema_when": "after"}


@pytest.mark.parametrize(
    ("method", "options", "stop_at"),
    [
        *(("moco", {}, 1), ("approach1", {}, 4), ("approach2", {}, 7)),  # the first step, an epoch's last, one inside
        *(("simclr_unmix", ADAM, 3), ("byol_unmix", LARS, 5)),
    ],
)
def test_stopped_and_continued_in_process_is_the_same_run(
    method: str, options: dict[str, Any], stop_at: int, tmp_path: Path
) -> None:
    changes = {"train__accumulate": 2, "train__epochs": 2, "eval__diagnostics": (), **options}
    whole = open_tiny(tmp_path / "whole", method, **changes)
    engine.train(whole)
    first = open_tiny(tmp_path / "parts", method, **changes)
    begin = first.method.begin

    def begin_and_stop(progress: Tensor) -> None:
        first.stop.number = signal.SIGTERM * (first.step + 1 == stop_at)
        begin(progress)

    first.method.begin = begin_and_stop
    with pytest.raises(Stopped) as stopped:
        engine.train(first)
    assert stopped.value.exit_code == 143 and first.step == stop_at
    second = open_tiny(tmp_path / "parts", method, **changes)
    second.load(checkpoint.find(tmp_path / "parts"))
    assert second.step == stop_at
    engine.train(second)
    ours, theirs = second.state_dict(), whole.state_dict()
    for state in (ours, theirs):
        del state["seconds"], state["metrics_bytes"]
    assert_same(ours, theirs)
    assert records(tmp_path / "parts") == records(tmp_path / "whole")


def test_old_checkpoint_is_renewed_inside_an_epoch(tmp_path: Path) -> None:
    run = plain(tmp_path, train__checkpoint_seconds=1e-9)
    engine.train_epoch(run)
    assert checkpoint.load(tmp_path / "checkpoints" / "last.pt")["step"] == 4
    assert checkpoint.load(tmp_path / "checkpoints" / "previous.pt")["step"] == 3


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"optim__lr": 0.7}, r"another configuration:\n  optim.lr: saved 0.06, wanted 0.7"),
        ({"model__width": 16}, r"another configuration:\n  model.width: saved 8, wanted 16"),
        ({"seed": 1}, r"another configuration:\n  seed: saved 0, wanted 1"),
    ],
)
def test_checkpoint_of_another_run_is_refused(changes: dict[str, Any], message: str, tmp_path: Path) -> None:
    path = open_tiny(tmp_path / "a", "moco").save()
    with pytest.raises(CheckpointError, match=message):
        open_tiny(tmp_path / "b", "moco", **changes).load(path)


def test_checkpoint_of_other_images_or_weights_is_refused(tmp_path: Path) -> None:
    run = open_tiny(tmp_path, "moco")
    state = run.state_dict()
    path = checkpoint.save(tmp_path, {**state, "data": {**state["data"], "crc32": 1}})
    with pytest.raises(CheckpointError, match="trained on other images"):
        run.load(path)
    path = checkpoint.save(tmp_path, {**state, "method": {"fc": torch.zeros(1)}})
    with pytest.raises(CheckpointError, match=r"keys missing .*1 unexpected \(fc\)"):
        run.load(path)
    wrong = {**state["method"], "queues.whole": torch.zeros(1, 1)}
    path = checkpoint.save(tmp_path, {**state, "method": wrong})
    with pytest.raises(CheckpointError, match="another architecture"):
        run.load(path)


def test_batch_larger_than_the_data_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"--train.batch_size must be at most the 64 training images; got 128"):
        open_tiny(tmp_path, "moco", train__batch_size=128, method__queue_size=128)


def test_bf16_and_memory_formats_train(tmp_path: Path) -> None:
    losses = {}
    for name, changes in {
        "fp32": {},
        "contiguous": {"train__memory_format": "contiguous"},
        "bf16": {"train__precision": "bf16"},
    }.items():
        run = open_tiny(tmp_path / name, "approach1", **changes)
        losses[name] = engine.optimiser_step(run, run.batches.images[:16], check=True)["loss"].item()
        assert all(p.dtype == torch.float32 for p in run.method.parameters())
    assert losses["contiguous"] == pytest.approx(losses["fp32"], rel=1e-5)
    # 8 bits of mantissa in the encoder: the sum of five terms of about 4 moves in its third digit
    assert losses["bf16"] == pytest.approx(losses["fp32"], rel=2e-2) and losses["bf16"] != losses["fp32"]
