"""stdout and stderr that raise no errors when a pipe is closed, a disk is full, or a character cannot be encoded."""

import errno
import io
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any


class NullStream(io.TextIOBase):
    """Discards all text."""

    def write(self, text: str) -> int:
        """Do nothing."""
        return len(text)


class Steady:
    """A text stream that discards text once its file cannot be written; other attributes are those of the file."""

    def __init__(self, file: Any, on_loss: Callable[[OSError | ValueError], None] = lambda error: None):
        """
        Args:
            file: sys.stdout or sys.stderr; None, as Python has it for a closed descriptor, counts as lost.
            on_loss: called once, with the error of the first failed write.
        """
        self._file = NullStream() if file is None else file
        self._on_loss = on_loss
        self.error: OSError | ValueError | None = None

    def write(self, text: str) -> int:
        """Write `text`; characters that the encoding lacks are shown as escapes."""
        try:
            self._file.write(text)
        except UnicodeEncodeError:
            encoding = self._file.encoding
            self.write(text.encode(encoding, "backslashreplace").decode(encoding))
        except RuntimeError:  # a signal handler has interrupted a write
            pass
        except (OSError, ValueError) as error:  # ValueError: the file is closed
            self._lose(error)
        return len(text)

    def flush(self) -> None:
        """Flush the file."""
        try:
            self._file.flush()
        except RuntimeError:
            pass
        except (OSError, ValueError) as error:
            self._lose(error)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)

    def _lose(self, error: OSError | ValueError) -> None:
        with suppress(OSError, ValueError):  # else the text in its buffer fails again at exit
            os.dup2(os.open(os.devnull, os.O_WRONLY), self._file.fileno())
        self._file = NullStream()
        if self.error is None:
            self.error = error
            self._on_loss(error)

    @property
    def reader_left(self) -> bool:
        """Whether the reader closed the pipe, as `head` does: not an error of the command."""
        return isinstance(self.error, ValueError) or (self.error is not None and self.error.errno == errno.EPIPE)


@contextmanager
def steady_streams(remark: str = "") -> Iterator[Steady]:
    """Make sys.stdout and sys.stderr `Steady` within the block; yields stdout.

    Args:
        remark: where the output can still be read; if given, stderr says when stdout is lost.
    """
    for descriptor in range(3):  # otherwise a file opened later could get the number of a closed stream, and its output
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, os.O_RDWR)
    streams = sys.stdout, sys.stderr

    def report_loss(error: OSError | ValueError) -> None:
        if remark:
            print(f"stdout takes no more lines ({reason(error)}); going on without it: {remark}", file=sys.stderr)

    stdout = Steady(sys.stdout, report_loss)
    sys.stdout, sys.stderr = stdout, Steady(sys.stderr)  # type: ignore[assignment]
    try:
        yield stdout
    finally:
        for stream in (sys.stdout, sys.stderr):
            with suppress(OSError, ValueError):
                stream.flush()
        sys.stdout, sys.stderr = streams


def reason(error: Exception) -> str:
    """The text of an error, without the error number and the file name."""
    return (error.strerror if isinstance(error, OSError) else "") or str(error)
