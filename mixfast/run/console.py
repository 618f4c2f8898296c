"""Output for people: lines, and on a terminal a progress bar below them. Every line is also written to log.txt."""

import sys
import time
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

from mixfast.run.streams import reason
from mixfast.world import current

if TYPE_CHECKING:
    from rich.progress import Progress, ProgressColumn

QUIET_SECONDS = 30.0  # without a progress bar, a record inside an epoch is printed after so many seconds of silence


class Console:
    """Lines to stdout and to log.txt; `with console:` shows the progress bar where stdout is a terminal.

    Only the first of several processes prints; with `quiet`, none does.
    """

    def __init__(self, log_path: Path | None = None, *, quiet: bool = False):
        self.log_path: Path | None = None
        self._early: list[str] = []  # lines printed before the log was opened
        self._log_lost, self._quiet = False, quiet
        if log_path:
            self.open_log(log_path)
        self._progress: Progress | None = None
        self._last_line = time.monotonic()

    def open_log(self, path: Path) -> None:
        """Append the lines printed so far to the file `path`, and every later line."""
        self.log_path = path
        early, self._early = self._early, []
        for text in early:
            self.log(text)

    def line(self, text: str = "") -> None:
        """Print one or more lines, and append them to log.txt."""
        self._last_line = time.monotonic()
        if current().rank:
            return
        if self._quiet:
            pass
        elif self._progress:
            self._progress.console.print(text, markup=False, highlight=False, soft_wrap=True)
        else:
            print(text, flush=True)
        self.log(text)

    def log(self, text: str) -> None:
        """Append to log.txt only. If it cannot be written, stderr says so once, and the run goes on."""
        if self.log_path is None:
            self._early.append(text)
            return
        try:
            with open(self.log_path, "a", encoding="utf-8", errors="backslashreplace") as file:
                file.write(text + "\n")
        except OSError as error:
            if not self._log_lost:
                self._log_lost = True
                print(f"{self.log_path} takes no more lines ({reason(error)}); going on without it", file=sys.stderr)

    def silent_for_long(self) -> bool:
        """Whether there is no progress bar, and no line was printed for `QUIET_SECONDS`."""
        return self._progress is None and time.monotonic() - self._last_line > QUIET_SECONDS

    def __enter__(self) -> "Console":
        if not self._quiet and sys.stdout and sys.stdout.isatty() and current().rank == 0:
            from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

            columns = (TextColumn("{task.description} {task.percentage:3.0f} %"), BarColumn(16), TimeRemainingColumn())
            self._progress = Progress(*columns, note_column())
            self._progress.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, _: BaseException | None, __: TracebackType | None) -> None:
        if self._progress:
            self._progress.stop()
            self._progress = None

    def task(self, name: str, total: int) -> "Task":
        """A progress bar of `total` steps."""
        return Task(self._progress, name, total)


def note_column() -> "ProgressColumn":
    """The column of the note behind a progress bar; on a narrow terminal it is the only one that is shortened."""
    from rich.progress import ProgressColumn
    from rich.table import Column
    from rich.text import Text

    class NoteColumn(ProgressColumn):
        def render(self, task: Any) -> Text:
            return Text(task.fields["note"], no_wrap=True, overflow="ellipsis")

    return NoteColumn(table_column=Column(no_wrap=False))  # the only column that may shrink


class Task:
    """One progress bar; without a terminal its functions do nothing."""

    def __init__(self, progress: "Progress | None", name: str, total: int):
        self._progress = progress
        self._id: Any = progress.add_task(name, total=total, note="") if progress else None

    def update(self, completed: int, note: str) -> None:
        """Move the bar to `completed` steps and show a note behind it."""
        if self._progress:
            self._progress.update(self._id, completed=completed, note=note)

    def close(self) -> None:
        """Remove the bar."""
        if self._progress:
            self._progress.remove_task(self._id)


def duration(seconds: float) -> str:
    """A duration as h:mm:ss or m:ss."""
    minutes, remainder = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{remainder:02d}" if hours else f"{minutes}:{remainder:02d}"
