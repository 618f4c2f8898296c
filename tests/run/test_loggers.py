"""--train.log through the trainer: what TensorBoard's files hold, and the calls that W&B and MLflow get.

W&B and MLflow are stand-ins with the functions that their documentation describes; each call is written to a file.
"""

import json
from pathlib import Path
from typing import Any

import pytest

from mixfast.errors import PlatformError
from mixfast.run.loggers import Loggers, check
from mixfast.train.__main__ import main
from tests.tiny_run import process_settings_kept, words

RECORDER = """
import json, os
def said(call, *positional, **named):
    with open(os.environ["CALLS"], "a") as file:
        file.write(json.dumps([call, list(positional), named], default=str) + "\\n")
"""
WANDB = """
from recorder import said
class Settings:
    def __init__(self, console): self.console = console
def Image(path): return f"image {path}"
class Run:
    def define_metric(self, name, step_metric): said("define_metric", name, step_metric=step_metric)
    def log(self, data): said("log", data)
    def finish(self, exit_code): said("finish", exit_code=exit_code)
def init(*, project, name, id, resume, reinit, dir, config, settings):
    assert reinit == "create_new" and resume == "allow"
    said("init", project=project, name=name, id=id, resume=resume, dir=dir, config=config, console=settings.console)
    return Run()
"""
MLFLOW = """
from types import SimpleNamespace
from recorder import said
class MlflowClient:
    def get_experiment_by_name(self, name): return None
    def create_experiment(self, name): said("create_experiment", name); return "7"
    def create_run(self, experiment_id, run_name):
        said("create_run", experiment_id, run_name=run_name)
        return SimpleNamespace(info=SimpleNamespace(run_id="abc"))
    def update_run(self, run_id, status): said("update_run", run_id, status=status)
    def log_batch(self, run_id, metrics=(), params=()):
        assert len(params) <= 100 and len(metrics) <= 1000
        said("log_batch", run_id, metrics=metrics, params=params)
    def log_artifact(self, run_id, local_path, artifact_path): said("log_artifact", run_id, local_path, artifact_path)
    def set_terminated(self, run_id, status): said("set_terminated", run_id, status)
"""
ENTITIES = """
def Metric(key, value, timestamp, step): return [key, value, step]
def Param(key, value): return [key, value]
"""
Calls = list[Any]


@pytest.fixture
def calls(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The stand-ins on Python's path; a function that returns what they were called with since its last call."""
    place, log = tmp_path / "stand_ins", tmp_path / "calls"
    (place / "mlflow").mkdir(parents=True)
    for name, text in (
        ("recorder", RECORDER),
        ("wandb", WANDB),
        ("mlflow/__init__", MLFLOW),
        ("mlflow/entities", ENTITIES),
    ):
        (place / f"{name}.py").write_text(text)
    monkeypatch.syspath_prepend(str(place))
    monkeypatch.setenv("CALLS", str(log))
    for name in ("recorder", "wandb", "mlflow", "mlflow.entities"):
        monkeypatch.delitem(__import__("sys").modules, name, raising=False)
    for name in ("WANDB_PROJECT", "MLFLOW_EXPERIMENT_NAME"):
        monkeypatch.delenv(name, raising=False)

    def drain() -> Calls:
        lines = [json.loads(line) for line in log.read_text().splitlines()]
        log.unlink()
        return lines

    return drain


def of(calls: Calls, name: str) -> Calls:
    return [call for call in calls if call[0] == name]


@pytest.mark.slow
def test_every_logger_gets_records_evaluations_and_pictures(calls: Any, tmp_path: Path) -> None:
    event_accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    out = tmp_path / "run"
    small = words(out, "moco", train__epochs=1, optim__schedule="constant", data__scenes=32)
    with process_settings_kept(pictures=True):
        assert main([*small, "--train.log", "tensorboard", "wandb", "mlflow"]) == 0
    found = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    numbers = {
        (f"{line['kind']}{'/' + line['name'] if line['kind'] == 'baseline' else ''}/{key}", line["step"]): value
        for line in found
        for key, value in line.items()
        if key not in ("kind", "name", "step")
    }
    assert ("train/loss", 1) in numbers and ("eval/knn_h", 2) in numbers and ("baseline/untrained/knn_z", 0) in numbers

    events = event_accumulator.EventAccumulator(str(out / "tensorboard"))
    events.Reload()
    scalars = {(tag, event.step): event.value for tag in events.Tags()["scalars"] for event in events.Scalars(tag)}
    assert scalars == pytest.approx(numbers, rel=1e-6)  # float32
    drawn = {f"plots/{path.stem}" for path in (out / "plots").glob("*.png")}
    assert {"plots/views", "plots/loss", "plots/knn"} <= drawn and set(events.Tags()["images"]) == drawn

    said = calls()
    ((_, _, began),) = of(said, "init")
    assert (began["project"], began["name"], began["console"], began["dir"]) == ("mixfast", "run", "off", str(out))
    assert began["config"]["optim.schedule"] == "constant" and began["config"]["train.epochs"] == 1
    logged = [data for _, (data,), _ in of(said, "log")]
    pairs = {(key, data["step"]): value for data in logged for key, value in data.items() if key != "step"}
    pictures = {key for key, _ in pairs if key.startswith("plots/")}
    assert pictures == drawn and {key: value for key, value in pairs.items() if key[0] not in drawn} == numbers
    assert of(said, "finish") == [["finish", [], {"exit_code": 0}]]

    batches = [named for _, _, named in of(said, "log_batch")]
    assert {(key, step): value for named in batches for key, value, step in named["metrics"]} == numbers
    assert ["optim.schedule", "constant"] in [pair for named in batches for pair in named["params"]]
    assert {Path(call[1][1]).stem for call in of(said, "log_artifact")} == {
        name.removeprefix("plots/") for name in drawn
    }
    assert of(said, "set_terminated") == [["set_terminated", ["abc", "FINISHED"], {}]]

    assert main(["--resume", str(out), "--train.epochs", "2", "--train.log", "wandb", "mlflow"]) == 0
    more = calls()
    assert of(more, "init")[0][2]["id"] == began["id"] and of(more, "update_run")[0][1] == ["abc"]
    assert not of(more, "create_run")
    steps = [data["step"] for _, (data,), _ in of(more, "log") if "train/loss" in data]
    assert steps == [3, 4]


def test_a_logger_that_fails_is_named_and_training_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    written: list[int] = []

    class Lost:
        def __init__(self, *_: Any) -> None: ...

        def record(self, step: int, numbers: dict[str, float]) -> None:
            written.append(step)
            raise OSError("no network")

    lines: list[str] = []
    monkeypatch.setattr("mixfast.run.loggers.LOGGERS", {"wandb": (Lost, "json")})
    with Loggers() as loggers:
        loggers.open(["wandb"], tmp_path, {}, 0, lines.append)
        for step in (1, 2):
            loggers.record({"kind": "train", "step": step, "loss": 0.5})
    assert written == [1] and lines == ["warning: wandb takes no more (no network); metrics.jsonl has every record"]


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "wandb", None)
    with pytest.raises(PlatformError, match=r"^--train.log wandb needs a package .*: pip install wandb\."):
        check(["wandb"])
