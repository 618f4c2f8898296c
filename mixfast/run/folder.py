"""The folder of a run: names, what is written where, and when an existing one is refused."""

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
        """The folder of a run that exists; a path inside its checkpoints/ counts.

        Raises:
            CheckpointError: no run's folder there.
        """
        for folder in (path, *path.parents[:2]):
            if (folder / "config.json").is_file():
                return cls(folder)
        runs = sorted(str(file.parent) for file in path.glob("*/config.json"))
        inside = f" It holds {len(runs)} runs; name those that you mean: {shlex.join(runs)}" if runs else ""
        raise CheckpointError(f"{path} is not the folder of a run: it has no config.json.{inside}")

    def write_config(self, config: RunConfig[Any], preset: str, origins: dict[str, str]) -> None:
        """config.json: every value, and where each that is not a default came from."""
        content = {"preset": preset, "values": dataclasses.asdict(config), "origins": origins}
        write_json(self.path / "config.json", content)

    def read_config(self, trusted: Collection[str] = ()) -> tuple[RunConfig[Any], str, dict[str, str]]:
        """The inverse of `write_config`: configuration, preset, origins.

        Args:
            trusted: dotted names of modules that the user named; others are not imported from where a folder that
                somebody sent may have put them (`mixfast.outside.check_trusted`).

        Raises:
            CheckpointError: unreadable, written by a version with other keys, or it names a module that is not trusted.
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
                found = repr(content.get(key, "nothing") if isinstance(content, dict) else content)
                what = "a string" if kind is str else "an object"
                raise CheckpointError(f"{path} cannot be read: {key} must be {what}; got {found:.100}.")
        values, preset, origins = content["values"], content["preset"], content["origins"]
        name = values.get("method_name")
        if not isinstance(name, str):
            raise CheckpointError(f"{path} cannot be read: method_name must be a method's name; got {name!r:.100}.")
        if name not in methods.names():
            check_trusted([("method_name", name)], self.path, trusted)
        method = methods.load(name)  # what goes wrong in a user's module is not the file's fault
        try:
            config: RunConfig[Any] = from_dict(RunConfig, values, method.Config)
        except ConfigError as error:
            raise CheckpointError(f"{path} cannot be read: {error}.") from error
        check_trusted(named_code(config), self.path, trusted)
        return config, preset, origins

    def write_command(self, words: list[str]) -> None:
        """command.txt: one line per start or resume."""
        with open(self.path / "command.txt", "a", encoding="utf-8", errors="backslashreplace") as file:
            file.write(f"{now()}  {shlex.join(words)}\n")

    def write_status(self, state: str, **facts: Any) -> None:
        """status.json: state (running, finished, stopped, failed), process, time, and the given facts."""
        path, content = self.path / "status.json", {"state": state, "pid": os.getpid(), "time": now(), **facts}
        try:
            write_json(path, content)
        except OSError:
            if not path.is_file():
                raise
            with open(path, "r+", encoding="utf-8") as file:  # a full disk takes what fits into the old file's block
                file.write(f"{json.dumps(content, indent=2):<{path.stat().st_size}}\n")
                file.truncate()

    def status(self) -> dict[str, Any]:
        """The content of status.json; {} before `write_status` was called, or if it is damaged."""
        try:
            found = json.loads((self.path / "status.json").read_text(encoding="utf-8"))
        except (OSError, ValueError, RecursionError):
            return {}
        return found if isinstance(found, dict) else {}

    def has_checkpoint(self) -> bool:
        """Whether there is a checkpoint to continue from."""
        return any((self.checkpoints / name).is_file() for name in (checkpoint.LAST, checkpoint.PREVIOUS))

    def has_trained(self) -> bool:
        """Whether there is a checkpoint, or the record of a step, after which a checkpoint must have been saved."""
        path = self.metrics.path
        return self.has_checkpoint() or (path.is_file() and b'"kind": "train"' in path.read_bytes())

    def drop_unfinished(self) -> None:
        """Delete files whose writing was interrupted: they may fill the disk."""
        for path in (*self.path.glob("*.tmp"), *self.checkpoints.glob("*.tmp")):
            path.unlink()


def named_code(config: RunConfig[Any]) -> list[tuple[str, str]]:
    """(key, module or module:function) of what a configuration takes from outside this package, beside its method."""
    found = [("compare", name) for name in config.compare if name not in methods.names()]
    if config.model.backbone != RESNET and (named := adapters.parse(config.model.backbone)).own:
        found.append(("model.backbone", f"{named.source}:{named.name}"))
    if ":" in config.data.kind:
        found.append(("data.kind", config.data.kind))
    return found


def now() -> str:
    """Local time to the second, with its offset."""
    return datetime.datetime.now().astimezone().isoformat(timespec="seconds")


def make_folders(path: Path) -> list[Path]:
    """Make a folder and those above it; returns the ones that were not there, the outermost first."""
    missing = [folder for folder in (path, *path.parents) if not folder.exists()]
    path.mkdir(parents=True, exist_ok=True)
    return missing[::-1]


def remove_empty(folders: list[Path]) -> None:
    """Remove those of some nested folders, the outermost first, that hold nothing."""
    for folder in reversed(folders):
        with suppress(OSError):  # something is in it
            folder.rmdir()


@contextmanager
def results_folder(out: Path | None, name: str) -> Iterator[Path]:
    """`out`, or a new folder runs/name-NNNN. If the block fails, nothing empty remains of what was made for it."""
    made = make_folders(out or Path("runs"))
    if out is None:
        made.append(RunFolder.create_numbered(Path("runs"), name).path)
    try:
        yield out or made[-1]
    except BaseException:
        remove_empty(made)
        raise


def write_json(path: Path, content: Any) -> None:
    """Write `content` as JSON, whole or not at all."""
    write_whole(path, (json.dumps(content, indent=2) + "\n").encode())
