"""Decode image files into one uint8 tensor, or find out which of them can be decoded; free memory and cores."""

import math
import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from mixfast.data.cache import SQUARES, VERDICTS, Cache, Rows, digest
from mixfast.data.config import DataConfig
from mixfast.data.decoder import decode_file, reason
from mixfast.data.loader import Library
from mixfast.data.scan import Listing, printable
from mixfast.errors import DataError
from mixfast.world import current

_FILES_PER_TASK = 64
_SMALL_FILE = 16 * 1024  # bytes, below which Python's own work takes longer than the decoding
_SECONDS_PER_LINE = 10.0
PrintLine = Callable[[str], None]


class Readable(NamedTuple):
    """The files of a listing that can be decoded, and digests of their images."""

    positions: Tensor  # int64 [R], ascending, in the listing
    digests: Tensor  # int64 [R]: equal for equal images


def read(listing: Listing, cfg: DataConfig, print_line: PrintLine) -> tuple[Tensor, Readable]:
    """Load the images of a listing into memory: from the cache where their files are unchanged, else by decoding.

    Files that cannot be decoded are omitted, counted and named in a line of `print_line`.

    Threads decode, not processes: decoding and resizing release Python's global lock, and a new process would spend
    longer on importing torch than on decoding 10,000 small images. For small files most of the time is spent with the
    lock, and one thread is the fastest.

    Returns:
        (images, readable): uint8 [R, 3, size, size], and their positions in the listing with digests.

    Raises:
        DataError: no file could be read, or the images would not fit in memory.
    """
    files, size, workers = listing.files, cfg.size, cfg.workers
    check_memory(len(files), size, printable(listing.root))
    images = torch.empty(len(files), 3, size, size, dtype=torch.uint8)
    digests = torch.zeros(len(files), dtype=torch.int64)
    failed: dict[int, str] = {}
    any_decoded = False
    with Cache(listing.root, size, SQUARES, cfg, print_line) as cache:
        rows = cache.find(listing).tolist()

        def fill(start: int) -> int:
            nonlocal any_decoded
            part = range(start, min(start + _FILES_PER_TASK, len(files)))
            for i in part:
                if not cache.fetch(rows[i], images[i]):
                    try:
                        images[i] = decode_file(listing.root / files[i], size)
                        any_decoded = True
                    except MemoryError:
                        raise
                    except Exception as error:  # Pillow raises whatever a broken file leads it to
                        failed[i] = reason(error)
                        continue
                digests[i] = digest(images[i])
            return len(part)

        starts = range(0, len(files), _FILES_PER_TASK)
        with progress(f"decoding {printable(listing.root)}", len(files), print_line) as advance:
            if workers is None:
                workers = cores() if _mean_bytes(listing) > _SMALL_FILE else 0
            for count in _in_threads(fill, starts, workers):
                advance(count)
        positions = _readable_positions(listing, failed, print_line)
        images, digests = _compact(images, positions), digests[positions]
        if any_decoded:
            decoded = listing.take(positions)
            cache.write(Rows(decoded.files, decoded.marks[:, :2], digests, images))
    return images, Readable(positions, digests)


def examine(listing: Listing, library: Library, first: int, cfg: DataConfig, print_line: PrintLine) -> Readable:
    """Find out which files of a listing can be decoded, with the processes that will decode them in training.

    Every file is decoded once, which takes as long as an epoch without training; the cache stores which files could be
    decoded, and they are not decoded here again until they change. Files that cannot be decoded are counted in a line.

    Args:
        listing: N files.
        library: the files are its images number `first` to `first` + N - 1.
        first: number of the first image.
        cfg: size, cache and cache_dir are read.
        print_line: prints a line.

    Raises:
        DataError: no file could be read, or a process has died.
    """
    digests = torch.zeros(len(listing.files), dtype=torch.int64)
    failed: dict[int, str] = {}
    with Cache(listing.root, cfg.size, VERDICTS, cfg, print_line) as cache:
        rows = cache.find(listing)
        cached, uncached = (rows >= 0).nonzero().flatten(), (rows < 0).nonzero().flatten()
        digests[cached] = torch.tensor([cache.digest(row) for row in rows[cached].tolist()], dtype=torch.int64)
        tasks = uncached.split(library.task_size) if len(uncached) else ()
        with progress(f"looking through {printable(listing.root)}", len(uncached), print_line) as advance:
            for task, result in zip(tasks, library.decoded([first + task for task in tasks]), strict=True):
                for row, i in enumerate(task.tolist()):
                    if row in result.broken:
                        failed[i] = result.broken[row]
                    else:
                        digests[i] = digest(result.images[row])
                advance(len(task))
        positions = _readable_positions(listing, failed, print_line)
        if len(failed) < len(uncached):
            decoded = listing.take(positions)
            cache.write(Rows(decoded.files, decoded.marks[:, :2], digests[positions], None))
    return Readable(positions, digests[positions])


