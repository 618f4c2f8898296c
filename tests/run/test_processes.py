"""Two processes that train one run: one folder, one end for both, and a state to go on from."""

import json
import shutil
import signal
from pathlib import Path
from typing import Any

import pytest

from mixfast.run.processes import launched
from tests.tiny_run import (
    KILLED,
    assert_same,
    last_state,
    records,
    script_in_child,
    train_in_child,
    train_in_children,
    words,
)

pytestmark = pytest.mark.slow

FOUR: dict[str, Any] = {"model__bn_splits": 4, "eval__batch_size": 24, "train__epochs": 2}


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """By torchrun itself."""
    out, place = tmp_path_factory.mktemp("finished") / "run", tmp_path_factory.mktemp("torchrun")
    (place / "torchrun.py").write_text("from torch.distributed.run import main\n\nmain()\n")
    arguments = ["--standalone", "--nproc-per-node", "2", "-m", "mixfast.train", *words(out, **FOUR)]
    assert script_in_child(place / "torchrun.py", arguments, place / "log") == 0, (place / "log").read_text()
    text = (place / "log").read_text()
    for line in ("in each of 2 processes", " epoch       lr", "approach1            2", "report    "):
        assert text.count(line) == 1, text
    return out


def test_one_folder_as_of_one_process(finished: Path, tmp_path: Path) -> None:
    alone = tmp_path / "alone"
    assert train_in_child(words(alone, **FOUR), tmp_path / "log") == 0
    assert [path.name for path in finished.parent.iterdir()] == ["run"]
    assert {path.name for path in finished.iterdir()} - {"plots"} == {path.name for path in alone.iterdir()}
    left, right = records(finished), records(alone)
    assert [list(record) for record in left] == [list(record) for record in right]
    for record, other in zip(left[:3], right[:3], strict=True):  # the baselines, and the first step
        for name, value in record.items():
            assert value == (pytest.approx(other[name], rel=1e-5) if isinstance(value, float) else other[name]), name
    assert_same(last_state(finished)["batches"], last_state(alone)["batches"])
    assert json.loads((finished / "status.json").read_text())["state"] == "finished"


@pytest.mark.parametrize(
    "command",
    [
        ["knn", "--baselines"],
        ["linear", "--epochs", "3"],
        ["linear", "--protocol", "sgd", "--epochs", "2", "--batch-size", "24", "--lr", "0.1", "1"],
        ["detect", "--steps", "2", "--images", "8", "--count", "4", "--seeds", "0", "1", "--supervised-epochs", "1"],
    ],
)
def test_a_run_is_scored_as_by_one_process(command: list[str], finished: Path, tmp_path: Path) -> None:
    folders = [tmp_path / name / "run" for name in ("one", "two")]
    for size, out in enumerate(folders, 1):
        shutil.copytree(finished, out)
        log = tmp_path / f"log{size}"
        words = [*command[:1], str(out), *command[1:], "--threads", "1"]
        assert train_in_children(words, log, size, program="evaluate") == [0] * size, log.read_text()
    left, right = (
        [json.loads(line) for line in (out / "evaluations.jsonl").read_text().splitlines()] for out in folders
    )
    assert len(left) == 1 and [{**line, "time": ""} for line in left] == [{**line, "time": ""} for line in right]


def test_tasks_of_srun_train_the_run_that_torchrun_trains(finished: Path, tmp_path: Path) -> None:
    out, log = tmp_path / "run", tmp_path / "log"
    assert train_in_children(words(out, **FOUR), log, 2, srun=True) == [0, 0], log.read_text()
    assert_same(last_state(out), last_state(finished))
    assert records(out) == records(finished)


def test_the_environment_of_srun() -> None:
    """Task 10 of 11 on three nodes, the second on its own."""
    nodes = {"SLURM_STEP_NODELIST": "gpu[03-04]-a,login1", "SLURM_STEP_TASKS_PER_NODE": "4(x2),3", "SLURM_NODEID": "2"}
    task = {"SLURM_PROCID": "9", "SLURM_STEP_NUM_TASKS": "11", "SLURM_LOCALID": "1"}
    step = {"SLURM_JOB_ID": "4000", "SLURM_STEP_ID": "2"}
    assert launched({**nodes, **task, **step}) == (9, 11, 1, 3, "tcp://gpu03-a:24002")
    chosen = {"MASTER_ADDR": "10.0.0.1", "MASTER_PORT": "29500"}
    assert launched({**nodes, **task, **step, **chosen}) == (9, 11, 1, 3, "tcp://10.0.0.1:29500")
    assert launched({**nodes, **task, "SLURM_JOB_ID": "4000"}) is None
    torchrun = {"RANK": "3", "WORLD_SIZE": "4", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "2"} | chosen
    assert launched({**nodes, **task, **step, **torchrun}) == (3, 4, 1, 2, "env://")


def test_signals_to_one_process_stop_both(finished: Path, tmp_path: Path) -> None:
    """Twice: a scheduler signals the processes, and torchrun passes on the signal that it got."""
    out, log = tmp_path / "run", tmp_path / "log"
    twice = [signal.SIGTERM, signal.SIGTERM]
    assert train_in_children(words(out, **FOUR), log, 2, twice, 5, struck=1) == [143, 143], log.read_text()
    assert log.read_text().count("stopped by SIGTERM; the state is saved") == 1
    assert last_state(out)["step"] == 5
    assert json.loads((out / "status.json").read_text())["state"] == "stopped"
    assert train_in_children(["--resume", str(out)], log, 2) == [0, 0], log.read_text()
    assert_same(last_state(out), last_state(finished))
    assert records(out) == records(finished)


def test_a_killed_process_ends_the_other_and_torchrun_starts_both_again(finished: Path, tmp_path: Path) -> None:
    out, log = tmp_path / "run", tmp_path / "log"
    assert train_in_children(words(out, **FOUR), log, 2, [signal.SIGKILL], 5, struck=1) == [7, KILLED], log.read_text()
    assert "process 0 of 2 lost another process, which ended or does not answer" in log.read_text()
    assert last_state(out)["step"] == 4
    again = {"TORCHELASTIC_RESTART_COUNT": "1", "TORCHELASTIC_MAX_RESTARTS": "3"}
    assert train_in_children(words(out, **FOUR), log, 2, **again) == [0, 0], log.read_text()
    assert_same(last_state(out), last_state(finished))
    assert records(out) == records(finished)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model__bn_splits": 2}, "--model.bn_splits must be 1, or a multiple of 2 for each of the 2 processes"),
        (
            {"model__bn_splits": 1, "train__batch_size": 18},
            "a multiple of --train.accumulate 1 times 2 for each of the 2 processes; got 18, nearest: 16",
        ),
        ({"model__bn_splits": 4, "train__compile": "on"}, "--train.compile on: not with several processes"),
    ],
)
def test_what_cannot_be_shared_is_refused_once(changes: dict[str, Any], message: str, tmp_path: Path) -> None:
    log = tmp_path / "log"
    assert train_in_children(words(tmp_path / "run", "simclr", **changes), log, 2) == [2, 2], log.read_text()
    assert log.read_text().count(message) == 1 and log.read_text().count("error:") == 1
    assert not (tmp_path / "run").exists()
