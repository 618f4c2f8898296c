"""Where the time of a run goes, without waiting for the device inside a step."""

import time

import torch


class Clock:
    """Seconds by part: `lap(name)` charges the time since the last lap to `name`.

    On a GPU the laps are events on the stream, read when `seconds()` is called (at a record, where the host waits
    anyway); elsewhere they are the host's clock.
    """

    def __init__(self, device: torch.device):
        self._cuda = device.type == "cuda"
        self._parts: dict[str, float] = {}
        self._events: list[tuple[str, torch.cuda.Event, torch.cuda.Event]] = []
        self.part = "start"  # the last part that ended: says where an error came from
        self.skip()

    def _now(self) -> float | torch.cuda.Event:
        if not self._cuda:
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def skip(self) -> None:
        """Charge the time since the last lap to nobody."""
        self._last = self._now()

    def lap(self, name: str) -> None:
        """Charge the time since the last lap to `name`."""
        now = self._now()
        if isinstance(now, float):
            self._parts[name] = self._parts.get(name, 0.0) + now - self._last  # type: ignore[operator]
        else:
            self._events.append((name, self._last, now))  # type: ignore[arg-type]
        self._last, self.part = now, name

    def seconds(self) -> dict[str, float]:
        """Seconds by part since the last call, which are then forgotten. Waits for the device."""
        if self._events:
            self._events[-1][2].synchronize()
            for name, begin, end in self._events:
                self._parts[name] = self._parts.get(name, 0.0) + begin.elapsed_time(end) / 1000
            self._events.clear()
        parts, self._parts = self._parts, {}
        return parts
