"""SIGINT, SIGTERM and SIGHUP end a run in order: between two steps with a checkpoint, elsewhere at once."""

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from types import FrameType

from mixfast.world import current

STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
GRACE = 5.0  # seconds in which a second SIGTERM or SIGHUP adds nothing: schedulers and terminals send several


class Stopped(BaseException):
    """A signal asked for the end. `exit_code` is 128 + the signal's number.

    It is no `Exception`: what tries one file after another must not take it for a broken file.
    """

    def __init__(self, number: int):
        super().__init__(signal.Signals(number).name)
        self.number = number
        self.exit_code = 128 + number


class StopRequest:
    """Stop signals while its `with` block runs. In a thread that is not the main one it changes nothing.

    A signal raises `Stopped` where it arrives; inside `between_steps` it sets `number` instead, for the loop to obey.
    A second SIGINT, or any other stop signal more than `GRACE` seconds after the first, ends the process without any
    clean-up. That is safe: a checkpoint has its final name only once it is complete.
    """

    def __init__(self, before_exit: Callable[[int], object] = lambda number: None, *, ends_process: bool = True):
        """
        Args:
            before_exit: called with the signal's number before the process is ended without clean-up.
            ends_process: False: that second signal raises `Stopped` where it arrives, as if it were the first, and
                nothing is printed: the process is somebody else's.
        """
        self.number = 0  # of the signal that asked; 0: none yet
        self._asked = 0.0
        self._deferred = self._left = False
        self._before_exit, self._ends_process = before_exit, ends_process
        self._before: dict[int, object] = {}

    def __enter__(self) -> "StopRequest":
        if threading.current_thread() is threading.main_thread():
            for number in STOP_SIGNALS:
                ignored = signal.getsignal(number) is signal.SIG_IGN
                if ignored and (number == signal.SIGHUP or not self._ends_process):
                    continue  # nohup, or somebody's choice
                self._before[number] = signal.signal(number, self._handle)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)  # type: ignore[arg-type]

    def __bool__(self) -> bool:
        return self.number != 0

    @contextmanager
    def between_steps(self) -> Iterator[None]:
        """Within the block a signal only sets `number`; what was not obeyed in it raises Stopped at its end."""
        self.obey()  # an exception that was raised in a destructor is lost
        self._deferred = True
        try:
            yield
        finally:
            self._deferred = False
        self.obey()

    def ask(self, number: int) -> None:
        """Store the number of a signal that arrives inside `between_steps`; the first signal counts."""
        self.number = self.number or number

    def leave(self) -> None:
        """Ignore further signals, because the process is ending."""
        self._deferred = self._left = True

    def obey(self) -> None:
        """Raise Stopped if a signal came."""
        if self.number:
            raise Stopped(self.number)

    def _handle(self, number: int, _: FrameType | None) -> None:
        now = time.monotonic()
        if not self.number:
            self.number, self._asked = number, now
            if not self._deferred:
                raise Stopped(number)
            if self._ends_process and current().rank == 0:
                _print(b"\nstopping after this step (Ctrl-C: at once)\n")
        elif number == signal.SIGINT or now - self._asked > GRACE:
            if not self._ends_process:
                if not self._left:
                    raise Stopped(number)
                return
            try:
                self._before_exit(number)
            finally:
                os._exit(128 + number)


def _print(line: bytes) -> None:
    with suppress(OSError):  # nobody reads it any more
        os.write(2, line)
