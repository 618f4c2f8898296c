"""SIGINT and SIGTERM ask for a stop after the step in hand; a second one stops at once."""

import os
import signal
from types import FrameType

STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Stopped(Exception):
    """The run was asked to stop and has saved its state. `exit_code` is 128 + the signal's number."""

    def __init__(self, number: int):
        super().__init__(signal.Signals(number).name)
        self.exit_code = 128 + number


class StopRequest:
    """A flag set by SIGINT or SIGTERM while its `with` block runs; the loop reads it between steps.

    The second signal ends the process without any clean-up. That is safe: a checkpoint has its final name only once
    it is complete.
    """

    def __init__(self) -> None:
        self.number = 0  # of the signal that asked; 0: none yet
        self._before: dict[int, object] = {}

    def __enter__(self) -> "StopRequest":
        self._before = {number: signal.signal(number, self._handle) for number in STOP_SIGNALS}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)  # type: ignore[arg-type]

    def __bool__(self) -> bool:
        return self.number != 0

    def _handle(self, number: int, _: FrameType | None) -> None:
        if self.number:
            os._exit(128 + number)
        self.number = number
        os.write(2, b"\nstopping after this step (once more: at once)\n")
