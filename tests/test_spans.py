"""Spans: what a recorder sees of them, and that nothing is left when it is gone."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch

from mixfast.run import engine
from mixfast.spans import recording, span
from tests.tiny_run import open_tiny


class Log:
    """Writes down where parts begin and end."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        self.lines.append(name)
        try:
            yield
        finally:
            self.lines.append(f"end of {name}")


@span("doubling")
def double(value: int) -> int:
    """Twice the value."""
    with span(lambda: "inside"):
        return 2 * value


def test_parts_are_seen_in_the_order_in_which_they_run() -> None:
    log = Log()
    assert double(1) == 2
    with recording(log.part):
        assert double(2) == 4
    assert double(3) == 6
    assert log.lines == ["doubling", "inside", "end of inside", "end of doubling"]
    assert (double.__name__, double.__doc__) == ("double", "Twice the value.")


def test_an_error_ends_its_parts_and_the_recording() -> None:
    outer, inner = Log(), Log()
    with recording(outer.part):
        with pytest.raises(ZeroDivisionError), recording(inner.part), span("first"):
            raise ZeroDivisionError
        double(1)
    double(1)
    assert inner.lines == ["first", "end of first"] and len(outer.lines) == 4


def test_torch_s_profiler_shows_the_parts_of_a_step(tmp_path: Path) -> None:
    run = open_tiny(tmp_path, "approach1")
    with torch.profiler.profile() as profile, recording(torch.profiler.record_function):
        engine.optimiser_step(run, run.batches.images[:16], check=True)
    counts = {event.key: event.count for event in profile.key_averages()}
    # approach 1: two passes with gradient and two without; one call for all terms; encoder and region head follow
    expected = {"mix": 1, "augment": 1, "query forward": 2, "key forward": 2, "shuffle": 2, "pooling": 2}
    expected |= {"losses": 1, "EMA": 2, "record": 1}
    assert {name: counts.get(name) for name in expected} == expected
