"""stdout and stderr that never end a command: the reader may leave, the device be full, a name not be encodable."""

import errno
import io
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any


class Nowhere(io.TextIOBase):
    """Takes text and keeps none."""

    def write(self, text: str) -> int:
        """Do nothing."""
        return len(text)


class Steady:
    """A text stream that goes on into nothing once its file takes no more; all else is the file's own."""

    def __init__(self, file: Any, on_loss: Callable[[OSError | ValueError], None] = lambda error: None):
        """
        Args:
            file: sys.stdout or sys.stderr; None, as Python has it for a closed descriptor, counts as lost.
            on_loss: called once, with what went wrong.
        """
        self._file = Nowhere() if file is None else file
        self._on_loss = on_loss
        self.error: OSError | ValueError | None = None

    def write(self, text: str) -> int:
        """Write `text`; characters that the encoding lacks are shown as escapes."""
        try:
            self._file.write(text)
        except UnicodeEncodeError:
            encoding = self._file.encoding
            self.write(text.encode(encoding, "backslashreplace").decode(encoding))
        except RuntimeError:  # a signal's handler has interrupted a write
            pass
        except (OSError, ValueError) as error:  # ValueError: it was closed
            self._lose(error)
        return len(text)

    def flush(self) -> None:
        """Hand on what was written."""
        try:
            self._file.flush()
        except RuntimeError:
            pass
        except (OSError, ValueError) as error:
            self._lose(error)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)

    def _lose(self, error: OSError | ValueError) -> None:
        with suppress(OSError, ValueError):  # else what it still holds fails again at exit
            os.dup2(os.open(os.devnull, os.O_WRONLY), self._file.fileno())
        self._file = Nowhere()
        if self.error is None:
            self.error = error
            self._on_loss(error)

    @property
    def reader_left(self) -> bool:
        """Whether somebody stopped reading, such as `head`: no fault of the command's."""
        return isinstance(self.error, ValueError) or (self.error is not None and self.error.errno == errno.EPIPE)


@contextmanager
def steady_streams(remark: str = "") -> Iterator[Steady]:
    """Within the block neither stream raises; yields stdout.

    Args:
        remark: why it does no harm to lose stdout; then the loss gets a line on stderr.
    """
    for descriptor in range(3):  # a file that took the number of a closed stream would get what libraries print
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, os.O_RDWR)
    before = sys.stdout, sys.stderr

    def report_loss(error: OSError | ValueError) -> None:
        if remark:
            print(f"stdout takes no more lines ({reason(error)}); going on without it: {remark}", file=sys.stderr)

    out = Steady(sys.stdout, report_loss)
    sys.stdout, sys.stderr = out, Steady(sys.stderr)  # type: ignore[assignment]
    try:
        yield out
    finally:
        for stream in (sys.stdout, sys.stderr):
            with suppress(OSError, ValueError):
                stream.flush()
        sys.stdout, sys.stderr = before


def reason(error: Exception) -> str:
    """The text of an error, without the error number and the file name."""
    return (error.strerror if isinstance(error, OSError) else "") or str(error)
