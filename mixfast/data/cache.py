"""A cache file with the result of decoding a folder: the square images, or only which files can be decoded.

There is one cache file for each folder, side and form, whatever the split, the seed and the limit of a run. Each image
file that could be decoded has a row, which is valid while the file's size and time are unchanged. The layout:

    magic     16 bytes
    length    int64, little-endian   bytes of the header
    checksum  20 bytes               SHA-1 of header and table
    header    JSON                   side, squares, and the names of the rows
    table     int64 [rows, 4]        bytes and time of the file, digest of its square, position of the square or -1
    squares   uint8 [squares, 3, side, side]
"""

import contextlib
import hashlib
import json
import os
import re
import shutil
import time
import uuid
from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType
from typing import BinaryIO, NamedTuple

import numpy as np
import torch
from torch import Tensor

from mixfast.data.config import DataConfig
from mixfast.data.scan import Listing, absolute, printable

SHARE = 0.5  # of the disk space that is free or taken by the cache, which the cache may take
SQUARES, VERDICTS = "squares", "verdicts"  # the two forms, and the endings of their files
_MAGIC = b"mixfast cache 3\n"
_CACHE_FILE = re.compile(rf".*-\d+px-[0-9a-f]{{20}}\.(npz|{SQUARES}|{VERDICTS})(\.[0-9a-f]+\.tmp)?", re.DOTALL)
_ABANDONED = 24 * 3600  # seconds after which a temporary file is deleted: its writer has failed
PrintLine = Callable[[str], None]


class Rows(NamedTuple):
    """Files of a listing that could be decoded."""

    files: Sequence[str]
    marks: Tensor  # int64 [N, 2]: bytes and time of the files before they were decoded
    digests: Tensor  # int64 [N] of the squares
    squares: Tensor | None  # uint8 [N, 3, S, S]; None: not stored, only that the files could be decoded


def digest(square: Tensor) -> int:
    """64 bits of the SHA-1 of a contiguous tensor: equal for equal images, and different for different ones."""
    checksum = hashlib.sha1(square.numpy().data, usedforsecurity=False).digest()
    return int.from_bytes(checksum[:8], "little", signed=True)


