"""SIGINT, SIGTERM and SIGHUP end a run: between two steps after a checkpoint is saved, outside training at once."""

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from types import FrameType

from mixfast.world import current

STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
GRACE = 5.0  # seconds in which a second SIGTERM or SIGHUP is ignored: schedulers and terminals send several


class Stopped(BaseException):
    """A stop signal has arrived. `exit_code` is 128 + the signal's number.

    Not an `Exception`, so that code which skips broken files does not catch it.
    """

    def __init__(self, number: int):
        super().__init__(signal.Signals(number).name)
        self.number = number
        self.exit_code = 128 + number


class StopRequest:
    """Handles stop signals while its `with` block runs in the main thread; in another thread it changes nothing.

    A signal raises `Stopped` where it arrives; inside `between_steps` it sets `number` instead, for the loop to obey.
    A second SIGINT, or any other stop signal more than `GRACE` seconds after the first, ends the process without any
    clean-up. That is safe: a checkpoint has its final name only once it is complete.
    """

    def __init__(self, before_exit: Callable[[int], object] = lambda number: None, *, ends_process: bool = True):
        """
        Args:
            before_exit: called with the signal's number before the process is ended without clean-up.
            ends_process: whether a second signal may end the process. If False, it raises `Stopped` where it arrives,
                and nothing is printed: for calls from a program that goes on.
        """
        self.number = 0  # of the first signal; 0: none yet
        self._arrived_at = 0.0  # time of the first signal
        self._deferred = self._ignoring = False
        self._before_exit, self._ends_process = before_exit, ends_process
        self._handlers: dict[int, object] = {}  # those to be put back, by signal number

    def __enter__(self) -> "StopRequest":
        if threading.current_thread() is threading.main_thread():
            for number in STOP_SIGNALS:
                ignored = signal.getsignal(number) is signal.SIG_IGN
                if ignored and (number == signal.SIGHUP or not self._ends_process):
                    continue  # nohup, or the calling program's choice
                self._handlers[number] = signal.signal(number, self._handle)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._handlers.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)  # type: ignore[arg-type]

    def __bool__(self) -> bool:
        return self.number != 0

    @contextmanager
    def between_steps(self) -> Iterator[None]:
        """Within the block a signal only sets `number`; if the block has not obeyed it, its end raises Stopped."""
        self.obey()  # a Stopped that was raised inside a destructor is lost, but `number` is set
        self._deferred = True
        try:
            yield
        finally:
            self._deferred = False
        self.obey()

    def request(self, number: int) -> None:
        """Ask for a stop as the signal `number` does inside `between_steps`; the first request counts."""
        self.number = self.number or number

    def ignore_further(self) -> None:
        """Ignore signals from now on, because the process is ending."""
        self._deferred = self._ignoring = True

    def obey(self) -> None:
        """Raise Stopped if a signal came."""
        if self.number:
            raise Stopped(self.number)

    def _handle(self, number: int, _: FrameType | None) -> None:
        seconds = time.monotonic()
        if not self.number:
            self.number, self._arrived_at = number, seconds
            if not self._deferred:
                raise Stopped(number)
            if self._ends_process and current().rank == 0:
                _print(b"\nstopping after this step (Ctrl-C: at once)\n")
        elif number == signal.SIGINT or seconds - self._arrived_at > GRACE:
            if not self._ends_process:
                if not self._ignoring:
                    raise Stopped(number)
                return
            try:
                self._before_exit(number)
            finally:
                os._exit(128 + number)


def _print(line: bytes) -> None:
    with suppress(OSError):  # stderr is closed
        os.write(2, line)
