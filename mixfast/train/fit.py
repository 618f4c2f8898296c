"""mixfast.fit: the training command as a Python call."""

import dataclasses
import os
import signal
import threading
from typing import Any

from torch import Tensor

from mixfast.config.arguments import as_arguments
from mixfast.data import Splits
from mixfast.data.kinds import KINDS, OBJECT
from mixfast.errors import ConfigError
from mixfast.export import load_backbone
from mixfast.formats.native import own_factory
from mixfast.run import processes
from mixfast.run.callbacks import Callback, Callbacks
from mixfast.run.console import Console
from mixfast.run.signals import Stopped, StopRequest
from mixfast.run.torch_state import fresh_torch_state
from mixfast.run.trained import Result, result_of
from mixfast.train import cli
from mixfast.train.launch import Attempt, launch

_TRAINING = threading.Lock()  # a run has torch's settings of the whole process to itself


def fit(
    method: str | None = None,
    *,
    data: object = None,
    epochs: int | None = None,
    out: str | os.PathLike[str] | None = None,
    overwrite: bool = False,
    init: str | os.PathLike[str] | None = None,
    resume: str | os.PathLike[str] | None = None,
    on_step: Callback | None = None,
    on_epoch: Callback | None = None,
    on_evaluation: Callback | None = None,
    quiet: bool = False,
    **options: Any,
) -> Result:
    """Train an encoder without labels: what `python -m mixfast.train` does, to the same bits for the same options.

    Every option of the command is a keyword, with two underscores for the dot: `model__depth=18, optim__lr=0.03`.
    Messages name them as the command does, `--model.depth`.

    While it trains, torch's settings are those of a new process (float32, the CPU as default device); on return or
    error the caller's are restored: default dtype and device, threads, generators, cuDNN, signal handlers. It works in
    any thread, one call at a time. In the main thread Ctrl-C saves the state after the step and raises
    KeyboardInterrupt (a second Ctrl-C raises at once); SIGTERM and SIGHUP save the state too, before the caller's
    handlers run.

    Args:
        method: preset, perhaps with modifiers: "moco", "approach1", "moco augment_v2"; or the dotted name of a module
            with a method of your own. None: "moco", or the method of the run to resume.
        data: folder of images, "scenes", "cifar10" and the like, "package.module:factory"; uint8 tensor [N, 3, H, W],
            map-style Dataset of images or (image, label), a tuple of two of these, training and test; or
            `mixfast.data.Splits`. None: the preset's. A Dataset is read by this process unless data__workers is given.
        epochs: `train__epochs`; None: the preset's.
        out, overwrite, init, resume: as --out, --overwrite, --init and --resume.
        on_step, on_epoch, on_evaluation: called with a `Moment`; an error in them ends the run, and its state is saved.
        quiet: print nothing; log.txt of the run's folder has every line.

    Raises:
        mixfast.errors.UserError: the error with which the command would end; the subclass tells its kind.
        KeyboardInterrupt: the training was stopped; `fit(resume=folder)` continues it.
    """
    paths = {"out": out, "overwrite": overwrite or None, "init": init, "resume": resume, "train.epochs": epochs}
    arguments = _names(method, resume is not None) + as_arguments({**_of_data(data, options), **options})
    arguments += as_arguments({name: item for name, item in paths.items() if item is not None})
    if not _TRAINING.acquire(blocking=False):
        raise ConfigError("mixfast.fit: another call is training in this process; wait for it, or use processes.")
    try:
        return _train(arguments, None if _is_named(data) else data, Callbacks(on_step, on_epoch, on_evaluation), quiet)
    finally:
        _TRAINING.release()


def _names(method: str | None, resumed: bool) -> list[str]:
    """The arguments of a command line that name method and modifiers."""
    if method is None:
        return [] if resumed else ["moco"]
    first, *modifiers = method.split() or [""]
    return ["--method", first, *modifiers] if "." in first else [first, *modifiers]


def _of_data(data: object, options: dict[str, Any]) -> dict[str, Any]:
    """The options that name `data`; the images of a tensor keep their size unless `options` set another."""
    if data is None:
        return {}
    if isinstance(data, str) and (":" in data or (data in KINDS and data != "folder")):
        return {"data.kind": data}
    if isinstance(data, str | os.PathLike):
        return {"data.kind": "folder", "data.path": os.fspath(data)}
    images: Any = data.train.images if isinstance(data, Splits) else data[0] if isinstance(data, tuple) else data
    side = 0
    if isinstance(data, Splits) or (isinstance(images, Tensor) and images.ndim == 4):
        side = min(images.shape[2:])
    if isinstance(data, Splits) and options.get("data__size", side) != side:
        raise ConfigError(f"data__size: the images of data have {side} pixels; got {options['data__size']}. Omit it.")
    return {"data.kind": OBJECT, **({"data.size": side} if side and "data__size" not in options else {})}


def _is_named(data: object) -> bool:
    """Whether `data` names images, and is not itself the images."""
    return data is None or isinstance(data, str | os.PathLike)


def _train(arguments: list[str], images: object, callbacks: Callbacks, quiet: bool) -> Result:
    attempt, result = Attempt(Console(quiet=quiet)), None
    with fresh_torch_state(), StopRequest(ends_process=False) as stop:
        try:
            processes.refuse_several_processes(
                "mixfast.fit trains in one process; torchrun -m mixfast.train in several"
            )
            invocation = cli.parse(arguments)
            origins = {key: origin.replace("command line", "mixfast.fit") for key, origin in invocation.origins.items()}
            call = dataclasses.replace(
                invocation, command=("mixfast.fit",), origins=origins, images=images, callbacks=callbacks
            )
            run = launch(call, attempt, stop)
            factory = own_factory(run.config.model.architecture)
            result = result_of(run, load_backbone(run.folder.export, factory))
        except BaseException as error:
            stop.ignore_further()
            attempt.end(attempt.ending(error))
            folder = attempt.claim.folder if attempt.claim else None
            if isinstance(error, Stopped | KeyboardInterrupt) and folder and folder.has_checkpoint():
                attempt.console.line(f"stopped; mixfast.fit(resume={str(folder.path)!r}) continues it")
            if not isinstance(error, Stopped):
                raise
        finally:
            if attempt.claim:
                attempt.claim.release()
    if stop.number:
        signal.raise_signal(stop.number)  # now for the caller's handler
    if result is None:
        raise KeyboardInterrupt
    return result
