"""The profile of a step: parts that add up, the bare passes beside them, and what the command writes."""

import itertools
import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from mixfast.config.options import replace
from mixfast.config.presets import build, presets
from mixfast.errors import ConfigError
from mixfast.models import Encoder
from mixfast.profile import __main__ as profile
from mixfast.profile import measure, memory, output
from mixfast.run import engine
from mixfast.run.clock import Clock
from tests.tiny_run import process_settings_kept

pytestmark = pytest.mark.slow

SMALL: dict[str, Any] = {
    "model.depth": 8, "model.width": 8, "model.dim": 8, "model.bn_splits": 2, "data.size": 16, "train.batch_size": 8,
}  # fmt: skip
CPU, ROOT = torch.device("cpu"), Path(__file__).parents[2]
EVERY_STEP = {"data", "augment", "mix", "query forward", "losses", "forward", "backward", "optimizer", "queue"}
EVERY_STEP |= {"logging", "record", "rest"}
MOMENTUM = {"key forward", "EMA"}


@pytest.fixture
def ticks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every look at the clock is a second later than the one before."""
    count = itertools.count()
    monkeypatch.setattr("time.perf_counter", lambda: float(next(count)))


def tiny(tmp_path: Path, preset: str, **changes: Any) -> Any:
    config = replace(build(preset, [], None)[0], {**SMALL, **changes})
    return measure.prepare(config, CPU, tmp_path)


def test_time_inside_a_part_is_not_charged_to_the_one_around_it(ticks: None) -> None:
    clock = Clock(CPU)  # looks at 0
    with clock.inside("outer"):  # 1
        with clock.inside("inner"):  # 2 to 3
            pass
        with clock.inside("inner"):  # 4 to 5
            pass
    # ended at 6
    clock.lap("lap")  # 7
    assert clock.seconds() == {"inner": 2.0, "outer": 3.0, "lap": 2.0}  # 1-2, 3-4, 5-6; 0-1, 6-7
    assert clock.part == "lap"


KNOWN: dict[str, set[str]] = {
    "moco": MOMENTUM | {"shuffle"},
    "moco_unmix": MOMENTUM | {"shuffle"},
    "approach1": MOMENTUM | {"shuffle", "pooling"},
    "simclr": set(),
    "byol": MOMENTUM | {"heads"},
}


@pytest.mark.parametrize("preset", presets())
def test_parts_of_a_step_add_up(preset: str, tmp_path: Path, ticks: None) -> None:
    run, clock = tiny(tmp_path, preset), measure.Ledger(CPU)
    with measure.measured(run, clock):
        first = time.perf_counter()
        engine.train_epoch(run)  # looks once before it charges anything
        clock.lap("rest")
        last = time.perf_counter()
    parts = clock.drain()
    more = set(parts) - EVERY_STEP
    assert set(parts) >= EVERY_STEP and more == KNOWN.get(preset, more)
    assert sum(parts.values()) == last - first - 2
    assert run.last["step"] == measure.STEPS and clock.drain() == {}


def test_a_step_is_measured_only_within_the_block(tmp_path: Path) -> None:
    run = tiny(tmp_path, "moco")
    clock, ledger = run.clock, measure.Ledger(CPU)
    with pytest.raises(KeyError), measure.measured(run, ledger):
        assert run.clock is ledger
        raise KeyError
    engine.train_epoch(run)
    assert run.clock is clock and ledger.drain() == {}


@pytest.mark.parametrize(
    ("preset", "trained", "followed"), [("moco", 1, 1), ("approach2", 2, 2), ("simclr_unmix", 3, 0)]
)
def test_bare_passes(preset: str, trained: int, followed: int, tmp_path: Path) -> None:
    run = tiny(tmp_path, preset, **{"train.accumulate": 2})
    cost = measure.step_cost(run.config, 16)
    assert (cost.trained, cost.forward_only) == (trained, followed)
    seen: list[tuple[bool, int]] = []
    for module in run.method.modules():
        if isinstance(module, Encoder):
            module.backbone.conv1.register_forward_pre_hook(
                lambda _, inputs: seen.append((torch.is_grad_enabled(), len(inputs[0])))
            )
    weights = run.method.encoder.backbone.conv1.weight
    gradients: list[float] = []
    weights.register_post_accumulate_grad_hook(lambda weight: gradients.append(weight.grad.abs().sum().item()))
    measure.bare_encoder(run, cost)()
    assert seen == 2 * [*followed * [(False, 4)], *trained * [(True, 4)]]
    assert len(gradients) == 2 and min(gradients) > 0 and weights.grad is None


def test_timing_by_hand() -> None:
    rounds = [{"forward": 1.0, "record": 10.0, "query forward": 4.0 + wait} for wait in (0.0, 1.0, 2.0, 3.0, 90.0)]
    steps = [measure.per_step(parts, log_every=20 * measure.STEPS) for parts in rounds]
    assert steps[0] == {"query forward": 4.0, "other": 1.0, "logging": 0.5}
    assert list(steps[0]) == ["query forward", "other", "logging"]
    cost = measure.StepCost(1, 0, 0)
    timing = measure.summary(steps, [{"query forward": 3.0, "backward": 1.0}] * 5, [], cost)
    assert timing.step == {"query forward": 5.0, "other": 1.0, "logging": 0.5}  # the second of five
    assert timing.seconds == 6.5 and timing.ratio == 6.5 / 4
    assert timing.ratios[-1] == 95.5 / 4
    graphed = measure.summary(steps, [{"backward": 4.0}] * 5, [5.0, 4.5, 6.0, 7.0, 8.0], cost)
    assert graphed.graphed == graphed.seconds == 5.0 and graphed.ratio == 1.25


def test_evaluation_is_scaled_to_the_data_set(tmp_path: Path, ticks: None) -> None:
    run = tiny(tmp_path, "moco")  # cifar10: 50,000 and 10,000 images; a tick for 16, two for PROBE_QUERIES
    expected = 60_000 / (measure.STEPS * 8) + 2 * 10_000 / measure.PROBE_QUERIES
    assert measure.evaluation_seconds(run) == pytest.approx(expected)
    unknown = tiny(tmp_path, "moco", **{"data.kind": "folder"})
    assert measure.evaluation_seconds(unknown) is None


def test_peaks_by_hand(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    marks = iter([100, 150, 120, 190, 110])
    monkeypatch.setattr(memory, "resident_bytes", lambda field: next(marks))
    monkeypatch.setattr(memory, "CLEAR", tmp_path / "clear_refs")
    peaks = memory.Peaks(CPU)
    with peaks.inside("augment"):  # 150 before it, 120 in it
        pass
    peaks.lap("forward")
    peaks.lap("backward")
    assert peaks.bytes() == {"augment": 120, "forward": 190, "backward": 110}
    assert (tmp_path / "clear_refs").read_text() == "5"


FOLLOWS = """
import torch
from mixfast.run import machine
from mixfast.profile import memory
assert machine.return_freed_memory()
size, cpu = 8 << 20, torch.device("cpu")
torch.ones(size, dtype=torch.uint8)  # what torch keeps from its first call is not of the tensors
held, peaks = memory.held_bytes(cpu), memory.Peaks(cpu)
tensors = [torch.ones(size // 8, dtype=torch.uint8) for _ in range(8)]
peaks.lap("filled")
del tensors
peaks.lap("still there when it began")
peaks.lap("freed")
found = {name: (peak - held) / size for name, peak in peaks.bytes().items()}
assert 0.95 < found["filled"] < 1.2 and 0.95 < found["still there when it began"] < 1.2 and found["freed"] < 0.2, found
"""


@pytest.mark.skipif(not memory.measurable(CPU), reason="Linux alone tells")
def test_peaks_follow_tensors() -> None:
    """In a process of its own: the setting stays, and other tests have left holes in the heap."""
    done = subprocess.run([sys.executable, "-c", FOLLOWS], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def words(folder: Path, *more: str) -> list[str]:
    sizes = [word for key, value in SMALL.items() for word in (f"--{key}", str(value))]
    return [*more, *sizes, "--train.threads", "1", "--seconds", "0", "--out", str(folder)]


def test_command_writes_what_it_prints(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with process_settings_kept():
        assert profile.main(words(tmp_path, "approach1", "--busy")) == 0
    written = json.loads((tmp_path / "profile.json").read_text())
    assert written["environment"]["clock"] == "processor" and "argv" not in written["environment"]
    (record,) = written["profiles"]
    assert record["shape"] == {
        "depth": 8, "width": 8, "stem": "cifar_s2", "bn_splits": 2, "size": 16, "batch": 8, "queue": 4096
    }  # fmt: skip
    assert record["passes"] == {"trained": 2, "followed": 2} and record["rounds"] == measure.MIN_ROUNDS
    assert set(record["bare_seconds"]) == {"query forward", "key forward", "backward"}
    assert sum(record["seconds"].values()) == pytest.approx(record["step_seconds"])
    assert sum(output.excess(record).values()) == pytest.approx(record["ratio"] - 1)
    assert record["ratio"] == pytest.approx(record["step_seconds"] / sum(record["bare_seconds"].values()))
    assert record["images_per_s"] == pytest.approx(8 / record["step_seconds"])
    assert set(record["peak_bytes"]) >= {"query forward", "backward", "queue"} or not memory.measurable(CPU)
    printed = capsys.readouterr().out
    assert f"{record['ratio']:.3f} x the bare encoder passes" in printed and "pooling" in printed
    assert (tmp_path / "profile.png").stat().st_size > 5000


MINE = """
from mixfast.methods import load
from mixfast.spans import span


class Mine(load("moco")):
    def step(self, views, generators):
        with span("my part"):
            views["query"].square().mean()
        return super().step(views, generators)


METHOD = Mine
"""


def test_a_method_from_elsewhere_shows_its_own_parts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "my_timed_lab").mkdir()
    (tmp_path / "my_timed_lab" / "mine.py").write_text(MINE)
    monkeypatch.syspath_prepend(tmp_path)
    with process_settings_kept():
        assert profile.main(words(tmp_path / "out", "--method", "my_timed_lab.mine")) == 0
    (record,) = json.loads((tmp_path / "out" / "profile.json").read_text())["profiles"]
    assert list(record["seconds"])[-1] == "my part" and record["seconds"]["my part"] > 0
    assert {"augment", "mix", "query forward", "key forward", "losses", "EMA", "queue"} <= set(record["seconds"])
    assert "my part" in record["peak_bytes"] or not memory.measurable(CPU)


RECORD: dict[str, Any] = {
    **{"preset": "moco", "device": "cuda", "precision": "bf16", "memory_format": "channels_last"},
    "shape": {"depth": 18, "width": 64, "stem": "cifar", "size": 32, "batch": 512, "queue": 4096},
    **{"passes": {"trained": 1, "followed": 1}, "bare_seconds": {"query forward": 0.003, "backward": 0.007}},
    **{"seconds": {"augment": 0.001, "query forward": 0.003, "backward": 0.008}, "graphed_seconds": 0.0115},
    **{"step_seconds": 0.0115, "ratio": 1.15, "images_per_s": 44521.7, "peak_bytes": {"backward": 3 << 20}},
    "evaluation": {"seconds": 1.0, "every": 10, "epoch_seconds": 1.1},
}


def test_table_by_hand(tmp_path: Path) -> None:
    lines = [" ".join(line.split()) for line in output.table(RECORD).splitlines()]
    assert lines[0].startswith("moco: ResNet-18 of width 64, stem cifar, 32 px, batch 512, K = 4096, bf16")
    assert lines[-2] == "parts that the bare encoder does not have: 5.0 % of it"  # 10 for views, less 5 by the graph
    assert lines[2:-3] == [
        "augment 1.00 +10.0",
        "query forward 3.00 3.00 +0.0",
        "backward 8.00 7.00 +10.0 3.0",
        "as a graph -0.50 -5.0",
        "step 11.50 10.00 +15.0 3.0",
    ]
    assert output.markdown([RECORD]).splitlines()[2] == (
        "| moco | 1 + 1 | 11.5 | 10.0 | 1.150 | 5.0 | 10.0 | 0.0 | 10.0 | -5.0 | 3 |"
    )
    output.draw(tmp_path / "profile.png", [RECORD, RECORD | {"preset": "other", "peak_bytes": {}}])
    assert (tmp_path / "profile.png").stat().st_size > 5000


def test_shapes_and_options() -> None:
    def shape(*given: str) -> tuple[int, int, str, int]:
        config = profile.configured(profile.understand(["--train.device", "cpu", *given]), "").config
        return config.model.depth, config.model.width, config.model.stem, config.train.batch_size

    assert shape() == (8, 16, "cifar_s2", 64)  # the first run's own
    assert profile.configured(profile.understand(["--train.device", "cpu"]), "moco").config.model.stem == "cifar_s2"
    request = profile.understand(["--shape=imagenet", "--train.batch-size", "128", "--seconds", "3"])
    config = profile.configured(request, "byol").config
    assert (config.model.depth, config.data.size, config.train.batch_size) == (50, 224, 128) and request.seconds == 3
    assert profile.configured(profile.understand(["--shape", "imagenet"]), "moco").config.method.queue_size == 65536
    assert profile.understand(["--all"]).presets() == [name for name in presets() if "imagenet" not in name]
    several = profile.understand(["moco", "byol", "augment_v2", "--method", "simclr"])
    assert several.presets() == ["moco", "byol"] and several.arguments == ["augment_v2", "--method", "simclr"]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["--shape", "big"], "--shape must be one of small, cifar, imagenet, preset; got 'big'"),
        (["--seconds", "long"], "--seconds must be a number; got 'long'"),
        (["moco", "--all"], "omit moco or --all"),
    ],
)
def test_impossible_requests(given: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        profile.understand(given)


def test_processor_seconds_are_none_of_a_gpu(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(profile.machine, "pick_device", lambda wanted: torch.device("cuda"))
    with pytest.raises(ConfigError, match=r"--busy counts the processor's seconds, not those of cuda\. Add --train\."):
        profile.launch(words(tmp_path, "moco", "--busy"))
