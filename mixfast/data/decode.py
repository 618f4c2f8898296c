"""Decode image files into one uint8 tensor, or find out which of them can be decoded; memory and cores for that."""

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
from mixfast.data.scan import Listing, shown
from mixfast.errors import DataError
from mixfast.world import current

_FILES_PER_TASK = 64
_SMALL_FILE = 16 * 1024  # bytes; below, Python's own work outweighs the decoding
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
        (images, readable): uint8 [R, 3, size, size], and which they are.

    Raises:
        DataError: no file could be read, or the images would not fit in memory.
    """
    files, size, workers = listing.files, cfg.size, cfg.workers
    check_memory(len(files), size, shown(listing.root))
    images = torch.empty(len(files), 3, size, size, dtype=torch.uint8)
    digests = torch.zeros(len(files), dtype=torch.int64)
    failed: dict[int, str] = {}
    fresh = False
    with Cache(listing.root, size, SQUARES, cfg, print_line) as cache:
        rows = cache.find(listing).tolist()

        def fill(start: int) -> int:
            nonlocal fresh
            part = range(start, min(start + _FILES_PER_TASK, len(files)))
            for i in part:
                if not cache.fetch(rows[i], images[i]):
                    try:
                        images[i] = decode_file(listing.root / files[i], size)
                        fresh = True
                    except MemoryError:
                        raise
                    except Exception as error:  # Pillow raises whatever a broken file leads it to
                        failed[i] = reason(error)
                        continue
                digests[i] = digest(images[i])
            return len(part)

        starts = range(0, len(files), _FILES_PER_TASK)
        with progress(f"decoding {shown(listing.root)}", len(files), print_line) as advance:
            if workers is None:
                workers = cores() if _mean_bytes(listing) > _SMALL_FILE else 0
            for count in _in_threads(fill, starts, workers):
                advance(count)
        index = _left(listing, failed, print_line)
        images, digests = _compact(images, index), digests[index]
        if fresh:
            kept = listing.take(index)
            cache.write(Rows(kept.files, kept.marks[:, :2], digests, images))
    return images, Readable(index, digests)


def examine(listing: Listing, library: Library, first: int, cfg: DataConfig, print_line: PrintLine) -> Readable:
    """Find out which files of a listing can be decoded, with the processes that will decode them in training.

    Every file is decoded once, as long as one epoch takes without training; what could be decoded is kept in the cache,
    and is not looked at again until the file changes. Files that cannot be decoded are counted and named in a line.

    Args:
        listing: of the files.
        library: whose images from number `first` on they are.
        first: see there.
        cfg: size, cache and cache_dir are read.
        print_line: prints a line.

    Raises:
        DataError: no file could be read, or a process has died.
    """
    digests = torch.zeros(len(listing.files), dtype=torch.int64)
    failed: dict[int, str] = {}
    with Cache(listing.root, cfg.size, VERDICTS, cfg, print_line) as cache:
        rows = cache.find(listing)
        known, unknown = (rows >= 0).nonzero().flatten(), (rows < 0).nonzero().flatten()
        digests[known] = torch.tensor([cache.digest(row) for row in rows[known].tolist()], dtype=torch.int64)
        tasks = unknown.split(library.task_size) if len(unknown) else ()
        with progress(f"looking through {shown(listing.root)}", len(unknown), print_line) as advance:
            for task, found in zip(tasks, library.decoded([first + task for task in tasks]), strict=True):
                for row, i in enumerate(task.tolist()):
                    if row in found.broken:
                        failed[i] = found.broken[row]
                    else:
                        digests[i] = digest(found.images[row])
                advance(len(task))
        index = _left(listing, failed, print_line)
        if len(failed) < len(unknown):
            kept = listing.take(index)
            cache.write(Rows(kept.files, kept.marks[:, :2], digests[index], None))
    return Readable(index, digests[index])


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


def _left(listing: Listing, failed: dict[int, str], print_line: PrintLine) -> Tensor:
    """Positions of the files that did not fail, int64; prints how many failed, and the first of them."""
    if failed:
        first, count = min(failed), len(listing.files)
        what = f"{len(failed)} of {count} image files under {shown(listing.root)} could not be read; the first is "
        what += f"{shown(listing.files[first])} ({failed[first]})"
        if len(failed) == count:
            raise DataError(f"{what}. Check that they are images, and complete.")
        print_line(f"{what}. They are left out.")
    keep = torch.ones(len(listing.files), dtype=torch.bool)
    keep[list(failed)] = False
    return keep.nonzero().flatten()


def _compact(images: Tensor, index: Tensor) -> Tensor:
    """The images at `index`, ascending, moved to the front in place: a second copy might not fit."""
    if len(index) == len(images):
        return images
    for start in range(0, len(index), 1024):  # position i comes from index[i] >= i: nothing unread is lost
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
    done, start = 0, time.monotonic()
    spoken = start

    def advance(count: int) -> None:
        nonlocal done, spoken
        done += count
        now = time.monotonic()
        if now - spoken > _SECONDS_PER_LINE:
            spoken = now
            print_line(f"{title}: {done:,} of {total:,} files, {done / (now - start):,.0f}/s")

    yield advance


def fits_in_memory(cfg: DataConfig, count: int, device_bytes: int | None) -> bool:
    """Whether `count` images are to be decoded at once: as the option says, else if they take at most half of what the
    host still has, shared by the processes that train there, and of what the device has."""
    if cfg.in_memory != "auto":
        return cfg.in_memory == "yes"
    host = available_bytes()
    limits = [host / current().local_size] if host is not None else []
    limits += [device_bytes] if device_bytes is not None else []
    return count * 3 * cfg.size**2 <= min(limits, default=math.inf) / 2


def check_memory(count: int, size: int, what: object) -> None:
    """Raise DataError if `count` images do not fit into the free memory; `what` is their name in the message."""
    need, free = count * 3 * size**2, available_bytes()
    if free is not None and need > 0.9 * free:
        raise DataError(
            f"{what}: {count:,} images of {size} px need {need / 2**30:.1f} GiB of memory, {free / 2**30:.1f} GiB are "
            "free. Use --data.in_memory no (or auto), --data.limit or a smaller --data.size."
        )


def available_bytes() -> int | None:
    """Memory that can still be had: the system's, cut by the control group's limit; None where neither is known."""
    found = []
    with suppress(OSError, KeyError, ValueError), open("/proc/meminfo") as file:
        lines = dict(line.split(":", 1) for line in file)
        found.append(int(lines["MemAvailable"].split()[0]) * 1024)
    if (left := group_bytes(Path("/sys/fs/cgroup"))) is not None:
        found.append(left)
    return min(found, default=None)


def group_bytes(group: Path) -> int | None:
    """Memory in bytes that a control group (v2) may still use; None without a group, or without a limit.

    The system's cache of files counts as used memory, but the system frees it on demand.
    """
    try:
        limit, used = (int((group / f"memory.{name}").read_text()) for name in ("max", "current"))
        kept = dict(line.split() for line in (group / "memory.stat").read_text().splitlines())
        return limit - used + int(kept["active_file"]) + int(kept["inactive_file"])
    except (OSError, KeyError, ValueError):  # no control group, or "max"
        return None
