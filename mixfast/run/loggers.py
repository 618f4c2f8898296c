"""Further loggers for the records and pictures of a run: TensorBoard, Weights & Biases, MLflow.

`--train.log` names them; a library is imported only if it is named. Accounts, servers and offline modes are set as the
libraries document it (WANDB_PROJECT, WANDB_MODE, MLFLOW_TRACKING_URI, MLFLOW_EXPERIMENT_NAME). A resumed run continues
the same run in each library.
"""

import importlib
import json
import os
import secrets
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol

from mixfast.errors import PlatformError
from mixfast.files import write_whole

PROJECT = "mixfast"  # unless the library's environment variable names another


class Logger(Protocol):
    """Writes records and pictures of a run to a library. Constructed with the run's folder, options and steps done."""

    def __init__(self, folder: Path, options: dict[str, Any], step: int): ...

    def record(self, step: int, numbers: dict[str, float]) -> None:
        """Log numbers by name, such as "train/loss"."""

    def picture(self, step: int, name: str, path: Path) -> None:
        """Log a PNG file."""

    def close(self, failed: bool) -> None:
        """Write or send everything that was logged, and end."""


class TensorBoard:
    """Event files in the folder `tensorboard` of the run; those of an earlier start after `step` are hidden."""

    def __init__(self, folder: Path, options: dict[str, Any], step: int):
        writer = importlib.import_module("torch.utils.tensorboard").SummaryWriter
        self._writer: Any = writer(str(folder / "tensorboard"), purge_step=step)

    def record(self, step: int, numbers: dict[str, float]) -> None:
        for name, number in numbers.items():
            self._writer.add_scalar(name, number, step)
        self._writer.flush()

    def picture(self, step: int, name: str, path: Path) -> None:
        import numpy
        from PIL import Image

        with Image.open(path) as image:
            self._writer.add_image(name, numpy.asarray(image.convert("RGB")), step, dataformats="HWC")

    def close(self, failed: bool) -> None:
        self._writer.close()


class WandB:
    """A run of Weights & Biases, with its files in the folder `wandb` of the run."""

    def __init__(self, folder: Path, options: dict[str, Any], step: int):
        self._wandb: Any = importlib.import_module("wandb")
        run_id = _stored_id(folder, "wandb") or _store_id(folder, "wandb", secrets.token_hex(4))
        self._run = self._wandb.init(
            project=os.environ.get("WANDB_PROJECT", PROJECT),
            name=_title(folder),
            id=run_id,
            resume="allow",
            reinit="create_new",  # runs that are compared with each other overlap in time
            dir=str(folder),
            config=options,
            settings=self._wandb.Settings(console="off"),
        )
        self._run.define_metric("*", step_metric="step")  # W&B's own step never decreases; a resumed run repeats steps

    def record(self, step: int, numbers: dict[str, float]) -> None:
        self._run.log({"step": step, **numbers})

    def picture(self, step: int, name: str, path: Path) -> None:
        self._run.log({"step": step, name: self._wandb.Image(str(path))})

    def close(self, failed: bool) -> None:
        self._run.finish(exit_code=int(failed))


class MLflow:
    """A run of MLflow at MLFLOW_TRACKING_URI."""

    def __init__(self, folder: Path, options: dict[str, Any], step: int):
        mlflow = importlib.import_module("mlflow")
        self._entities: Any = importlib.import_module("mlflow.entities")
        self._client: Any = mlflow.MlflowClient()
        if run_id := _stored_id(folder, "mlflow"):
            self._run_id = run_id
            self._client.update_run(run_id, status="RUNNING")
            return
        name = os.environ.get("MLFLOW_EXPERIMENT_NAME", PROJECT)
        experiment = self._client.get_experiment_by_name(name)
        experiment_id = experiment.experiment_id if experiment else self._client.create_experiment(name)
        self._run_id = _store_id(
            folder, "mlflow", self._client.create_run(experiment_id, run_name=_title(folder)).info.run_id
        )
        parameters = [self._entities.Param(key, str(value)) for key, value in options.items()]
        for start in range(0, len(parameters), 100):  # MLflow's limit for a call
            self._client.log_batch(self._run_id, params=parameters[start : start + 100])

    def record(self, step: int, numbers: dict[str, float]) -> None:
        milliseconds = int(1000 * time.time())
        metrics = [self._entities.Metric(name, float(number), milliseconds, step) for name, number in numbers.items()]
        self._client.log_batch(self._run_id, metrics=metrics)

    def picture(self, step: int, name: str, path: Path) -> None:
        self._client.log_artifact(self._run_id, str(path), "plots")

    def close(self, failed: bool) -> None:
        self._client.set_terminated(self._run_id, "FAILED" if failed else "FINISHED")


