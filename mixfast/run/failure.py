"""The message of a command that fails: whose code failed, the lines that show where, and the exit code.

A `UserError` has its own message and code. Any other error is attributed to the owner of the innermost frame that does
not belong to Python, torch or another installed package. There is one exception: a frame of mixfast that a user's frame
called counts as the user's, because operations raise errors for wrong shapes and types. Since the cause may still be a
defect of mixfast, the message also shows the line of mixfast that raised the error, and asks to report it if the
arguments are right.
"""

import errno
import os
import re
import sys
import sysconfig
import traceback
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Literal, NamedTuple

import torch

from mixfast.errors import OutOfMemoryError, StorageError, UserError
from mixfast.run.signals import Stopped, StopRequest
from mixfast.run.streams import reason, steady_streams
from mixfast.run.torch_state import fresh_torch_state
from mixfast.world import Elsewhere

USER_CODE = 8  # exit code of an error in a method, data set or backbone from outside mixfast

_OURS = Path(__file__).resolve().parents[1]
_PYTHON = [Path(sysconfig.get_path(name)).resolve() for name in ("stdlib", "platstdlib", "purelib", "platlib")]
_LIBRARIES = [*_PYTHON, Path(torch.__file__).resolve().parent]
_DEVICE_ADVICE = {
    errno.ENOSPC: "Free some, or choose a place on another disk",
    errno.EDQUOT: "Free some, or choose a place with another quota",
    errno.EFBIG: "Raise the limit (ulimit -f), or choose a file system that takes larger files",
    errno.EROFS: "Choose a place that can be written",
    errno.EIO: "The disk or its connection fails: see the system's log, or choose another",
    errno.EMFILE: "Raise the limit (ulimit -n)",
    errno.ENFILE: "Close other programs, or raise the system's limit",
}
_PATH_ADVICE = {
    errno.EACCES: "Change the permissions, or choose another place",
    errno.EPERM: "Change the permissions, or choose another place",
    errno.ENOENT: "If it was there: has its folder been deleted or moved",
    errno.ESTALE: "Has its folder been deleted or moved by another machine",
    errno.ENOTDIR: "A part of the path is a file; choose another place",
    errno.EISDIR: "A folder has the name of a file; choose another place, or move it away",
    errno.EEXIST: "Something of that name is in the way; choose another place, or move it away",
    errno.ENAMETOOLONG: "Choose a shorter name",
    errno.ELOOP: "Links lead in a circle; choose another place",
    errno.ENOTEMPTY: "Another program writes to it; choose another place",
    errno.EBUSY: "Another program uses it; choose another place",
}
_OS_ERROR = re.compile(r"\(os error (\d+)\)")  # as Rust libraries print it
_WORKER_FRAME = re.compile(r'File "(.+?)", line (\d+), in (\S+)')


class Failure(NamedTuple):
    """Exit code and message of a command that failed."""

    exit_code: int
    text: str
    lines: str  # the traceback to be printed before the text; "" if the text is enough


class Frame(NamedTuple):
    """A line that was running when an error was raised."""

    file: str
    line: int
    function: str
    module: str = ""  # dotted name; "" where only the text of a traceback is known

    def __str__(self) -> str:
        path = Path(self.file)
        with suppress(OSError, ValueError):  # outside the working directory, or that has been deleted
            path = path.relative_to(Path.cwd())
        return f"{f'{self.module}, ' if self.module else ''}{path} line {self.line}, in {self.function}"


@fresh_torch_state()
def run_command(command: Callable[[], object]) -> int:
    """Run a command that prints its result; if it fails, print the reason on stderr. Returns the exit code."""
    with steady_streams() as stdout, StopRequest():
        try:
            command()
        except SystemExit as end:  # tyro has printed help or an error
            return int(end.code or 0)
        except Stopped as stop:
            print(f"stopped by {stop}", file=sys.stderr)
            return stop.exit_code
        except Elsewhere as error:
            return error.exit_code
        except Exception as error:
            failure = explain(error)
            print(failure.lines + failure.text, file=sys.stderr)
            return failure.exit_code
        stdout.flush()
        if stdout.error is None or stdout.reader_left:
            return 0
        print(f"error: stdout: {reason(stdout.error)}", file=sys.stderr)
        return StorageError.exit_code


