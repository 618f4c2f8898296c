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

    fresh: bool  # the folder contains nothing but the lock

    def __init__(self, folder: RunFolder, new_folders: list[Path], print_line: PrintLine):
        """
        Args:
            folder: it exists.
            new_folders: the folders that were created for it, the outermost first.
            print_line: prints a line.

        Raises:
            ConfigError: another process has locked it.
        """
        self.folder, self._new_folders = folder, new_folders
        self._new_lock = not (folder.path / LOCK).exists()
        self._replace = False
        try:
            self._lock = Lock(folder.path, print_line)
        except BaseException:
            remove_empty(new_folders)
            raise
        self.fresh = not _occupied(folder.path)

    @classmethod
    def new(cls, path: Path, overwrite: bool, print_line: PrintLine) -> "Claim":
        """A folder to begin a run in; with `overwrite`, that of an earlier run, which stays as it is until `begin`.

        Raises:
            ConfigError: the path exists and is not empty; with `overwrite`, it exists and is not a run's folder; or
                another process writes to it.
        """
        _check_available(path, overwrite)
        new_folders = make_folders(path)
        claim = cls(RunFolder(path), new_folders, print_line)
        try:
            _check_available(path, overwrite)  # another run may have begun and ended before the lock was acquired
        except ConfigError:
            claim.abandon()
            raise
        claim._replace = not claim.fresh
        return claim

    @classmethod
    def numbered(cls, parent: Path, name: str, print_line: PrintLine) -> "Claim":
        """A new folder parent/name-NNNN, one above the highest number there."""
        new_folders = make_folders(parent)
        folder = RunFolder.create_numbered(parent, name)
        return cls(folder, [*new_folders, folder.path], print_line)

    @classmethod
    def existing(cls, path: Path, print_line: PrintLine) -> "Claim":
        """The folder of a run that exists; a path inside its checkpoints/ counts.

        Raises:
            CheckpointError: no run's folder there. ConfigError: another process writes to it.
        """
        return cls(RunFolder.open(path), [], print_line)

    def begin(self) -> None:
        """Delete the files of an earlier run that is to be replaced; from now on `abandon` must not be called."""
        if self._replace:
            _clear(self.folder.path)

    def abandon(self) -> None:
        """Restore the state before the claim; must not be called after `begin`."""
        if self.fresh:
            with suppress(OSError):
                _clear(self.folder.path)
        if self._new_lock:
            with suppress(OSError):
                (self.folder.path / LOCK).unlink()
        remove_empty(self._new_folders)
        self.release()

    def release(self) -> None:
        """Release the lock of the folder."""
        self._lock.release()


class Lock:
    """An exclusive lock on the file `LOCK` of a folder. The file names the process, for error messages of others."""

    # Descriptors of this process. A child that was forked must not keep the lock when this process has ended.
    descriptors: ClassVar[set[int]] = set()

    def __init__(self, folder: Path, print_line: PrintLine):
        """
        Raises:
            ConfigError: another process has locked the folder. OSError: the lock file cannot be created.
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
            Lock.descriptors.add(self._descriptor)
            if _refers_to(self._descriptor, path):
                break
            self.release()  # the file was deleted meanwhile, by another process whose start has failed
        with suppress(OSError):  # on a full disk the file names no process
            os.ftruncate(self._descriptor, 0)
            facts = {"pid": os.getpid(), "host": socket.gethostname(), "since": now()}
            os.pwrite(self._descriptor, json.dumps(facts).encode() + b"\n", 0)

    def release(self) -> None:
        """Release the lock."""
        if self._descriptor is not None:
            Lock.descriptors.discard(self._descriptor)
            os.close(self._descriptor)
            self._descriptor = None

    @classmethod
    def close_in_child(cls) -> None:
        """Close the descriptors in a forked process; the parent keeps its locks as long as its own are open."""
        for descriptor in cls.descriptors:
            with suppress(OSError):
                os.close(descriptor)
        cls.descriptors.clear()


os.register_at_fork(after_in_child=Lock.close_in_child)


def _owner(descriptor: int) -> str:
    try:
        facts: dict[str, Any] = json.loads(os.pread(descriptor, 4096, 0))
        return f"process {facts['pid']} on {facts['host']}, since {facts['since']}"
    except (OSError, ValueError, KeyError, TypeError):
        return "another process"


def _refers_to(descriptor: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), os.stat(path))
    except FileNotFoundError:
        return False


def _occupied(path: Path) -> bool:
    return path.exists() and (not path.is_dir() or any(item.name != LOCK for item in path.iterdir()))


def _check_available(path: Path, overwrite: bool) -> None:
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


def _clear(path: Path) -> None:
    """Delete everything in a folder except the lock file."""
    for item in path.iterdir():
        if item.is_dir() and not item.is_symlink():
            shutil.rmtree(item)
        elif item.name != LOCK:
            item.unlink()
