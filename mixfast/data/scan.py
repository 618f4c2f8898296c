"""Lists the image files below a folder, their classes, and the files that are ignored.

Layouts:
    folder/<class>/**/*.jpg   one class per subfolder that holds an image
    folder/*.jpg              no classes: every label is -1, and kNN cannot be scored
A single subfolder is no class either: its images count as unlabelled.

Links are followed. Within a class a file counts once, however many names lead to it; in two classes it counts in both.
"""

import errno
import os
import stat
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from mixfast.errors import ConfigError, DataError

ENDINGS = (
    *(".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".apng", ".bmp", ".gif"),
    *(".ppm", ".pgm", ".pbm", ".pnm", ".tif", ".tiff", ".webp"),
)
_OTHER_IMAGES = (
    *(".avif", ".heic", ".heif", ".jxl", ".jp2", ".j2k", ".jpf", ".svg", ".psd", ".tga", ".ico", ".dib"),
    *(".exr", ".hdr", ".pfm", ".qoi", ".eps", ".pdf", ".dcm"),
    *(".raw", ".dng", ".cr2", ".cr3", ".nef", ".arw", ".raf", ".orf"),
)
LAYOUTS = (
    "Accepted: PATH/<class>/*.jpg, PATH/*.jpg (no labels), or PATH/train and PATH/test (or val) laid out like that; "
    f"endings {' '.join(ENDINGS)}."
)
_NAMED = 5  # names in a message, at most
_BESIDE, _KNOWN_FILE, _KNOWN_FOLDER = "beside the class folders", "reached twice", "links to folders read already"
_SINGULAR = {
    "not images": "not an image",
    "not regular files": "not a regular file",
    "links to nothing": "link to nothing",
    _KNOWN_FOLDER: "link to a folder read already",
}
_UNKNOWN = (0, 0, 0, 0)  # the mark of a file without a status, such as a link to nothing


@dataclass(frozen=True)
class Listing:
    """Image files below a folder, in the order of their sorted names."""

    root: Path
    files: tuple[str, ...]  # relative to root
    labels: Tensor  # int64 [files], -1 without a class
    class_names: tuple[str, ...]
    marks: Tensor  # int64 [files, 4]: bytes, time of the last change in ns, device and inode; zeros where unknown
    passed: Counter[str]  # number of files that were passed over, by kind
    notes: tuple[str, ...] = ()  # lines to be printed

    def take(self, index: Tensor) -> "Listing":
        """The files at `index`, int64 [M]."""
        files = tuple(self.files[i] for i in index.tolist())
        return replace(self, files=files, labels=self.labels[index], marks=self.marks[index])

    @staticmethod
    def joined(parts: "Sequence[Listing]") -> "Listing":
        """The files of several listings of one folder, one after the other."""
        files = tuple(file for part in parts for file in part.files)
        labels, marks = (torch.cat([getattr(part, name) for part in parts]) for name in ("labels", "marks"))
        return replace(parts[0], files=files, labels=labels, marks=marks)


class _File(NamedTuple):
    name: str  # relative to the folder that was walked
    linked: bool  # whether it is a link, or below one
    mark: tuple[int, int, int, int]


def printable(name: object) -> str:
    """A file's name for a message; bytes that are not UTF-8, and characters that do not print, become escapes."""
    text = os.fsencode(str(name)).decode("utf-8", "backslashreplace")
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def absolute(path: str, option: str) -> Path:
    """An option's path as an absolute path, with ~ replaced.

    Raises:
        ConfigError: the home folder of ~ or ~name is not known.
    """
    try:
        return Path(os.path.abspath(Path(path).expanduser()))
    except RuntimeError as error:
        raise ConfigError(f"{option} {printable(path)}: {error} Write the whole path.") from error


def subfolders(root: Path) -> list[str]:
    """Names of the folders in a folder, and of links to folders, sorted; hidden ones are left out.

    Raises:
        DataError: a folder cannot be read.
    """
    walk = _Walk(root)
    names = [entry.name for entry in walk.entries(root) if not _hidden(entry.name) and walk.is_folder(entry)]
    walk.check()
    return names


def scan(root: Path) -> Listing:
    """List the image files of a folder laid out as path/<class>/... or path/*.

    Raises:
        DataError: a folder cannot be read, or no file has one of the endings; the message says what the folder holds.
    """
    walk = _Walk(root)
    classes = {name: image_files for name in subfolders(root) if (image_files := walk.below(name))}
    walk.check()
    if len(classes) > 1:
        files = [f"{name}/{file.name}" for name, image_files in classes.items() for file in image_files]
        marks = [file.mark for image_files in classes.values() for file in image_files]
        sizes = torch.tensor([len(image_files) for image_files in classes.values()])
        labels, names = torch.arange(len(classes)).repeat_interleave(sizes), tuple(classes)
        walk.passed[_BESIDE] += len(walk.below("", deep=False))
    else:
        walk = _Walk(root)
        image_files = walk.below("")
        files, marks = [file.name for file in image_files], [file.mark for file in image_files]
        labels, names = torch.full((len(files),), -1), ()
    walk.check()
    if not files:
        entries = [printable(name) for name in sorted(os.listdir(root))][:3]
        inside = f"it holds {', '.join(entries)}" if entries else "it is empty"
        passed = f" {passed_over(walk.passed)}." if walk.passed.total() else ""
        raise DataError(f"{printable(root)}: no image found; {inside}.{passed} {LAYOUTS}")
    listing = Listing(root, tuple(files), labels, names, torch.tensor(marks, dtype=torch.int64), +walk.passed)
    return replace(listing, notes=_notes_on_classes(listing))


def passed_over(counts: Counter[str]) -> str:
    """A text such as "3 files passed over (1 unreadable, 2 not images)"."""
    counts = +counts
    parts = [f"{count:,} {_SINGULAR.get(kind, kind) if count == 1 else kind}" for kind, count in sorted(counts.items())]
    total = counts.total()
    return f"{total:,} file{'s' * (total != 1)} passed over" + f" ({', '.join(parts)})" * bool(total)


def _notes_on_classes(listing: Listing) -> tuple[str, ...]:
    """A warning about files that are in several classes; () if there are none."""
    if not listing.class_names:
        return ()
    _, file_number, counts = listing.marks.unique(dim=0, return_inverse=True, return_counts=True)
    repeated = ((counts[file_number] > 1) & (listing.marks[:, 3] != 0)).nonzero().flatten()
    if len(repeated) == 0:
        return ()
    files = len(file_number[repeated].unique())
    return (
        f"warning: {printable(listing.root)}: {files:,} image file{'s are' if files > 1 else ' is'} in more than one "
        f"class through links, such as {printable(listing.files[int(repeated[0])])}; each counts in all its classes.",
    )


class _Walk:
    """Reads the folders below a root, following links but reading no folder twice; counts what it passes over."""

    def __init__(self, root: Path):
        self.root, self.passed = root, Counter[str]()
        self._unreadable: dict[str, str] = {}  # reasons by folder
        self._above = {_identity(folder) for folder in root.resolve().parents}

    def below(self, name: str, deep: bool = True) -> list[_File]:
        """Image files below a subfolder of the root, sorted by name; if not `deep`, only those directly in it."""
        top, files = self.root / name, list[_File]()
        visited = self._above | ({_identity(self.root)} if name else set())
        real, linked = ([], [""]) if top.is_symlink() else ([""], [])
        while real or linked:  # real folders first: their files get the names without links
            through_link = not real
            folder = linked.pop(0) if through_link else real.pop()
            identity = _identity(top / folder)
            if identity is not None and identity in visited:
                self.passed[_KNOWN_FOLDER] += 1
                continue
            visited.add(identity)
            for entry in self.entries(top / folder):
                path, by_link = f"{folder}/{entry.name}" if folder else entry.name, through_link or entry.is_symlink()
                if _hidden(entry.name):
                    self.passed["hidden"] += 1
                elif self.is_folder(entry):
                    if deep:
                        (linked if by_link else real).append(path)
                elif (mark := self._mark(entry)) is not None:
                    files.append(_File(path, by_link, mark))
        return self._without_repeats(files)

    def entries(self, folder: Path) -> list[os.DirEntry[str]]:
        """The entries of a folder, sorted by name; empty if the folder cannot be read."""
        try:
            with os.scandir(folder) as entries:
                return sorted(entries, key=lambda entry: entry.name)
        except OSError as error:
            self._note_unreadable(str(folder), error)
            return []

    def is_folder(self, entry: os.DirEntry[str]) -> bool:
        """Whether an entry is a folder or a link to one."""
        try:
            return entry.is_dir()
        except OSError as error:
            # A link in a circle counts as a link to nothing. A link to an unreadable place counts as an unreadable file
            # if it has an image's ending; else it may be a class.
            if error.errno != errno.ELOOP and _ending(entry.name) not in ENDINGS:
                self._note_unreadable(entry.path, error)
            return False

    def check(self) -> None:
        """Raise a DataError that names the folders that could not be read."""
        if not self._unreadable:
            return
        listing = [f"{printable(folder)} ({reason})" for folder, reason in sorted(self._unreadable.items())[:_NAMED]]
        omitted = f" and {len(self._unreadable) - _NAMED} more" if len(self._unreadable) > _NAMED else ""
        raise DataError(
            f"folders of images cannot be read: {', '.join(listing)}{omitted}. Their images would be missing: allow "
            "this user to read and enter them (chmod u+rx), or move them elsewhere."
        )

    def _note_unreadable(self, folder: str, error: OSError) -> None:
        self._unreadable[folder] = error.strerror or str(error)

    def _without_repeats(self, files: list[_File]) -> list[_File]:
        unique: dict[object, _File] = {}
        for file in sorted(files, key=lambda file: (file.linked, file.name)):
            unique.setdefault(file.mark if file.mark[3] else file.name, file)
        self.passed[_KNOWN_FILE] += len(files) - len(unique)
        return sorted(unique.values(), key=lambda file: file.name)

    def _mark(self, entry: os.DirEntry[str]) -> tuple[int, int, int, int] | None:
        """The mark of an image file; None for another file, which is counted."""
        ending = _ending(entry.name)
        if ending not in ENDINGS:
            is_broken = entry.is_symlink() and not os.path.exists(entry.path)
            self.passed[ending if ending in _OTHER_IMAGES else "links to nothing" if is_broken else "not images"] += 1
            return None
        try:
            status = entry.stat()
        except OSError as error:
            if not entry.is_symlink() and not isinstance(error, FileNotFoundError):
                self._note_unreadable(os.path.dirname(entry.path), error)
            return _UNKNOWN  # decoding will report the error
        if not stat.S_ISREG(status.st_mode):
            self.passed["not regular files"] += 1
            return None
        max_int64 = 2**63 - 1  # of int64
        return status.st_size, status.st_mtime_ns, status.st_dev & max_int64, status.st_ino & max_int64


def _identity(folder: Path) -> tuple[int, int] | None:
    try:
        status = os.stat(folder)
    except OSError:  # `_Walk.entries` reports the error
        return None
    return status.st_dev, status.st_ino


def _ending(name: str) -> str:
    return os.path.splitext(name)[1].lower()


def _hidden(name: str) -> bool:
    return name.startswith(".") or name == "lost+found"
