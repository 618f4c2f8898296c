"""Checkpoints: written whole or not at all, two kept, read without executing anything, and checked before use.

A checkpoint is one `torch.save` of tensors and primitives. The new file is complete and on the disk before the old
one loses its name, so a kill at any moment leaves a readable checkpoint. The file is a zip archive with the CRC-32 of
every part, which torch writes but does not verify; `load` verifies it, in half the time of a SHA-256.
"""

import os
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mixfast.errors import CheckpointError

FORMAT = 3  # raised when the content changes in a way that older code cannot read
LAST, PREVIOUS, DAMAGED = "last.pt", "previous.pt", "damaged.pt"
_LISTED = 5  # differences that a message lists


class DamagedError(CheckpointError):
    """The file was truncated, or some of its bits have changed, since it was written."""


def save(folder: Path, state: dict[str, Any]) -> Path:
    """Write `state` as folder/last.pt; the file of that name becomes previous.pt. Returns the path."""
    folder.mkdir(exist_ok=True)  # without parents: a run folder that was deleted or moved is an error
    last, fresh = folder / LAST, folder / (LAST + ".tmp")
    _write(fresh, state)
    if last.exists():
        os.replace(last, folder / PREVIOUS)
    os.replace(fresh, last)
    _sync_folder(folder)
    return last


def write(path: Path, state: dict[str, Any]) -> None:
    """Write `state` as the file `path`, which `load` reads, completely or not at all."""
    fresh = path.with_name(path.name + ".tmp")
    _write(fresh, state)
    os.replace(fresh, path)
    _sync_folder(path.parent)


def _write(path: Path, state: dict[str, Any]) -> None:
    with open(path, "wb") as file:
        torch.save({"format": FORMAT, "contents": contents(state), **state}, file)
        file.flush()
        os.fsync(file.fileno())


def contents(value: Any, name: str = "") -> dict[str, str]:
    """The type of each entry of a nested dictionary, by dotted name; for a tensor, its dtype and shape."""
    if isinstance(value, dict) and value:
        types: dict[str, str] = {}
        for key, item in value.items():
            types |= contents(item, f"{name}.{key}" if name else str(key))
        return types
    if isinstance(value, Tensor):
        return {name: f"{str(value.dtype).removeprefix('torch.')} {list(value.shape)}"}
    return {name: type(value).__name__}


def _sync_folder(folder: Path) -> None:
    """Make the renames durable, not only the bytes."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def find(path: Path) -> Path:
    """The checkpoint that a path names: the file itself, or the newest of a run folder or of a checkpoints folder.

    Raises:
        CheckpointError: there is none; the message lists the places tried.
    """
    if path.is_file():
        return path
    folders = [path / "checkpoints", path]
    for name in (LAST, PREVIOUS):  # a kill between the two renames of `save` leaves previous.pt alone
        for folder in folders:
            if (folder / name).is_file():
                return folder / name
    tried = ", ".join(str(folder / name) for folder in folders for name in (LAST, PREVIOUS))
    raise CheckpointError(f"no checkpoint in {path}: tried {tried}. Give the folder of a run, or a .pt file of one.")


def load_newest(path: Path, print_line: Callable[[str], None]) -> tuple[Path, dict[str, Any]]:
    """The file that `find` names and its content; of a folder whose last.pt is damaged, previous.pt.

    Args:
        path: a folder, or a checkpoint file, for which previous.pt is never used instead.
        print_line: prints a warning if previous.pt is used.

    Raises:
        CheckpointError: as `find` and `load` do.
    """
    file = find(path)
    try:
        return file, load(file)
    except DamagedError as error:
        previous = file.with_name(PREVIOUS)
        if path.is_file() or file == previous or not previous.is_file():
            raise
        state = load(previous)
        print_line(f"warning: {error}\nwarning: {previous} is taken in its place, at step {state.get('step')}.")
        return previous, state


def set_aside(file: Path) -> None:
    """After previous.pt was taken: keep a damaged last.pt from becoming previous.pt, under the name damaged.pt."""
    last = file.with_name(LAST)
    if file.name == PREVIOUS and last.is_file():
        os.replace(last, file.with_name(DAMAGED))


def load(path: Path) -> dict[str, Any]:
    """Read a checkpoint onto the CPU.

    Raises:
        DamagedError: the file is truncated or changed; the message names previous.pt if it exists.
        CheckpointError: the file has another format, or its entries are not those that were written.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            damaged_part = archive.testzip()
        if damaged_part is not None:
            raise ValueError(f"bits of its part {damaged_part} have changed since it was written")
        state = torch.load(path, map_location="cpu", weights_only=True)
    except MemoryError:
        raise
    except Exception as error:  # a truncated zip, a foreign pickle, a bad disk: torch and zipfile raise many types
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise DamagedError(f"{path} cannot be read ({reason}). {_advice(path)}") from error
    version = state.get("format") if isinstance(state, dict) else None
    if type(version) is not int or version != FORMAT:
        raise CheckpointError(f"{path} has checkpoint format {version!r:.50}, this version of mixfast reads {FORMAT}.")
    _check_contents(state, path)
    return state


def _check_contents(state: dict[str, Any], path: Path) -> None:
    """Raise a CheckpointError that names entries which are missing, additional, or of another type or shape."""
    written = state.pop("contents", None)
    del state["format"]
    present = contents(state)
    if not isinstance(written, dict):
        raise CheckpointError(f"{path}: contents is missing, the list of its entries. {_advice(path)}")
    changed = [name for name in dict.fromkeys([*written, *present]) if written.get(name) != present.get(name)]
    if changed:
        lines = [f"{name}: written {written.get(name, 'not')}, now {present.get(name, 'missing')}" for name in changed]
        omitted = f" and {len(lines) - _LISTED} more" if len(lines) > _LISTED else ""
        raise CheckpointError(
            f"{path} was changed after it was written: {'; '.join(lines[:_LISTED])}{omitted}. {_advice(path)}"
        )


def _advice(path: Path) -> str:
    previous = path.with_name(PREVIOUS)
    if path.name == LAST and previous.is_file():
        return f"An older one is there: --resume {previous}"
    return "There is no older checkpoint."


def check_keys(missing: list[str], unexpected: list[str], path: Path) -> None:
    """Raise a CheckpointError that names the first five keys of each kind, if there are any."""
    if missing or unexpected:
        raise CheckpointError(
            f"{path} is of another architecture: {len(missing)} keys missing ({', '.join(missing[:5]) or '-'}), "
            f"{len(unexpected)} unexpected ({', '.join(unexpected[:5]) or '-'})."
        )
