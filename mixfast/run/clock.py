"""Measures where the time of a run goes, without waiting for the device inside a step."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch


class Clock:
    """Seconds by part: `lap(name)` charges the time since the last lap to `name`, without that of `inside` blocks.

    On a GPU the laps are events on the stream, read when `seconds()` is called (at a record, where the host waits
    anyway); elsewhere they are the host's clock.
    """

    def __init__(self, device: torch.device):
        self._cuda = device.type == "cuda"
        self._parts: dict[str, float] = {}
        self._events: list[tuple[str, torch.cuda.Event, torch.cuda.Event]] = []
        self._unnamed: list[tuple[Any, Any]] = []  # intervals before an `inside` block: the next lap names them
        self.part = "start"  # the last part that ended, named in error messages
        self._in_one_part = False  # inside a block of `one_part`
        self.skip()

    def _now(self) -> Any:
        if not self._cuda:
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def skip(self) -> None:
        """Drop the time since the last lap."""
        self._last, self._unnamed = self._now(), []

    def lap(self, name: str) -> None:
        """Charge the time since the last lap to `name`."""
        if self._in_one_part:
            return
        now = self._now()
        for start, end in (*self._unnamed, (self._last, now)):
            self._charge(name, start, end)
        self._last, self._unnamed, self.part = now, [], name

    @contextmanager
    def inside(self, name: str) -> Iterator[None]:
        """Charge the time of the block to `name`, and not to the lap or block around it."""
        if self._in_one_part:
            yield
            return
        start = self._now()
        interrupted = [*self._unnamed, (self._last, start)]
        self._last, self._unnamed = start, []
        try:
            yield
        finally:
            self.lap(name)
            self._unnamed = interrupted

    @contextmanager
    def one_part(self, name: str) -> Iterator[None]:
        """Charge the time from the last lap to the end of the block to `name`, and ignore laps and parts in the block.

        For work that is recorded as a CUDA graph: events inside would be recorded too and not measure a replay.
        """
        self._in_one_part = True
        try:
            yield
        finally:
            self._in_one_part = False
        self.lap(name)

    def _charge(self, name: str, start: Any, end: Any) -> None:
        if self._cuda:
            self._events.append((name, start, end))
        else:
            self._parts[name] = self._parts.get(name, 0.0) + end - start

    def seconds(self) -> dict[str, float]:
        """Seconds by part since the last call; starts again at 0. Waits for the device."""
        if self._events:
            self._events[-1][2].synchronize()
            for name, start, end in self._events:
                self._parts[name] = self._parts.get(name, 0.0) + start.elapsed_time(end) / 1000
            self._events.clear()
        parts, self._parts = self._parts, {}
        return parts
