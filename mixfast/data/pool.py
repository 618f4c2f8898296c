"""Processes that decode image files into shared memory, batches ahead of whoever reads them.

Tasks (a few rows each) go into one socket that all processes read, so that the next free one takes the next task; what
is decoded where is decided before, so that batches do not depend on the number of processes or their speed. Nothing is
copied between processes, and none of them holds the list of the files: they share it.
"""

import json
import mmap
import os
import signal
import socket
import subprocess
import sys
import time
import weakref
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import torch
from torch import Tensor

from mixfast.data import decoder
from mixfast.errors import DataError

SLOTS = 4  # batches in memory: one in use, the others decoded or being decoded
_TASK_ROWS = 64  # at most, so that a result with a line about each file fits in a message
_OPEN_TASKS = 128  # more messages than this could fill the sockets' buffers, and both sides would wait
_PATIENCE = 1.0  # seconds between looks at the health of the processes while nothing arrives
_SILENCE = 60.0  # seconds of waiting after which a line says so
_NAMED = 10  # broken files that get a line each; of more, every power of ten does
_START = "import runpy, sys; runpy.run_path(sys.argv.pop(1), run_name='__main__')"  # sys.path stays as it is


class Files:
    """The names of files in memory that processes share, and what was found out about the broken ones."""

    def __init__(self, names: Sequence[str | Path], parts: Sequence[int], say: Callable[[str], None]):
        """
        Args:
            names: of all files.
            parts: how many of them are in each part, in order; a file never stands in for one of another part.
            say: prints a line.
        """
        encoded = [os.fsencode(name) for name in names]
        ends = np.cumsum([len(name) for name in encoded], dtype=np.int64)
        self.descriptor = os.memfd_create("mixfast file names")  # processes inherit it
        weakref.finalize(self, os.close, self.descriptor)
        with open(self.descriptor, "wb", closefd=False) as file:
            file.writelines([*encoded, ends.tobytes()])
        view = mmap.mmap(self.descriptor, 0, access=mmap.ACCESS_READ)
        ends = np.frombuffer(view, np.int64, len(ends), len(view) - 8 * len(ends))
        self.table = decoder.Table(view, ends, tuple(np.cumsum(parts).tolist()))
        self.say = say
        self._broken: set[int] = set()

    def __len__(self) -> int:
        return len(self.table.ends)

    def report(self, broken: dict[int, str], lost: int | None) -> None:
        """Say of each broken file, once, what is taken in its place.

        Raises:
            DataError: nothing can be: `decoder.TRIES` files from `lost` on are broken.
        """
        for number, why in broken.items():
            if number in self._broken:
                continue
            self._broken.add(number)
            count = len(self._broken)
            if count <= _NAMED or str(count).strip("0") == "1":
                self.say(
                    f"{self.table.name(number)} cannot be read ({why}); the next file takes its place "
                    f"({count:,} of {len(self):,} files so far)"
                )
        if lost is not None:
            raise DataError(
                f"{decoder.TRIES} image files in a row, from {self.table.name(lost)} on, cannot be read "
                f"({list(broken.values())[-1]}). Is the disk that holds them still there?"
            )


