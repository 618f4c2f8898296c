"""Decode image files into one uint8 tensor, and keep it in a cache file."""

import hashlib
import math
import os
import sys
import time
import zipfile
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from mixfast.data.config import DataConfig
from mixfast.data.decoder import decode_file
from mixfast.errors import DataError

_FORMAT = 2  # of the cache file; a change makes old files count as absent
_FILES_PER_TASK = 64
_SMALL_FILE = 16 * 1024  # bytes; below, Python's own work outweighs the decoding
_SECONDS_PER_LINE = 10.0
Say = Callable[[str], None]


def read(root: Path, files: Sequence[str], size: int, cfg: DataConfig, say: Say) -> tuple[Tensor, Tensor]:
    """The images at `files` below `root`, from the cache if they are unchanged since they were put there.

    Files that cannot be decoded are left out, counted and named in a line of `say`.

    Returns:
        (images, readable): uint8 [R, 3, size, size], and the int64 [R] positions in `files` that could be read.

    Raises:
        DataError: no file could be read, or the images would not fit in memory.
    """
    check_memory(len(files), size, root)
    cached = _cache_file(root, files, size, cfg) if cfg.cache else None
    if cached is not None and cached.exists():
        try:
            with open(cached, "rb") as file, np.load(file, allow_pickle=False) as archive:
                return torch.from_numpy(archive["images"]), torch.from_numpy(archive["readable"])
        except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
            say(f"cache {cached} is damaged ({error}); decoding again")
    images, readable = decode(root, files, size, cfg.workers, say)
    if cached is not None:
        _store(cached, images, readable, say)
    return images, readable


def decode(root: Path, files: Sequence[str], size: int, workers: int | None, say: Say) -> tuple[Tensor, Tensor]:
    """Decode without a cache; see `read`.

    Threads, not processes: decoding and resizing work outside Python's lock, and a new process would spend longer on
    importing torch than on decoding 10,000 small images. For small files the lock is all there is, and one thread is
    the fastest.
    """
    images = torch.empty(len(files), 3, size, size, dtype=torch.uint8)
    failed: dict[int, str] = {}

    def fill(start: int) -> int:
        part = range(start, min(start + _FILES_PER_TASK, len(files)))
        for i in part:
            try:
                images[i] = decode_file(root / files[i], size)
            except Exception as error:  # Pillow raises whatever a broken file leads it to
                failed[i] = f"{type(error).__name__}: {error}"
        return len(part)

    starts = range(0, len(files), _FILES_PER_TASK)
    with progress(f"decoding {root}", len(files), say) as advance:
        if workers is None:
            workers = cores() if _mean_bytes(root, files) > _SMALL_FILE else 0
        if workers == 0:
            for start in starts:
                advance(fill(start))
        else:
            pool = ThreadPoolExecutor(workers)
            try:
                for count in pool.map(fill, starts):
                    advance(count)
            finally:  # an interrupt must not wait for the files that are still queued
                pool.shutdown(wait=True, cancel_futures=True)
    if not failed:
        return images, torch.arange(len(files))
    first = min(failed)
    what = f"{len(failed)} of {len(files)} image files under {root} could not be read; the first is "
    what += f"{files[first]} ({failed[first]})"
    if len(failed) == len(files):
        raise DataError(f"{what}. Check that they are images, and complete.")
    say(f"{what}. They are left out.")
    return _compact(images, failed)


def _compact(images: Tensor, failed: dict[int, str]) -> tuple[Tensor, Tensor]:
    """Close the gaps in place: a second copy might not fit."""
    keep = torch.ones(len(images), dtype=torch.bool)
    keep[list(failed)] = False
    readable = keep.nonzero().flatten()
    for start in range(0, len(readable), 1024):  # position i comes from readable[i] >= i: nothing unread is lost
        source = readable[start : start + 1024]
        images[start : start + len(source)] = images[source]
    return images[: len(readable)], readable


def _mean_bytes(root: Path, files: Sequence[str]) -> float:
    """Mean size of about 100 of the files."""
    some = files[:: 1 + len(files) // 100]
    return sum(_stat(root / file)[0] for file in some) / len(some)


def _stat(path: Path) -> tuple[int, int]:
    """Bytes, and time of the last change in ns; zeros for what cannot be asked, such as a dangling link."""
    try:
        found = os.stat(path)
    except OSError:
        return 0, 0
    return found.st_size, found.st_mtime_ns


def cores() -> int:
    """CPU cores that this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@contextmanager
def progress(title: str, total: int, say: Say) -> Iterator[Callable[[int], None]]:
    """A bar on a terminal, else a line every ten seconds; yields a function that counts files."""
    if sys.stderr.isatty():
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
            say(f"{title}: {done:,} of {total:,} files, {done / (now - start):,.0f}/s")

    yield advance


def _cache_file(root: Path, files: Sequence[str], size: int, cfg: DataConfig) -> Path:
    """Where the decoded images belong: the name changes with every file's name, size and time, and with `size`."""
    if cfg.cache_dir is not None:
        folder = Path(cfg.cache_dir).expanduser()
    else:
        folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "mixfast"
    base = root.resolve()
    digest = hashlib.sha256(f"{_FORMAT}\0{base}\0{size}\0".encode())
    for file in files:
        length, changed = _stat(base / file)
        digest.update(f"{file}\0{length}\0{changed}\0".encode())
    return folder / f"{base.name}-{size}px-{digest.hexdigest()[:20]}.npz"


def _store(path: Path, images: Tensor, readable: Tensor, say: Say) -> None:
    """Write beside, then rename: another run sees the whole file or none. A full or read-only disk costs the cache."""
    fresh = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(fresh, "wb") as file:
            np.savez(file, images=images.numpy(), readable=readable.numpy())
            file.flush()
            os.fsync(file.fileno())
        os.replace(fresh, path)
    except OSError as error:
        say(f"the decoded images were not cached: {error}")
    finally:
        with suppress(OSError):  # it is there only if something went wrong
            fresh.unlink()


def fits_in_memory(cfg: DataConfig, count: int, device_bytes: int | None) -> bool:
    """Whether `count` images are to be decoded at once: as the option says, else if they take at most half of what the
    host still has and of what the device has."""
    if cfg.in_memory != "auto":
        return cfg.in_memory == "yes"
    limits = [limit for limit in (available_bytes(), device_bytes) if limit is not None]
    return count * 3 * cfg.size**2 <= min(limits, default=math.inf) / 2


def check_memory(count: int, size: int, what: object) -> None:
    """Raise DataError if `count` images would take more than what is free; `what` names them."""
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
    """What a control group (v2) may still take; None without one, or without a limit.

    What the system keeps of files that were read counts as used, and is given back on demand.
    """
    try:
        limit, used = (int((group / f"memory.{name}").read_text()) for name in ("max", "current"))
        kept = dict(line.split() for line in (group / "memory.stat").read_text().splitlines())
        return limit - used + int(kept["active_file"]) + int(kept["inactive_file"])
    except (OSError, KeyError, ValueError):  # no control group, or "max"
        return None
