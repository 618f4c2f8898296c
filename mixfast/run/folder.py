"""The folder of a run: the names of its files, and how they are written and read."""

import dataclasses
import datetime
import json
import os
import shlex
from collections.abc import Collection, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from mixfast import methods
from mixfast.config.options import RunConfig, from_dict
from mixfast.errors import CheckpointError, ConfigError
from mixfast.files import write_whole
from mixfast.models import adapters
from mixfast.models.config import RESNET
from mixfast.outside import check_trusted
from mixfast.run import checkpoint
from mixfast.run.log import Metrics


class RunFolder:
    """Paths and small files of one run. `claim.Claim` makes one to write to, `open` one to read."""

    def __init__(self, path: Path):
        self.path = path
        self.checkpoints = path / "checkpoints"
        self.export = path / "export"
        self.plots = path / "plots"
        self.log = path / "log.txt"
        self.report = path / "report.md"
        self.metrics = Metrics(path)
        self.evaluations = path / "evaluations.jsonl"  # a line for each result of python -m mixfast.evaluate

    @classmethod
    def create_numbered(cls, parent: Path, name: str) -> "RunFolder":
        """A new folder parent/name-NNNN, one above the highest number there."""
        parent.mkdir(parents=True, exist_ok=True)
        endings = [item.name.removeprefix(f"{name}-") for item in parent.glob(f"{name}-*")]
        number = max((int(ending) for ending in endings if ending.isdigit()), default=0)
        while True:
            number += 1
            path = parent / f"{name}-{number:04d}"
            try:
                path.mkdir()
            except FileExistsError:  # another run took the number between the listing and now
                continue
            return cls(path)

    @classmethod
    def open(cls, path: Path) -> "RunFolder":
        """The existing folder of a run, from its path or a path inside its checkpoints/.

        Raises:
            CheckpointError: the path does not belong to the folder of a run.
        """
        for folder in (path, *path.parents[:2]):
            if (folder / "config.json").is_file():
                return cls(folder)
        runs = sorted(str(file.parent) for file in path.glob("*/config.json"))
        inside = f" It holds {len(runs)} runs; name those that you mean: {shlex.join(runs)}" if runs else ""
        raise CheckpointError(f"{path} is not the folder of a run: it has no config.json.{inside}")

    def write_config(self, config: RunConfig[Any], preset: str, origins: dict[str, str]) -> None:
        """Write config.json: every value, and the origin of each value that is not a default."""
        content = {"preset": preset, "values": dataclasses.asdict(config), "origins": origins}
        write_json(self.path / "config.json", content)

    def read_config(self, trusted: Collection[str] = ()) -> tuple[RunConfig[Any], str, dict[str, str]]:
        """The inverse of `write_config`: configuration, preset, origins.

        Args:
            trusted: dotted names of modules that may be imported from in or around the folder, which another person
                may have sent (`mixfast.outside.check_trusted`).

        Raises:
            CheckpointError: the file is unreadable, was written by a version with other keys, or names a module that
                is not trusted.
            ConfigError: the method's module cannot be found.
        """
        path = self.path / "config.json"
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError, RecursionError) as error:
            raise CheckpointError(f"{path} cannot be read: {error}") from error
        expected = {"values": dict, "preset": str, "origins": dict}
        for key, kind in expected.items():
            if not isinstance(content, dict) or not isinstance(content.get(key), kind):
                value = repr(content.get(key, "nothing") if isinstance(content, dict) else content)
                expected_type = "a string" if kind is str else "an object"
                raise CheckpointError(f"{path} cannot be read: {key} must be {expected_type}; got {value:.100}.")
        values, preset, origins = content["values"], content["preset"], content["origins"]
        name = values.get("method_name")
        if not isinstance(name, str):
            raise CheckpointError(f"{path} cannot be read: method_name must be a method's name; got {name!r:.100}.")
        if name not in methods.names():
            check_trusted([("method_name", name)], self.path, trusted)
        method = methods.load(name)  # errors of a user's module are not errors of the file
        try:
            config: RunConfig[Any] = from_dict(RunConfig, values, method.Config)
        except ConfigError as error:
            raise CheckpointError(f"{path} cannot be read: {error}.") from error
        check_trusted(named_code(config), self.path, trusted)
        return config, preset, origins

    def write_command(self, arguments: list[str]) -> None:
        """Append to command.txt the line of a start or resume: time and command."""
        with open(self.path / "command.txt", "a", encoding="utf-8", errors="backslashreplace") as file:
            file.write(f"{now()}  {shlex.join(arguments)}\n")

    def write_status(self, state: str, **facts: Any) -> None:
        """Write status.json: state (running, finished, stopped, failed), process, time, and `facts`."""
        path, content = self.path / "status.json", {"state": state, "pid": os.getpid(), "time": now(), **facts}
        try:
            write_json(path, content)
        except OSError:
            if not path.is_file():
                raise
            with open(path, "r+", encoding="utf-8") as file:  # a full disk still takes what fits into the old block
                file.write(f"{json.dumps(content, indent=2):<{path.stat().st_size}}\n")
                file.truncate()

    def status(self) -> dict[str, Any]:
        """The content of status.json; {} if there is none or it is damaged."""
        try:
            content = json.loads((self.path / "status.json").read_text(encoding="utf-8"))
        except (OSError, ValueError, RecursionError):
            return {}
        return content if isinstance(content, dict) else {}

    def has_checkpoint(self) -> bool:
        """Whether there is a checkpoint to continue from."""
        return any((self.checkpoints / name).is_file() for name in (checkpoint.LAST, checkpoint.PREVIOUS))

    def has_trained(self) -> bool:
        """Whether the run has begun: it has a checkpoint, or the record of a step."""
        path = self.metrics.path
        return self.has_checkpoint() or (path.is_file() and b'"kind": "train"' in path.read_bytes())

    def drop_unfinished(self) -> None:
        """Delete the temporary files of writes that were interrupted."""
        for path in (*self.path.glob("*.tmp"), *self.checkpoints.glob("*.tmp")):
            path.unlink()