class Cache:
    """The rows that earlier runs stored for a folder, none if there is no file; use it as a context."""

    def __init__(self, root: Path, size: int, form: str, cfg: DataConfig, print_line: PrintLine):
        """
        Args:
            root: the folder of images.
            size: side of the squares in pixels.
            form: SQUARES or VERDICTS.
            cfg: cache and cache_dir are read.
            print_line: prints a line about what is damaged, deleted or cannot be written.
        """
        self.path = _path(root, size, form, cfg, print_line) if cfg.cache else None
        self._root, self._size, self._print_line = root, size, print_line
        self._damaged = 0  # number of squares whose digest is wrong
        self._names: dict[str, int] = {}
        self._table, self._start, self._file = np.empty((0, 4), np.int64), 0, -1

    def __enter__(self) -> "Cache":
        if self.path is not None:
            try:
                self._open(self.path)
            except FileNotFoundError:
                pass
            except (OSError, ValueError, KeyError, TypeError) as error:
                self._print_line(f"cache {printable(self.path)} is damaged or cannot be read ({error}); decoding again")
        return self

    def __exit__(self, kind: type[BaseException] | None, _: BaseException | None, __: TracebackType | None) -> None:
        if self._file >= 0:
            os.close(self._file)

    def _open(self, path: Path) -> None:
        self._file = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        with contextlib.suppress(OSError):
            os.utime(path)  # the least recently used files are deleted first
        with open(self._file, "rb", closefd=False) as file:
            size = os.fstat(self._file).st_size
            magic, length, checksum = file.read(len(_MAGIC)), int.from_bytes(file.read(8), "little"), file.read(20)
            if magic != _MAGIC or length > size:
                raise ValueError("it is incomplete, or of another version")
            header = file.read(length)
            content = json.loads(header)
            table = file.read(32 * len(content["names"]))
            start = file.tell()
        if hashlib.sha1(header + table, usedforsecurity=False).digest() != checksum:
            raise ValueError("its checksum is wrong")
        if content["side"] != self._size or size != start + content["squares"] * 3 * self._size**2:
            raise ValueError(f"it has {size:,} bytes for {content['squares']} squares of {content['side']} px")
        self._table, self._start = np.frombuffer(table, "<i8").reshape(-1, 4), start
        self._names = {name: row for row, name in enumerate(content["names"])}

    def find(self, listing: Listing) -> Tensor:
        """int64 [N]: the row of each file of a listing; -1 if it has none or the file has changed since."""
        rows = torch.tensor([self._names.get(file, -1) for file in listing.files], dtype=torch.int64)
        marks = torch.from_numpy(np.concatenate([self._table[:, :2], [[-1, -1]]]))  # the last row is for row -1
        return torch.where((marks[rows] == listing.marks[:, :2]).all(1), rows, -1)

    def digest(self, row: int) -> int:
        """The digest of a row's square."""
        return int(self._table[row, 2])

    def fetch(self, row: int, square: Tensor) -> bool:
        """Read a row's square into uint8 [3, S, S], in any thread; False if it is missing or damaged."""
        was_read = row >= 0 and self._copy(row, square)
        is_valid = was_read and digest(square) == self.digest(row)
        self._damaged += was_read and not is_valid
        return is_valid

    def _copy(self, row: int, square: Tensor) -> bool:
        position, count = int(self._table[row, 3]), square.numel()
        if position < 0:
            return False
        try:
            target = square.numpy().data.cast("B")
            return os.preadv(self._file, [target], self._start + position * count) == count
        except OSError:
            return False

    def write(self, rows: Rows) -> None:
        """Store rows, and keep the rows of other files of the folder that have not changed.

        The file is written under another name and then renamed, so that another run sees all of it or nothing. If the
        cache would grow too large, the least recently used files are deleted. On a full or read-only disk nothing is
        stored, and a line says so.
        """
        if self.path is None:
            return
        if self._damaged:
            self._print_line(f"cache {printable(self.path)}: {self._damaged:,} images are damaged; decoded again")
        temporary = self.path.with_name(f"{self.path.name}.{uuid.uuid4().hex}.tmp")
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            chosen = set(rows.files)
            other_rows = [row for name, row in self._names.items() if name not in chosen and self._unchanged(name, row)]
            pixels = 0 if rows.squares is None else 3 * self._size**2
            if _make_room(self.path, (len(rows.files) + len(other_rows)) * (pixels + 100), self._print_line):
                with open(temporary, "xb") as file:
                    self._write(file, rows, other_rows)
                    file.flush()
                    os.fsync(file.fileno())
                os.replace(temporary, self.path)
        except OSError as error:
            self._print_line(f"what was decoded is not kept for the next run: {error}")
        finally:
            with contextlib.suppress(OSError):  # it exists only after an error
                temporary.unlink()

    def _unchanged(self, name: str, row: int) -> bool:
        try:
            status = os.stat(self._root / name)
        except OSError:
            return False
        return [status.st_size, status.st_mtime_ns] == self._table[row, :2].tolist()

    def _write(self, file: BinaryIO, rows: Rows, other_rows: Sequence[int]) -> None:
        names, count = list(self._names), len(rows.files)
        files = [*rows.files, *(names[row] for row in other_rows)]
        table = np.full((len(files), 4), -1, np.int64)
        table[:count, :2], table[:count, 2] = rows.marks.numpy(), rows.digests.numpy()
        table[count:, :3] = self._table[list(other_rows), :3]
        if rows.squares is not None:
            table[:, 3] = np.arange(len(files))
        header = json.dumps({"side": self._size, "squares": int((table[:, 3] >= 0).sum()), "names": files}).encode()
        body = table.astype("<i8").tobytes()
        checksum = hashlib.sha1(header + body, usedforsecurity=False).digest()
        for part in (_MAGIC, len(header).to_bytes(8, "little"), checksum, header, body):
            file.write(part)
        if rows.squares is not None:
            for squares in rows.squares.split(1024):
                file.write(squares.numpy().data.cast("B"))
            square = torch.empty(3, self._size, self._size, dtype=torch.uint8)
            for row in other_rows:
                self._copy(row, square)  # a damaged square keeps its digest, and is detected when it is used
                file.write(square.numpy().data.cast("B"))


def _path(root: Path, size: int, form: str, cfg: DataConfig, print_line: PrintLine) -> Path | None:
    """The cache file of a folder, a side and a form; None without a home."""
    if cfg.cache_dir is not None:
        folder = absolute(cfg.cache_dir, "data.cache_dir")
    else:
        try:
            folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "mixfast"
        except RuntimeError:
            print_line(
                "what is decoded is not kept for the next run: there is no home folder; --data.cache_dir names a place"
            )
            return None
    base = root.resolve()
    key = hashlib.sha256(os.fsencode(base) + f"\0{size}".encode()).hexdigest()[:20]
    name = re.sub(r"[^\w.-]", "_", base.name, flags=re.ASCII)[:60]
    return folder / f"{name}-{size}px-{key}.{form}"


def _make_room(path: Path, need: int, print_line: PrintLine) -> bool:
    """Delete cache files until `need` bytes at `path` are within SHARE; False if that is more than all of it."""
    files = []
    for file in path.parent.iterdir():
        if _CACHE_FILE.fullmatch(file.name) and file != path:
            with contextlib.suppress(FileNotFoundError):  # another process may rename its file at any moment
                files.append((file.stat(), file))
    limit = SHARE * (shutil.disk_usage(path.parent).free + sum(status.st_size for status, _ in files))
    if need > limit:
        print_line(
            f"what was decoded is not kept for the next run: it would take {need / 2**20:,.1f} MiB, and the cache in "
            f"{printable(path.parent)} may take {limit / 2**20:,.1f}"
        )
        return False
    used = need + sum(status.st_size for status, _ in files)
    for status, file in sorted(files, key=lambda pair: pair[0].st_mtime):
        abandoned = file.suffix == ".tmp" and time.time() - status.st_mtime > _ABANDONED
        if used > limit or abandoned:
            file.unlink(missing_ok=True)
            used -= status.st_size
            print_line(f"cache: deleted {printable(file)} ({status.st_size / 2**20:.0f} MiB, not used for longest)")
    return True
