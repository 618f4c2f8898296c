"""Locks a run folder, so that one process at a time writes to it, and cleans up after a start that failed."""

import errno
import fcntl
import json
import os
import shutil
import socket
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, ClassVar

from mixfast.errors import ConfigError
from mixfast.run.folder import RunFolder, make_folders, now, remove_empty

LOCK = "lock"  # file of the run folder; its lock is the kernel's and ends with the process
_NO_LOCKS = (errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL)
PrintLine = Callable[[str], None]


class Claim:
    """A run folder that no other process writes to until `release`. Use `new`, `numbered` or `existing`."""

    fresh: bool  # nothing but the lock is in it yet

    def __init__(self, folder: RunFolder, made: list[Path], print_line: PrintLine):
        """
        Args:
            folder: it exists.
            made: folders that were made for it, the outermost first.
            print_line: prints a line.

        Raises:
            ConfigError: another process has it.
        """
        self.folder, self._made = folder, made
        self._new_lock = not (folder.path / LOCK).exists()
        self._replace = False
        try:
            self._lock = Lock(folder.path, print_line)
        except BaseException:
            remove_empty(made)
            raise
        self.fresh = not _occupied(folder.path)

    @classmethod
    def new(cls, path: Path, overwrite: bool, print_line: PrintLine) -> "Claim":
        """A folder to begin a run in; with `overwrite`, that of an earlier run, which stays as it is until `begin`.

        Raises:
            ConfigError: the path exists and is not empty; with `overwrite`, it exists and is not a run's folder; or
                another process writes to it.
        """
        _check(path, overwrite)
        made = make_folders(path)
        claim = cls(RunFolder(path), made, print_line)
        try:
            _check(path, overwrite)  # another run may have begun and ended before the lock was had
        except ConfigError:
            claim.abandon()
            raise
        claim._replace = not claim.fresh
        return claim

    @classmethod
    def numbered(cls, parent: Path, name: str, print_line: PrintLine) -> "Claim":
        """A new folder parent/name-NNNN, one above the highest number there."""
        made = make_folders(parent)
        folder = RunFolder.create_numbered(parent, name)
        return cls(folder, [*made, folder.path], print_line)

    @classmethod
    def existing(cls, path: Path, print_line: PrintLine) -> "Claim":
        """The folder of a run that exists; a path inside its checkpoints/ counts.

        Raises:
            CheckpointError: no run's folder there. ConfigError: another process writes to it.
        """
        return cls(RunFolder.open(path), [], print_line)

    def begin(self) -> None:
        """From here on the folder is this run's: what an earlier run left is deleted if it is to be replaced."""
        if self._replace:
            _empty(self.folder.path)

    def abandon(self) -> None:
        """Leave everything as it was before the claim; not after `begin`."""
        if self.fresh:
            with suppress(OSError):
                _empty(self.folder.path)
        if self._new_lock:
            with suppress(OSError):
                (self.folder.path / LOCK).unlink()
        remove_empty(self._made)
        self.release()

    def release(self) -> None:
        """Let others have the folder."""
        self._lock.release()


class Lock:
    """An exclusive lock on the file `LOCK` of a folder. It names its process for others to show."""

    # Descriptors of this process. A child that was forked must not keep the lock when this process has ended.
    held: ClassVar[set[int]] = set()

    def __init__(self, folder: Path, print_line: PrintLine):
        """
        Raises:
            ConfigError: another process has it. OSError: there can be no such file.
        """
        path = folder / LOCK
        while True:
            self._descriptor: int | None = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
            try:
                fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                owner = _owner(self._descriptor)
                self.release()
                if error.errno in _NO_LOCKS:
                    print_line(
                        f"{folder}: no locks on this file system ({error.strerror}): let no other run write to it"
                    )
                    return
                if error.errno not in (errno.EWOULDBLOCK, errno.EACCES):
                    raise
                raise ConfigError(
                    f"{folder} belongs to a run in progress: {owner}. Wait for its end or stop it, or choose another "
                    "--out."
                ) from None
            Lock.held.add(self._descriptor)
            if _same(self._descriptor, path):
                break
            self.release()  # its file was deleted meanwhile, with whatever began and failed there
        with suppress(OSError):  # on a full disk others see no name
            os.ftruncate(self._descriptor, 0)
            facts = {"pid": os.getpid(), "host": socket.gethostname(), "since": now()}
            os.pwrite(self._descriptor, json.dumps(facts).encode() + b"\n", 0)

    def release(self) -> None:
        """Give it back."""
        if self._descriptor is not None:
            Lock.held.discard(self._descriptor)
            os.close(self._descriptor)
            self._descriptor = None

    @classmethod
    def close_in_child(cls) -> None:
        """Called in every forked process: closing its copy frees nothing while the parent's is open."""
        for descriptor in cls.held:
            with suppress(OSError):
                os.close(descriptor)
        cls.held.clear()


os.register_at_fork(after_in_child=Lock.close_in_child)


def _owner(descriptor: int) -> str:
    try:
        facts: dict[str, Any] = json.loads(os.pread(descriptor, 4096, 0))
        return f"process {facts['pid']} on {facts['host']}, since {facts['since']}"
    except (OSError, ValueError, KeyError, TypeError):
        return "another process"


def _same(descriptor: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), os.stat(path))
    except FileNotFoundError:
        return False


def _occupied(path: Path) -> bool:
    return path.exists() and (not path.is_dir() or any(item.name != LOCK for item in path.iterdir()))


def _check(path: Path, overwrite: bool) -> None:
    if not _occupied(path):
        return
    if not overwrite:
        raise ConfigError(
            f"--out {path} exists and is not empty. Continue it with --resume {path}, replace it with "
            f"--overwrite, or choose another --out."
        )
    if not (path / "config.json").is_file():
        raise ConfigError(
            f"--overwrite: {path} contains no config.json, so it is not the folder of a run and is not deleted."
        )


def _empty(path: Path) -> None:
    """Delete what is in a folder, but for the file that is locked."""
    for item in path.iterdir():
        if item.is_dir() and not item.is_symlink():
            shutil.rmtree(item)
        elif item.name != LOCK:
            item.unlink()