def named_code(config: RunConfig[Any]) -> list[tuple[str, str]]:
    """(key, module or module:function) of a configuration's code from outside this package, except its method."""
    code = [("compare", name) for name in config.compare if name not in methods.names()]
    if config.model.backbone != RESNET and (named := adapters.parse(config.model.backbone)).own:
        code.append(("model.backbone", f"{named.source}:{named.name}"))
    if ":" in config.data.kind:
        code.append(("data.kind", config.data.kind))
    return code


def now() -> str:
    """Local time to the second, with its offset."""
    return datetime.datetime.now().astimezone().isoformat(timespec="seconds")


def make_folders(path: Path) -> list[Path]:
    """Create a folder and its missing parents; returns the folders that were created, the outermost first."""
    missing = [folder for folder in (path, *path.parents) if not folder.exists()]
    path.mkdir(parents=True, exist_ok=True)
    return missing[::-1]


def remove_empty(folders: list[Path]) -> None:
    """Remove the empty ones of nested folders, which are listed with the outermost first."""
    for folder in reversed(folders):
        with suppress(OSError):  # not empty
            folder.rmdir()


@contextmanager
def results_folder(out: Path | None, name: str) -> Iterator[Path]:
    """`out`, or a new folder runs/name-NNNN. If the block fails, the folders created for it are removed if empty."""
    new_folders = make_folders(out or Path("runs"))
    if out is None:
        new_folders.append(RunFolder.create_numbered(Path("runs"), name).path)
    try:
        yield out or new_folders[-1]
    except BaseException:
        remove_empty(new_folders)
        raise


def write_json(path: Path, content: Any) -> None:
    """Write `content` as JSON, completely or not at all."""
    write_whole(path, (json.dumps(content, indent=2) + "\n").encode())
