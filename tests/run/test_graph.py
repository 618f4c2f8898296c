"""A step through recordings is the step without them, bit by bit; a stand-in for CUDA graphs records on the CPU."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from mixfast.errors import ConfigError, NonFiniteError
from mixfast.run import engine
from mixfast.run.graph import WARM_UP, StepGraph
from mixfast.run.state import Run
from tests.tiny_run import assert_same, open_tiny, records

pytestmark = pytest.mark.slow


def tensors(value: Any) -> list[Tensor]:
    """Those in a tensor, or in dicts, tuples and lists of such."""
    if isinstance(value, dict | tuple | list):
        return [each for item in (value.values() if isinstance(value, dict) else value) for each in tensors(item)]
    return [value] if isinstance(value, Tensor) else []


class CpuRecorder:
    """A recording moves nothing and leaves results unwritten; a replay works again and overwrites them in place.

    As with a CUDA graph, results keep their memory, and .grad is what it was when the recording began.
    """

    def __init__(self, run: Run):
        self.run, self.recordings, self.replays = run, 0, 0

    def warm_up(self, work: Callable[[], Any]) -> Any:
        return work()

    def record(self, work: Callable[[], Any]) -> tuple[Callable[[], None], Any]:
        self.recordings += 1
        parameters = list(self.run.method.parameters())
        given = [parameter.grad for parameter in parameters]
        moving = [*parameters, *self.run.method.buffers(), *tensors(dict(self.run.optimizer.state))]
        before, draws = [tensor.detach().clone() for tensor in moving], self.run.generators.state_dict()
        result = work()
        made = [parameter.grad for parameter in parameters]
        with torch.no_grad():
            for tensor, value in zip(moving, before, strict=True):
                tensor.copy_(value)
            for tensor in (*tensors(result), *tensors(made)):
                tensor.fill_(float("nan"))
        self.run.generators.load_state_dict(draws)

        def replay() -> None:
            self.replays += 1
            for parameter, gradient in zip(parameters, given, strict=True):
                parameter.grad = gradient
            fresh = work()
            fresh_gradients = [parameter.grad for parameter in parameters]
            for old, new in zip(tensors((result, made)), tensors((fresh, fresh_gradients)), strict=True):
                old.copy_(new)

        return replay, result


def recorded(run: Run) -> CpuRecorder:
    """Send the halves of the run's step through recordings."""
    recorder = CpuRecorder(run)
    run.graph = StepGraph(run.method.parameters(), recorder)
    return recorder


def state(run: Run) -> dict[str, Any]:
    return {name: value for name, value in run.state_dict().items() if name not in ("seconds", "metrics_bytes")}


ADAM = {"optim__name": "adam", "optim__lr": 3e-3, "optim__warmup_steps": 6, "optim__schedule": "step"}
LARS = {"optim__name": "lars", "method__ema_schedule": "cosine", "method__ema_when": "after"}


@pytest.mark.parametrize(
    ("method", "options"),
    [
        ("moco", {"optim__warmup_steps": 8}),
        ("moco_unmix", {"train__accumulate": 2, "method__p_global": 0.25}),
        ("approach1", {"train__accumulate": 2}),
        ("approach2", {"method__mixture": "saliency", "train__precision": "bf16"}),
        ("simclr_unmix", ADAM),
        ("byol_unmix", LARS),
    ],
)
def test_recorded_run_is_the_run(method: str, options: dict[str, Any], tmp_path: Path) -> None:
    """The rate changes with every epoch or step, the share of the target with every step."""
    changes = {"train__epochs": 2, "train__log_every": 3, "eval__every": 0, "eval.no-baselines": (), **options}
    eager, graphed = (open_tiny(tmp_path / name, method, **changes) for name in ("eager", "graphed"))
    recorder = recorded(graphed)
    for run in (eager, graphed):
        engine.train(run)
    assert (recorder.recordings, recorder.replays) == (2, 2 * (8 - WARM_UP))
    assert_same(state(graphed), state(eager))
    assert records(tmp_path / "graphed") == records(tmp_path / "eager")


def test_recorded_run_continues_one_that_was_not(tmp_path: Path) -> None:
    whole, first, second = (open_tiny(tmp_path / name, "approach1") for name in ("whole", "first", "second"))
    engine.train(whole)
    engine.train_epoch(first)
    first.epoch = first.evaluated = 1
    second.load(first.save())
    recorder = recorded(second)
    engine.train(second)
    assert recorder.replays == 2 * (8 - WARM_UP)
    ours, theirs = state(second), state(whole)
    assert_same(ours["method"], theirs["method"])
    assert_same(ours["optimizer"], theirs["optimizer"])


def test_replay_that_is_not_finite_moves_no_weight(tmp_path: Path) -> None:
    run = open_tiny(tmp_path, "moco")
    recorder = recorded(run)
    images = run.batches.images[:16]
    for _ in range(WARM_UP + 1):
        engine.optimiser_step(run, images, check=True)
    with torch.no_grad():
        run.method.encoder.head.bias.fill_(float("nan"))
    before = {name: value.clone() for name, value in run.method.state_dict().items()}
    with pytest.raises(NonFiniteError, match=r"loss = nan; original = nan; gradient of encoder\.backbone\.conv1"):
        engine.optimiser_step(run, images, check=True)
    assert recorder.replays == 3
    moved = [name for name, value in run.method.state_dict().items() if not torch.equal(value, before[name])]
    left = [name for name in moved if not name.startswith("key_encoder") and "running_" not in name]
    assert [name for name in left if not name.endswith(("num_batches_tracked", "head.bias"))] == []


def test_step_that_cannot_be_recorded() -> None:
    class Capturing:
        def warm_up(self, work: Callable[[], Any]) -> Any:
            return work()

        def record(self, work: Callable[[], Any]) -> tuple[Callable[[], None], Any]:
            try:
                raise RuntimeError("CUDA error: operation not permitted when stream is capturing\nMore.")
            finally:
                raise RuntimeError("CUDA error: operation failed due to a previous error during capture")

    def waits(run: Tensor, one: Tensor) -> None:
        one.item()

    step = StepGraph([], Capturing())
    for _ in range(WARM_UP):
        step(waits, torch.zeros(1), torch.zeros(1))
    with pytest.raises(ConfigError, match=r"graph on: waits .* \(CUDA error: .* is capturing\)\. Leave the option"):
        step(waits, torch.zeros(1), torch.zeros(1))


def test_results_of_earlier_calls_stay() -> None:
    class Plain:
        def warm_up(self, work: Callable[[], Any]) -> Any:
            return work()

        def record(self, work: Callable[[], Any]) -> tuple[Callable[[], None], Any]:
            result = work()
            return lambda: result["sum"].copy_(work()["sum"]), result

    def add(run: Tensor, one: Tensor) -> dict[str, Tensor]:
        return {"sum": run + one}

    step, offset = StepGraph([], Plain()), torch.tensor([10.0])
    results = []
    for number in range(WARM_UP + 3):
        offset.fill_(10.0 * number)
        results.append(step(add, offset, torch.tensor([float(number)]))["sum"])
    assert [result.item() for result in results] == [11.0 * number for number in range(WARM_UP + 3)]
