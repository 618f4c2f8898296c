"""Images that the workers of torch's DataLoader decode ahead of their reader.

The order of requests decides the content of batches; workers change nothing but the speed. They are started by a fork
server and not forked from this process: in a forked process, locks that other threads held stay locked, and an OpenMP
pool that has worked hangs.
"""

import atexit
import multiprocessing
import os
import pickle
import shutil
import signal
import sys
import threading
import warnings
import weakref
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from multiprocessing import resource_tracker
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from mixfast.data.decoder import decode_file, reason
from mixfast.data.scan import printable
from mixfast.errors import DataError

_TASK_BYTES = 4 << 20  # of the images that a worker decodes at once; a batch is one task or several
_AHEAD_BYTES = 512 << 20  # of images decoded ahead, but at most half of the free shared memory
_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Decoded(NamedTuple):
    """The result of a worker for a task of n images."""

    images: Tensor  # uint8 [n, 3, size, size]
    labels: Tensor  # int64 [n] if the items of the data set have labels; else empty
    broken: dict[int, str]  # reason by row of an image that cannot be decoded
    error: str  # message if the data set itself is wrong, else ""


class ImageFiles(Dataset[Any]):
    """Decodes files; its items are paths."""

    def __init__(self, size: int):
        """
        Args:
            size: side of the decoded squares in pixels.
        """
        self.size = size

    def __getitems__(self, paths: Sequence[str]) -> Decoded:
        """The images at these paths; rows of `broken` ones are left undefined."""
        images = torch.empty(len(paths), 3, self.size, self.size, dtype=torch.uint8)
        broken = {}
        for row, path in enumerate(paths):
            try:
                images[row] = decode_file(path, self.size)
            except MemoryError:
                raise
            except Exception as error:  # Pillow raises whatever a broken file leads it to
                broken[row] = reason(error)
        return Decoded(images, torch.empty(0, dtype=torch.int64), broken, "")