def _in_threads(task: Callable[[int], int], arguments: Sequence[int], workers: int) -> Iterator[int]:
    """Yield the result of the task for each argument, in order; with 0 workers, without another thread."""
    if workers == 0:
        yield from map(task, arguments)
        return
    pool = ThreadPoolExecutor(workers)
    try:
        yield from pool.map(task, arguments)
    finally:  # an interrupt must not wait for the files that are still queued
        pool.shutdown(wait=True, cancel_futures=True)


def _readable_positions(listing: Listing, failed: dict[int, str], print_line: PrintLine) -> Tensor:
    """Positions of the files that did not fail, int64; prints the number of failed files, and the first of them."""
    if failed:
        first, count = min(failed), len(listing.files)
        summary = (
            f"{len(failed)} of {count} image files under {printable(listing.root)} could not be read; the first is "
        )
        summary += f"{printable(listing.files[first])} ({failed[first]})"
        if len(failed) == count:
            raise DataError(f"{summary}. Check that they are images, and complete.")
        print_line(f"{summary}. They are left out.")
    readable = torch.ones(len(listing.files), dtype=torch.bool)
    readable[list(failed)] = False
    return readable.nonzero().flatten()


def _compact(images: Tensor, index: Tensor) -> Tensor:
    """The images at `index`, ascending, moved to the front in place, as a copy might not fit in memory."""
    if len(index) == len(images):
        return images
    for start in range(0, len(index), 1024):  # index[i] >= i, so no image is overwritten before it is read
        source = index[start : start + 1024]
        images[start : start + len(source)] = images[source]
    return images[: len(index)]


def _mean_bytes(listing: Listing) -> float:
    """Mean size of the files."""
    return float(listing.marks[:, 0].double().mean())


def cores() -> int:
    """CPU cores that this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@contextmanager
def progress(title: str, total: int, print_line: PrintLine) -> Iterator[Callable[[int], None]]:
    """A bar on a terminal, else a line every ten seconds; yields a function that counts files."""
    if sys.stderr and sys.stderr.isatty():
        from rich.console import Console
        from rich.progress import Progress

        with Progress(console=Console(stderr=True), transient=True) as bar:
            task = bar.add_task(title, total=total)
            yield lambda count: bar.advance(task, count)
        return
    count_done, start = 0, time.monotonic()
    last_line = start

    def advance(count: int) -> None:
        nonlocal count_done, last_line
        count_done += count
        seconds = time.monotonic()
        if seconds - last_line > _SECONDS_PER_LINE:
            last_line = seconds
            print_line(f"{title}: {count_done:,} of {total:,} files, {count_done / (seconds - start):,.0f}/s")

    yield advance


def fits_in_memory(cfg: DataConfig, count: int, device_bytes: int | None) -> bool:
    """Whether `count` images are to be decoded at once: as the option says; if it is auto, if they need at most half of
    the host's free memory, shared by the processes that train there, and at most half of the device's memory."""
    if cfg.in_memory != "auto":
        return cfg.in_memory == "yes"
    host = available_bytes()
    limits = [host / current().local_size] if host is not None else []
    limits += [device_bytes] if device_bytes is not None else []
    return count * 3 * cfg.size**2 <= min(limits, default=math.inf) / 2


def check_memory(count: int, size: int, title: object) -> None:
    """Raise DataError if `count` images do not fit into the free memory; `title` is their name in the message."""
    need, free = count * 3 * size**2, available_bytes()
    if free is not None and need > 0.9 * free:
        raise DataError(
            f"{title}: {count:,} images of {size} px need {need / 2**30:.1f} GiB of memory, {free / 2**30:.1f} GiB are "
            "free. Use --data.in_memory no (or auto), --data.limit or a smaller --data.size."
        )


def available_bytes() -> int | None:
    """Free memory in bytes: that of the system, or of the control group if less; None if neither is known."""
    limits = []
    with suppress(OSError, KeyError, ValueError), open("/proc/meminfo") as file:
        lines = dict(line.split(":", 1) for line in file)
        limits.append(int(lines["MemAvailable"].split()[0]) * 1024)
    if (group_limit := group_bytes(Path("/sys/fs/cgroup"))) is not None:
        limits.append(group_limit)
    return min(limits, default=None)


def group_bytes(group: Path) -> int | None:
    """Memory in bytes that a control group (v2) may still use; None without a group, or without a limit.

    The system's cache of files counts as used memory, but the system frees it on demand.
    """
    try:
        limit, used = (int((group / f"memory.{name}").read_text()) for name in ("max", "current"))
        statistics = dict(line.split() for line in (group / "memory.stat").read_text().splitlines())
        return limit - used + int(statistics["active_file"]) + int(statistics["inactive_file"])
    except (OSError, KeyError, ValueError):  # no control group, or "max"
        return None
