"""The folder of a run: names, what is written where, and when an existing one is refused."""

import dataclasses
import datetime
import json
import os
import shlex
import shutil
from pathlib import Path
from typing import Any

from mixfast import methods
from mixfast.config.options import RunConfig, from_dict
from mixfast.errors import CheckpointError, ConfigError
from mixfast.run import checkpoint
from mixfast.run.log import Metrics


class RunFolder:
    """Paths and small files of one run. Use `create` or `open`."""

    def __init__(self, path: Path):
        self.path = path
        self.checkpoints = path / "checkpoints"
        self.export = path / "export"
        self.plots = path / "plots"
        self.log = path / "log.txt"
        self.report = path / "report.md"
        self.metrics = Metrics(path)

    @classmethod
    def create(cls, path: Path, overwrite: bool = False) -> "RunFolder":
        """A new folder at `path`.

        Raises:
            ConfigError: the path exists and is not empty; with `overwrite`, it exists and is not a run's folder.
        """
        if path.exists() and (not path.is_dir() or any(path.iterdir())):
            if not overwrite:
                raise ConfigError(
                    f"--out {path} exists and is not empty. Continue it with --resume {path}, replace it with "
                    f"--overwrite, or choose another --out."
                )
            if not (path / "config.json").is_file():
                raise ConfigError(f"--overwrite: {path} holds no config.json, so it is no run's folder; not deleted.")
            shutil.rmtree(path)
        path.mkdir(parents=True, exist_ok=True)
        return cls(path)

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

    def read_config(self) -> tuple[RunConfig[Any], str, dict[str, str]]:
        """The inverse of `write_config`: configuration, preset, origins.

        Raises:
            CheckpointError: unreadable, or written by a version with other keys.
            ConfigError: the method's module cannot be found.
        """
        path = self.path / "config.json"
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
            values, preset, origins = content["values"], content["preset"], content["origins"]
            name = values["method_name"]
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise CheckpointError(f"{path} cannot be read: {error}") from error
        method = methods.load(name)  # what goes wrong in a user's module is not the file's fault
        try:
            return from_dict(RunConfig, values, method.Config), preset, origins
        except (KeyError, TypeError, ConfigError) as error:
            raise CheckpointError(f"{path} cannot be read: {error}") from error

    def write_command(self, words: list[str]) -> None:
        """command.txt: one line per start or resume."""
        with open(self.path / "command.txt", "a", encoding="utf-8") as file:
            file.write(f"{now()}  {shlex.join(words)}\n")

    def write_status(self, state: str, **facts: Any) -> None:
        """status.json: state (running, finished, stopped, failed), process, time, and the given facts."""
        write_json(self.path / "status.json", {"state": state, "pid": os.getpid(), "time": now(), **facts})

    def status(self) -> dict[str, Any]:
        """The content of status.json; {} before `write_status` was called."""
        path = self.path / "status.json"
        return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}

    def has_checkpoint(self) -> bool:
        """Whether there is a checkpoint to continue from."""
        return any((self.checkpoints / name).is_file() for name in (checkpoint.LAST, checkpoint.PREVIOUS))


def now() -> str:
    """Local time to the second, with its offset."""
    return datetime.datetime.now().astimezone().isoformat(timespec="seconds")


def write_json(path: Path, content: Any) -> None:
    """Write `content` as JSON, whole or not at all."""
    fresh = path.with_name(path.name + ".tmp")
    fresh.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    os.replace(fresh, path)