class Library:
    """The images of a data set, training and test, with the workers that decode them."""

    def __init__(self, decoder: Any, items: Sequence[Any], workers: int):
        """
        Args:
            decoder: copied to each worker; `decoder.__getitems__(items)` returns a `Decoded`, and `decoder.size` is the
                side of its squares.
            items: for each image the item that the decoder takes: the path of its file, or its number.
            workers: number of processes; 0 decodes in this process, and nothing ahead of time.
        """
        self.decoder, self.items, self.workers, self.size = decoder, items, workers, int(decoder.size)
        self.task_size = max(1, _TASK_BYTES // (3 * self.size**2))  # images that a worker decodes at once
        self.images_per_s: float | None = None  # speed of decoding alone, once it is measured
        self._tasks: list[list[int]] = []  # image numbers of the tasks of the loader's next iteration
        self._loader: DataLoader[Any] | None = None
        self._reading = False

    def read(self, parts: Sequence[Tensor], device: torch.device) -> Iterator[Tensor]:
        """uint8 [n, 3, size, size] on `device` for the numbers int64 [n] of each part, in order, decoded ahead of time.

        Raises:
            DataError: a worker has died, or an image cannot be decoded.
        """
        tasks = [task for part in parts for task in part.split(self.task_size)]
        arriving = zip(tasks, self.decoded(tasks, pin=device.type == "cuda"), strict=True)
        for part in parts:
            batch = torch.empty(len(part), 3, self.size, self.size, dtype=torch.uint8, device=device)
            for chunk in batch.split(self.task_size):
                task, decoded = next(arriving)
                for row, message in decoded.broken.items():
                    raise DataError(
                        f"{printable(self.items[int(task[row])])} can no longer be read ({message}). Every epoch needs "
                        "the images that the run began with: restore the file and resume, or start a new run."
                    )
                chunk.copy_(decoded.images, non_blocking=True)
            yield batch

    def decoded(self, tasks: Sequence[Tensor], pin: bool = False) -> Iterator[Decoded]:
        """Yield the decoded images of each task, in order; a task is int64 [n], the numbers of its images.

        If another caller is using the workers, this process decodes.

        Args:
            tasks: each is decoded by one worker.
            pin: whether to put images into pinned memory.

        Raises:
            DataError: a worker has died, or the data set itself is wrong.
        """
        numbers = [task.tolist() for task in tasks]
        if self.workers == 0 or self._reading or not numbers:
            for task_numbers in numbers:
                yield _checked(self.decoder.__getitems__([self.items[number] for number in task_numbers]))
            return
        self._reading = True
        try:
            yield from map(_checked, self._from_workers(numbers, pin))
        finally:
            self._reading = False

    def _from_workers(self, tasks: list[list[int]], pin: bool) -> Iterator[Decoded]:
        try:
            if self._loader is None or self._loader.pin_memory != pin:
                self._loader = None  # ends its workers
                self._loader = self._with_workers(pin)
            self._tasks = tasks
            yield from self._loader
        except (RuntimeError, OSError, EOFError) as error:
            # If a worker has died, torch's error begins with "DataLoader worker (pid", or the socket through which it
            # sends memory is closed; errors of the decoder itself begin with "Caught".
            closed = isinstance(error, ConnectionError | FileNotFoundError | EOFError)
            if not (str(error).startswith("DataLoader worker (pid") or closed) or str(error).startswith("Caught"):
                raise
            self._loader = None
            raise DataError(
                f"a process that decodes images has died: {error} The system does that when memory runs out: try fewer "
                "--data.workers, or more shared memory (/dev/shm)."
            ) from error
        finally:
            self._tasks = []

    def _with_workers(self, pin: bool) -> "DataLoader[Any]":
        """A loader whose workers have started, but have no task yet."""
        try:
            sent = pickle.dumps(self.decoder)
        except Exception as error:  # whatever the user's object raises
            raise DataError(
                f"the data set cannot be sent to worker processes ({type(error).__name__}: {error}). Define what it is "
                "made of at the top level of a module, open files when they are first read, or use --data.workers 0."
            ) from error
        with (
            workers_that_obey(),
            warnings.catch_warnings(),
            nullcontext() if b"__main__" in sent else _main_not_imported(),
        ):
            # more workers than cores are the user's choice
            warnings.filterwarnings("ignore", "This DataLoader will create", UserWarning)
            loader = self._new_loader(pin)
            iter(loader)
        return loader

    def _new_loader(self, pin: bool) -> "DataLoader[Any]":
        return DataLoader(
            self.decoder,
            batch_sampler=_Tasks(weakref.proxy(self)),
            num_workers=self.workers,
            collate_fn=_identity,
            pin_memory=pin,
            worker_init_fn=begin_worker,
            multiprocessing_context="forkserver",
            generator=torch.Generator(),  # else the loader would draw from torch's global generator
            prefetch_factor=max(1, _room() // (self.workers * _TASK_BYTES)),
            persistent_workers=True,
        )


@contextmanager
def workers_that_obey() -> Iterator[None]:
    """Workers that start in the block ignore stop signals, and end with this process.

    Their loader must take `begin_worker` as its worker_init_fn.
    """
    before = set(multiprocessing.active_children())
    # Workers, and the server that they are forked from, inherit the blocked signals: of a signal to the whole process
    # group only this process takes notice, which finishes its step and saves.
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)
    try:
        resource_tracker.ensure_running()  # its start unblocks some signals
        signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
    for worker in set(multiprocessing.active_children()) - before:
        atexit.register(worker.kill)  # they ignore the SIGTERM that Python sends at its end


def _checked(decoded: Decoded) -> Decoded:
    if decoded.error:
        raise DataError(decoded.error)
    return decoded


@contextmanager
def _main_not_imported() -> Iterator[None]:
    """Keep new processes from importing the program's main module: a script without a main guard would train again."""
    main = sys.modules["__main__"]
    attributes = {name: getattr(main, name) for name in ("__spec__", "__file__") if hasattr(main, name)}
    try:
        main.__spec__, main.__file__ = None, None
        yield
    finally:
        vars(main).pop("__file__")
        vars(main).update(attributes)


class _Tasks:
    """The batch sampler of a library's loader: the tasks of the next iteration as lists of items."""

    def __init__(self, library: Any):
        self._library = library

    def __iter__(self) -> Iterator[list[Any]]:
        return ([self._library.items[number] for number in task] for task in list(self._library._tasks))


def _identity(value: Any) -> Any:
    return value


def _room() -> int:
    """Bytes that images decoded ahead may take."""
    shared = Path("/dev/shm")  # 64 MiB in a container, unless it was given more
    return min(_AHEAD_BYTES, shutil.disk_usage(shared).free // 2) if shared.is_dir() else _AHEAD_BYTES


def begin_worker(_: int) -> None:
    """Make a worker ignore stop signals, and end it when the training process ends for any reason."""
    for number in _SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(0)
