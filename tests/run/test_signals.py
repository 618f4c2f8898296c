"""A run that is killed or stopped at any moment ends, once continued, in the bits of one that was left alone."""

import json
import random
import signal
from pathlib import Path

import pytest

from mixfast.run.signals import Stopped, StopRequest
from tests.tiny_run import KILLED, assert_same, last_state, records, train_in_child, words

pytestmark = pytest.mark.slow

METHODS = ("moco", "approach1")
STEPS = random.Random(0)


def tiny(out: Path, method: str = "approach1") -> list[str]:
    """Two epochs of four steps."""
    return words(out, method, train__epochs=2)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """One uninterrupted run per method."""
    parent = tmp_path_factory.mktemp("undisturbed")
    for method in METHODS:
        assert train_in_child(tiny(parent / method, method), parent / "log") == 0, (parent / "log").read_text()
    return {method: parent / method for method in METHODS}


def assert_same_run(left: Path, right: Path) -> None:
    assert_same(last_state(left), last_state(right))
    assert records(left) == records(right)
    weights = [folder / "export" / "backbone.safetensors" for folder in (left, right)]
    assert weights[0].read_bytes() == weights[1].read_bytes()


@pytest.mark.parametrize("method", METHODS)
def test_killed_at_random_steps_and_continued(method: str, undisturbed: dict[str, Path], tmp_path: Path) -> None:
    out, log = tmp_path / "run", tmp_path / "log"
    first, second = sorted(STEPS.sample(range(1, 8), 2))
    assert train_in_child(tiny(out, method), log, [signal.SIGKILL], first) == KILLED
    assert train_in_child(["--resume", str(out)], log, [signal.SIGKILL], second) == KILLED
    assert train_in_child(["--resume", str(out)], log) == 0, log.read_text()
    assert_same_run(out, undisturbed[method])


@pytest.mark.parametrize(("where", "at_step"), [("write", 8), ("rename", 4)])
def test_killed_while_a_checkpoint_is_written(
    where: str, at_step: int, undisturbed: dict[str, Path], tmp_path: Path
) -> None:
    out, log = tmp_path / "run", tmp_path / "log"
    assert train_in_child(tiny(out), log, [signal.SIGKILL], at_step, where) == KILLED
    assert train_in_child(["--resume", str(out)], log) == 0, log.read_text()
    assert_same_run(out, undisturbed["approach1"])


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)])
def test_signal_saves_and_names_the_way_back(
    number: int, code: int, undisturbed: dict[str, Path], tmp_path: Path
) -> None:
    out, log = tmp_path / "run", tmp_path / "log"
    assert train_in_child(tiny(out), log, [number], at_step=6) == code
    text = log.read_text()
    assert f"continue with: python -m mixfast.train --resume {out}" in text
    assert str(out / "checkpoints" / "last.pt") in text
    assert last_state(out)["step"] == 6  # the step in hand was finished, none was begun
    status = json.loads((out / "status.json").read_text())
    assert (status["state"], status["exit_code"]) == ("stopped", code)
    assert train_in_child(["--resume", str(out)], log) == 0, log.read_text()
    assert_same_run(out, undisturbed["approach1"])
    assert json.loads((out / "status.json").read_text())["state"] == "finished"


def test_second_interrupt_stops_at_once(tmp_path: Path) -> None:
    out = tmp_path / "run"
    code = train_in_child(tiny(out), tmp_path / "log", [signal.SIGTERM, signal.SIGINT], at_step=6)
    assert code == 130
    assert last_state(out)["step"] == 4  # of the last epoch's end: nothing was saved on the way out
    status = json.loads((out / "status.json").read_text())
    assert (status["state"], status["exit_code"]) == ("stopped", 130) and "at once" in status["reason"]
    assert f"continue with: python -m mixfast.train --resume {out}" in (tmp_path / "log").read_text()


def test_second_sigterm_at_the_heels_of_the_first_changes_nothing(tmp_path: Path) -> None:
    """Schedulers send two."""
    out = tmp_path / "run"
    code = train_in_child(tiny(out), tmp_path / "log", [signal.SIGTERM, signal.SIGHUP, signal.SIGTERM], at_step=6)
    assert code == 143
    assert last_state(out)["step"] == 6


def test_request_is_a_flag_between_steps_and_handlers_come_back() -> None:
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(Stopped, match="SIGTERM"), StopRequest() as stop, stop.between_steps():
        assert not stop
        signal.raise_signal(signal.SIGTERM)
        assert stop and stop.number == signal.SIGTERM  # and raises at the end of the block, as nobody obeyed
    with pytest.raises(Stopped, match="SIGHUP"), StopRequest():
        signal.raise_signal(signal.SIGHUP)
        pytest.fail("it should not have come here")
    assert signal.getsignal(signal.SIGTERM) is before
    assert Stopped(signal.SIGINT).exit_code == 130