def explain(error: Exception, log: Path | None = None, method: str = "", folder: Path | None = None) -> Failure:
    """Whose code raised an error, and the message to print.

    Args:
        error: as caught by the command.
        log: file to which the caller writes the whole traceback; None: there is none.
        method: dotted name of the user's method that was being trained; "" for a method of mixfast.
        folder: the folder to which the command writes; named if an error of the disk does not name a path.
    """
    if isinstance(error, UserError):
        return Failure(error.exit_code, f"error: {error}", "")
    summary = f"{type(error).__name__}: {error}"
    if is_out_of_memory(error):
        return Failure(OutOfMemoryError.exit_code, f"error: out of memory: {summary.splitlines()[0]}", "")
    frames = _frames(error)
    owners = [owner(frame.file) for frame in frames]
    if "user" not in owners and (text := _storage(error, folder)):
        return Failure(StorageError.exit_code, f"error: {text}", "")
    report = f"report it with the output of `python -m mixfast.doctor` and {log or 'the traceback above'}."
    if "user" in owners:
        last = len(owners) - 1 - owners[::-1].index("user")
        text = f"error in your code: {summary.splitlines()[0]}\nin {frames[last]}"
        if "ours" in owners[last:]:
            raiser = frames[len(owners) - 1 - owners[::-1].index("ours")]
            text += f"\nRaised by {raiser}. If what your line passes to it is right, {report}"
        return Failure(USER_CODE, text, _traceback(error, owners.index("user")))
    if method:
        text = (
            f"error with your method {method}: {summary.splitlines()[0]}\n"
            "No line of it was running: see whether its functions take and return what the docstrings of "
            f"mixfast.methods.Method say. If they do, {report}"
        )
        return Failure(USER_CODE, text, _traceback(error))
    return Failure(1, f"internal error: {summary}\nPlease {report}", "" if log else _traceback(error))


def is_out_of_memory(error: Exception) -> bool:
    """Whether the host or the device had no memory left."""
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or "can't allocate memory" in str(error)


def _storage(error: Exception, folder: Path | None) -> str:
    """The message for an error of the operating system while reading or writing; "" for any other error."""
    number, path, cause = 0, "", str(error)
    if isinstance(error, OSError) and error.filename is not None:
        number, path = error.errno or 0, os.fspath(error.filename)
    elif match := _OS_ERROR.search(cause):
        number = int(match[1])
    chain: BaseException | None = error
    while chain is not None and number not in _DEVICE_ADVICE:  # torch may have raised another error from it
        if isinstance(chain, OSError) and chain.errno in _DEVICE_ADVICE:
            number, path = chain.errno, chain.filename or path
        chain = chain.__cause__ or chain.__context__
    advice = {**_PATH_ADVICE, **_DEVICE_ADVICE}.get(number)
    if advice is None:
        return ""
    path = os.fsdecode(path) or (str(folder) if folder else "")
    free = _free(path) if number == errno.ENOSPC else ""
    mark = "?" if number in (errno.ENOENT, errno.ESTALE) else "."
    return f"{f'{path}: ' if path else ''}{os.strerror(number)}{free}. {advice}{mark}"


def _free(path: str) -> str:
    """The free bytes and file entries of a path's file system as text; "" if they cannot be read."""
    existing = Path(path)
    try:
        while not existing.exists() and existing != existing.parent:
            existing = existing.parent
        disk = os.statvfs(existing)
    except OSError:
        return ""
    return f" ({disk.f_bavail * disk.f_frsize:,} bytes and {disk.f_favail:,} files more would fit)"


def owner(file: str) -> Literal["ours", "library", "user"]:
    """Who wrote a file of source code: mixfast, an installed package (or Python, or torch), or the user."""
    path = Path(file).resolve()
    if path.is_relative_to(_OURS):
        return "ours"
    installed = {"site-packages", "dist-packages"} & set(path.parts)
    if file.startswith("<") or installed or any(path.is_relative_to(folder) for folder in _LIBRARIES):
        return "library"
    return "user"


def _frames(error: Exception) -> list[Frame]:
    """The frames of an error, outermost first."""
    frames = [
        Frame(frame.f_code.co_filename, line, frame.f_code.co_name, frame.f_globals.get("__name__", ""))
        for frame, line in traceback.walk_tb(error.__traceback__)
    ]
    if isinstance(error, SyntaxError) and error.filename:  # the file never ran
        frames.append(Frame(error.filename, error.lineno or 0, "its source"))
    if "Original Traceback" in str(error):  # a worker process of a DataLoader sends its traceback as text
        frames += [Frame(file, int(line), name) for file, line, name in _WORKER_FRAME.findall(str(error))]
    return frames


def _traceback(error: Exception, first: int = 0) -> str:
    """The traceback of an error as text, from its frame number `first` on."""
    formatted = traceback.TracebackException.from_exception(error)
    formatted.stack = traceback.StackSummary.from_list(formatted.stack[first:])
    return "".join(formatted.format())