LOGGERS: dict[str, tuple[type[Logger], str]] = {  # by name: the class, and the module that it needs
    "tensorboard": (TensorBoard, "torch.utils.tensorboard"),
    "wandb": (WandB, "wandb"),
    "mlflow": (MLflow, "mlflow"),
}


def check(names: Iterable[str]) -> None:
    """Raise a PlatformError if a library is not installed."""
    for name in names:
        try:
            importlib.import_module(LOGGERS[name][1])
        except ImportError as error:
            raise PlatformError(
                f"--train.log {name} needs a package that is missing ({error}): pip install {name}. "
                "Without it, metrics.jsonl and metrics.csv hold the same numbers."
            ) from error


class Loggers:
    """The loggers of a run; `with` closes them. A logger that fails is named in a warning and no longer used."""

    def __init__(self) -> None:
        self._open: dict[str, Logger] = {}
        self._print_line: Callable[[str], None] = print

    def open(
        self, names: Iterable[str], folder: Path, options: dict[str, Any], step: int, print_line: Callable[[str], None]
    ) -> None:
        """Begin or continue a run in each library.

        Args:
            names: keys of `LOGGERS`.
            folder: the run's folder.
            options: the run's configuration, by dotted key.
            step: optimiser steps done.
            print_line: prints a line.

        Raises:
            PlatformError: a library cannot begin; the message quotes its error.
        """
        self._print_line = print_line
        for name in names:
            try:
                self._open[name] = LOGGERS[name][0](folder, options, step)
            except Exception as error:  # libraries raise many types: no account, no network, no space
                raise PlatformError(
                    f"--train.log {name} cannot begin: {error}. "
                    "To continue without loggers, give --train.log without a value."
                ) from error

    def record(self, record: dict[str, Any]) -> None:
        """Log the numbers of a record of metrics.jsonl."""
        kind = f"{record['kind']}/{record['name']}" if record["kind"] == "baseline" else record["kind"]
        numbers = {
            f"{kind}/{name}": value
            for name, value in record.items()
            if isinstance(value, int | float) and name != "step"
        }
        self._for_each(lambda logger: logger.record(record["step"], numbers))

    def picture(self, step: int, path: Path) -> None:
        """Log a picture under the name of its file."""
        self._for_each(lambda logger: logger.picture(step, f"plots/{path.stem}", path))

    def _for_each(self, act: Callable[[Logger], None]) -> None:
        for name, logger in list(self._open.items()):
            try:
                act(logger)
            except Exception as error:  # libraries raise many types
                del self._open[name]
                self._print_line(f"warning: {name} takes no more ({error}); metrics.jsonl has every record")

    def __enter__(self) -> "Loggers":
        return self

    def __exit__(self, kind: type[BaseException] | None, _: BaseException | None, __: TracebackType | None) -> None:
        self._for_each(lambda logger: logger.close(kind is not None))
        self._open.clear()


def _title(folder: Path) -> str:
    is_companion = folder.parent.name == "compare"
    return f"{folder.parents[1].name}-{folder.name}" if is_companion else folder.resolve().name


def _stored_id(folder: Path, name: str) -> str:
    """The identifier of a folder's run in a library; "" if there is none."""
    try:
        return str(json.loads((folder / "loggers.json").read_text(encoding="utf-8")).get(name, ""))
    except (OSError, ValueError, AttributeError):
        return ""


def _store_id(folder: Path, name: str, run_id: str) -> str:
    run_ids = {library: stored for library in LOGGERS if (stored := _stored_id(folder, library))}
    write_whole(folder / "loggers.json", json.dumps({**run_ids, name: run_id}).encode())
    return run_id
