"""Checkpoints: written whole or not at all, two kept, read without executing anything.

A checkpoint is one `torch.save` of tensors and primitives. The new file is complete and on the disk before the old
one loses its name, so a kill at any moment leaves a readable checkpoint.
"""

import os
from pathlib import Path
from typing import Any

import torch

from mixfast.errors import CheckpointError

FORMAT = 3  # raised when the content changes in a way that older code cannot read
LAST, PREVIOUS = "last.pt", "previous.pt"


def save(folder: Path, state: dict[str, Any]) -> Path:
    """Write `state` as folder/last.pt; the file of that name becomes previous.pt. Returns the path."""
    folder.mkdir(exist_ok=True)  # a run folder that was deleted or moved is not made again
    last, previous, fresh = folder / LAST, folder / PREVIOUS, folder / (LAST + ".tmp")
    with open(fresh, "wb") as file:
        torch.save({"format": FORMAT, **state}, file)
        file.flush()
        os.fsync(file.fileno())
    if last.exists():
        os.replace(last, previous)
    os.replace(fresh, last)
    _sync_folder(folder)
    return last


def _sync_folder(folder: Path) -> None:
    """Make the renames durable, not only the bytes."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def find(path: Path) -> Path:
    """The checkpoint meant by a path: the file itself, or the newest of a run folder or of a checkpoints folder.

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


def load(path: Path) -> dict[str, Any]:
    """Read a checkpoint onto the CPU.

    Raises:
        CheckpointError: unreadable or of another format; the message names previous.pt if that one can be used.
    """
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a truncated zip, a foreign pickle, a bad disk: torch raises many types
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise CheckpointError(f"{path} cannot be read ({reason}). {_advice(path)}") from error
    found = state.get("format") if isinstance(state, dict) else None
    if found != FORMAT:
        raise CheckpointError(f"{path} has checkpoint format {found}, this version of mixfast reads {FORMAT}.")
    return state


def _advice(path: Path) -> str:
    other = path.with_name(PREVIOUS)
    if path.name == LAST and other.is_file():
        return f"An older one is there: --resume {other}"
    return "There is no older one beside it."


def check_keys(missing: list[str], unexpected: list[str], path: Path) -> None:
    """Raise a CheckpointError that names the first five keys of each kind, if there are any."""
    if missing or unexpected:
        raise CheckpointError(
            f"{path} is of another architecture: {len(missing)} keys missing ({', '.join(missing[:5]) or '-'}), "
            f"{len(unexpected)} unexpected ({', '.join(unexpected[:5]) or '-'})."
        )
