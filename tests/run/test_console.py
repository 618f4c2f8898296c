"""Lines, the log file, and the bar on a terminal."""

import io
from pathlib import Path

import pytest
import torch

from mixfast.run.clock import Clock
from mixfast.run.console import QUIET_SECONDS, Console, duration
from mixfast.run.streams import steady_streams


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_lines_are_plain_and_logged(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with Console(tmp_path / "log.txt") as console:
        task = console.task("moco", total=10)
        task.update(5, "loss 1")
        console.line("epoch [1] 50 %")
        task.close()
        console.log("only here")
    assert capsys.readouterr().out == "epoch [1] 50 %\n"  # no bar, no colours, brackets kept
    assert (tmp_path / "log.txt").read_text() == "epoch [1] 50 %\nonly here\n"


def test_bytes_that_are_no_text_are_shown_as_escapes(tmp_path: Path) -> None:
    """Names of files may be of any bytes."""
    shown = io.BytesIO()
    with pytest.MonkeyPatch.context() as patch:
        stream = io.TextIOWrapper(shown, "utf-8", "strict")
        patch.setattr("sys.stdout", stream)
        with steady_streams():
            Console(tmp_path / "log.txt").line("caf\udce9.png")
    assert shown.getvalue() == b"caf\\udce9.png\n" == (tmp_path / "log.txt").read_bytes()


def test_terminal_shows_a_bar_with_note(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = Terminal()
    monkeypatch.setattr("sys.stdout", terminal)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "120")
    with Console(tmp_path / "log.txt") as console:
        task = console.task("moco", total=10)
        task.update(5, "loss 1.25   300 img/s   data wait 0.1 %")
        console.line("epoch [1]")
        assert not console.silent_for_long()
    shown = terminal.getvalue()
    assert "moco" in shown and "50 %" in shown and "300 img/s" in shown and "epoch [1]" in shown
    assert (tmp_path / "log.txt").read_text() == "epoch [1]\n"


@pytest.mark.parametrize("columns", ["40", "60"])
def test_a_narrow_terminal_keeps_the_percentage(columns: str, monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = Terminal()
    monkeypatch.setattr("sys.stdout", terminal)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", columns)
    with Console() as console:
        console.task("approach1", total=100).update(37, "loss 14.93   482 images/s   data wait 3 %")
    assert " 37 %" in terminal.getvalue() and "loss" in terminal.getvalue()


def test_a_plain_log_shows_signs_of_life(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    monkeypatch.setattr("time.monotonic", lambda: now[0])
    console = Console()
    now[0] += QUIET_SECONDS - 1
    assert not console.silent_for_long()
    now[0] += 2
    assert console.silent_for_long()


def test_durations() -> None:
    assert [duration(seconds) for seconds in (0, 59.6, 61, 3600, 36_005)] == [
        "0:00",
        "1:00",
        "1:01",
        "1:00:00",
        "10:00:05",
    ]


def test_clock_charges_laps_to_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    times = iter([0.0, 1.0, 3.0, 10.0, 10.5])
    monkeypatch.setattr("time.perf_counter", lambda: next(times))
    clock = Clock(torch.device("cpu"))
    clock.lap("data")
    clock.lap("forward")
    clock.skip()
    clock.lap("data")
    assert clock.part == "data"
    assert clock.seconds() == {"data": 1.5, "forward": 2.0} and clock.seconds() == {}


def test_clock_charges_a_block_as_one_part(monkeypatch: pytest.MonkeyPatch) -> None:
    times = iter([0.0, 1.0, 3.0])
    monkeypatch.setattr("time.perf_counter", lambda: next(times))
    clock = Clock(torch.device("cpu"))
    with pytest.raises(KeyError), clock.one_part("failed"):
        raise KeyError
    with clock.one_part("whole"):
        clock.lap("lap")
        with clock.inside("part"):
            clock.lap("lap")
    assert clock.part == "whole"
    clock.lap("after")
    assert clock.seconds() == {"whole": 1.0, "after": 2.0}
