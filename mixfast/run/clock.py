"""Measures where the time of a run goes, without waiting for the device inside a step."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch


class Clock:
    """Seconds by part: `lap(name)` charges the time since the last lap to `name`, less what was spent `inside` others.

    On a GPU the laps are events on the stream, read when `seconds()` is called (at a record, where the host waits
    anyway); elsewhere they are the host's clock.
    """

    def __init__(self, device: torch.device):
        self._cuda = device.type == "cuda"
        self._parts: dict[str, float] = {}
        self._events: list[tuple[str, torch.cuda.Event, torch.cuda.Event]] = []
        self._unnamed: list[tuple[Any, Any]] = []  # stretches that a part inside has ended: the next lap names them
        self.part = "start"  # the last part that ended: says where an error came from
        self._whole = False  # inside a block that is one part
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
        if self._whole:
            return
        now = self._now()
        for begin, end in (*self._unnamed, (self._last, now)):
            self._charge(name, begin, end)
        self._last, self._unnamed, self.part = now, [], name

    @contextmanager
    def inside(self, name: str) -> Iterator[None]:
        """Charge the time of the block to `name`, and not to the lap or block around it."""
        if self._whole:
            yield
            return
        begin = self._now()
        around = [*self._unnamed, (self._last, begin)]
        self._last, self._unnamed = begin, []
        try:
            yield
        finally:
            self.lap(name)
            self._unnamed = around

    @contextmanager
    def one_part(self, name: str) -> Iterator[None]:
        """Charge the time from the last lap to the end of the block to `name`, and ignore laps and parts in the block.

        For work that is recorded as a CUDA graph: its events would be the graph's, and none of a replay.
        """
        self._whole = True
        try:
            yield
        finally:
            self._whole = False
        self.lap(name)

    def _charge(self, name: str, begin: Any, end: Any) -> None:
        if self._cuda:
            self._events.append((name, begin, end))
        else:
            self._parts[name] = self._parts.get(name, 0.0) + end - begin

    def seconds(self) -> dict[str, float]:
        """Seconds by part since the last call, which are then forgotten. Waits for the device."""
        if self._events:
            self._events[-1][2].synchronize()
            for name, begin, end in self._events:
                self._parts[name] = self._parts.get(name, 0.0) + begin.elapsed_time(end) / 1000
            self._events.clear()
        parts, self._parts = self._parts, {}
        return parts