class Pool:
    """`workers` processes and memory for `SLOTS` batches of at most `rows` images.

    The processes end when `close` is called, when the pool is forgotten, and when this process ends in any way: the
    socket they listen to is closed then.
    """

    def __init__(
        self,
        files: Files,
        size: int,
        rows: int,
        workers: int,
        device: torch.device,
    ):
        """
        Args:
            files: what can be asked for.
            size: side of the images in pixels.
            rows: of a batch, at most.
            workers: processes, at least 1.
            device: where batches go; for a GPU the memory is pinned.
        """
        self.rows, self.device, self._files = rows, device, files
        start, total = decoder.layout(SLOTS * rows, size)
        descriptor = os.memfd_create("mixfast batches")
        os.truncate(descriptor, total)
        ring = mmap.mmap(descriptor, total)
        self._pixels = torch.frombuffer(ring, dtype=torch.uint8, count=SLOTS * rows * 3 * size**2)
        self._pixels = self._pixels.view(SLOTS, rows, 3, size, size)
        self._numbers = np.frombuffer(ring, np.int64, SLOTS * rows, start).reshape(SLOTS, rows)
        self._tasks, their_tasks = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._results, their_results = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._results.settimeout(_PATIENCE)
        given = {"tasks": their_tasks.fileno(), "results": their_results.fileno(), "ring": descriptor}
        given["table"] = files.descriptor
        facts = {"rows": SLOTS * rows, "size": size, "files": len(files), "parts": files.table.parts}
        self._words = os.memfd_create("mixfast messages")  # what the processes print
        self._workers = [self._start(given, facts) for _ in range(workers)]
        for end in (their_tasks, their_results):
            end.close()
        os.close(descriptor)
        self._missing = [0] * SLOTS  # rows of each batch that have not arrived
        self._open = 0  # tasks without a result
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None
        pinned = _pin(self._pixels) if self._stream else None
        self.close = weakref.finalize(self, _end, self._workers, self._tasks, self._results, self._words, pinned)

    def _start(self, given: dict[str, int], facts: dict[str, Any]) -> "subprocess.Popen[bytes]":
        command = [sys.executable, "-W", "ignore", "-c", _START, str(Path(decoder.__file__)), json.dumps(given | facts)]
        path = os.pathsep.join(sys.path)  # this process may find NumPy and Pillow where a new one would not
        # The process inherits what is blocked here: a Ctrl-C does not reach it before it has said that it ignores them.
        before = signal.pthread_sigmask(signal.SIG_BLOCK, (signal.SIGINT, signal.SIGTERM))
        try:
            return subprocess.Popen(
                command,
                pass_fds=tuple(given.values()),
                stdin=subprocess.DEVNULL,
                stdout=self._words,
                stderr=self._words,
                env={**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"},
            )
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)

    def batches(self, parts: Sequence[np.ndarray]) -> Iterator[Tensor]:
        """uint8 [n, 3, size, size] on the device for the file numbers int64 [n] of each part, in order.

        Raises:
            DataError: a process has died, or files in a row cannot be decoded.
        """
        left, free, queue = deque(parts), deque(range(SLOTS)), deque[tuple[int, int]]()
        while left or queue:
            while left and free:
                part, slot = left.popleft(), free.popleft()
                self._ask(slot, part)
                queue.append((slot, len(part)))
            slot, count = queue.popleft()
            while self._missing[slot]:
                self._receive()
            batch = self._pixels[slot, :count]
            if self._stream is None:
                yield batch.clone()
            else:
                with torch.cuda.stream(self._stream):
                    copy = batch.to(self.device, non_blocking=True)
                    arrived = self._stream.record_event()
                current = torch.cuda.current_stream(self.device)
                current.wait_event(arrived)
                copy.record_stream(current)
                try:
                    yield copy
                finally:  # it has long arrived: a step lies between
                    arrived.synchronize()
            free.append(slot)

    def _ask(self, slot: int, part: np.ndarray) -> None:
        """Have a batch decoded."""
        self._numbers[slot, : len(part)] = part
        self._missing[slot] = len(part)
        rows = min(_TASK_ROWS, -(-len(part) // (4 * len(self._workers))))
        for first in range(0, len(part), rows):
            while self._open >= _OPEN_TASKS:
                self._receive()
            count = min(rows, len(part) - first)
            try:
                self._tasks.send(decoder.TASK.pack(slot * self.rows + first, count))
            except ConnectionError:
                self._mourn()
            self._open += 1

    def _receive(self) -> None:
        """Take one result."""
        asked, spoken = time.monotonic(), 0
        while True:
            try:
                message = self._results.recv(1 << 18)
                break
            except TimeoutError:
                self._check()
                if (waited := time.monotonic() - asked) > (spoken + 1) * _SILENCE:
                    spoken += 1
                    self._files.say(f"no image has arrived for {waited:.0f} seconds: does the disk still answer?")
            except ConnectionError:
                self._mourn()
        if not message:
            self._mourn()
        first, count, broken, lost = json.loads(message)
        self._files.report({int(number): why for number, why in broken.items()}, lost)
        self._missing[first // self.rows] -= count
        self._open -= 1

    def _mourn(self) -> NoReturn:
        """Raise DataError because all processes have closed their end."""
        with suppress(subprocess.TimeoutExpired):  # the end of a process comes a moment later
            self._workers[0].wait(5)
        self._check()
        raise DataError("the processes that decode images have closed their sockets.")

    def _check(self) -> None:
        """Raise DataError if a process has ended."""
        for worker in self._workers:
            if (code := worker.poll()) is None:
                continue
            words = os.pread(self._words, 1 << 16, 0).decode(errors="replace").strip()[-2000:]
            how = f"was killed by signal {-code}" if code < 0 else f"ended with exit code {code}"
            hint = " The system does that when memory runs out: try fewer --data.workers." if code == -9 else ""
            raise DataError(f"a process that decodes images {how}.{hint}" + (f"\n{words}" if words else ""))


def _pin(memory: Tensor) -> int:
    """Lock memory for copies that a GPU makes by itself; returns its address."""
    address = memory.data_ptr()
    torch.cuda.check_error(torch.cuda.cudart().cudaHostRegister(address, memory.nbytes, 0))
    return address


def _end(
    workers: "Sequence[subprocess.Popen[bytes]]",
    tasks: socket.socket,
    results: socket.socket,
    words: int,
    pinned: int | None,
) -> None:
    """Stop the processes where they are: what they write is wanted no longer."""
    for worker in workers:
        worker.kill()
    for worker in workers:
        with suppress(subprocess.TimeoutExpired):  # in the kernel, waiting for a disk that does not answer
            worker.wait(5)
    tasks.close()
    results.close()
    os.close(words)
    if pinned is not None:
        torch.cuda.cudart().cudaHostUnregister(pinned)
