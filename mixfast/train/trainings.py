"""The training of a run and of the methods that it is compared with, on a CPU side by side where that is faster."""

import signal
from collections.abc import Callable, Collection, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import ExitStack, contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mixfast import initial_weights, methods
from mixfast.config.options import RunConfig, flatten, replace
from mixfast.config.presets import switch_method
from mixfast.data import Splits
from mixfast.errors import OutOfMemoryError
from mixfast.export import check_exportable, export
from mixfast.initial_weights import InitialWeights
from mixfast.models.config import RESNET
from mixfast.run import machine, monitor
from mixfast.run.budget import StepCost, explain_out_of_memory, step_cost
from mixfast.run.callbacks import Callbacks
from mixfast.run.claim import Lock
from mixfast.run.console import Console
from mixfast.run.engine import train
from mixfast.run.failure import is_out_of_memory
from mixfast.run.folder import RunFolder
from mixfast.run.signals import StopRequest
from mixfast.run.state import Run, build
from mixfast.train import report
from mixfast.world import alone, current

SMALL_STEP = 2**30  # bytes of activations of a batch; several threads hardly speed up what is much smaller


def prepare(
    config: RunConfig[Any],
    splits: Splits,
    folder: RunFolder,
    console: Console,
    stop: StopRequest,
    device: torch.device,
    start: Path | None,
    begin: Callable[[], None],
    initial: InitialWeights | None,
    callbacks: Callbacks = Callbacks(),  # noqa: B008  # frozen
) -> Run:
    """A run that is ready to train, from the checkpoint or folder `start` if there is one.

    Without `start` the backbone begins with `initial`, or with drawn weights.
    `begin` is called when all that can be refused has been tried; before it, nothing is written for a run to continue.
    """
    here = current()
    run = build(config, splits, folder, console, stop, device, initial.weights if initial else None, callbacks)
    check_exportable(run)
    views = None
    if start is None and here.rank == 0:
        with alone():
            views = report.first_views(run)
    if start:
        here.in_turn(lambda: run.load(start))
    here.compare({"the step to begin at": run.step})
    begin()
    if start:
        console.line(f"continuing {config.method_name} after step {run.step} of {run.steps} (epoch {run.epoch})")
    if here.rank == 0:
        folder.metrics.loggers.open(config.train.log, folder.path, flatten(config), run.step, console.line)
    if views:
        report.draw_views(run, *views)
    monitor.introduce(run)
    return run


def train_all(run: Run) -> dict[str, RunFolder]:
    """Train a prepared run and the methods of --compare, and export them; the folders of the latter by method."""
    own = run.config.method_name
    others = {name: switch_method(run.config, name) for name in run.config.compare if name != own}
    configs = {own: run.config, **others}

    @cache
    def cost(name: str) -> StepCost:
        return step_cost(configs[name], run.splits.train.images.shape[-1])

    together = bool(others) and gains_by_company(run, configs, cost)
    folders = {}
    for names in [list(configs)] if together else [[name] for name in configs]:
        with ExitStack() as stack:
            runs = [run] if own in names else []
            for name in [name for name in names if name in others]:
                runs.append(stack.enter_context(beside(run, others[name], cost(own).encoder / cost(name).encoder)))
            run.console.line(monitor.HEADER)
            complete(runs)
            folders.update({one.config.method_name: one.folder for one in runs if one is not run})
    return folders


def gains_by_company(run: Run, names: Collection[str], cost: Callable[[str], StepCost]) -> bool:
    """Whether several methods train faster side by side, a share of the threads each, than one after the other.

    Only what draws from generators of its own alone is trained so: it ends in the bits that it has by itself. Callbacks
    and loggers are called in the caller's thread.
    """
    config = run.config
    ours = set(names) <= set(methods.names()) and config.model.backbone == RESNET
    in_memory = isinstance(run.train_images, Tensor) and not machine.pick_compile(config.train.compile, run.device)[0]
    threaded = run.device.type == "cpu" and current().size == 1 and torch.get_num_threads() > 1
    listened_to = run.callbacks != Callbacks() or bool(config.train.log)
    if listened_to or not (threaded and ours and in_memory):
        return False
    images = config.train.batch_size // config.train.accumulate
    return all(cost(name).saved_bytes * images < SMALL_STEP for name in names)


@contextmanager
def beside(run: Run, other: RunConfig[Any], ratio: float) -> Iterator[Run]:
    """Another method on the same data, ready to train in a folder inside the run's, for the epochs of equal cost.

    The folder counts as finished when the block ends.

    Args:
        run: whose data, folder and console it shares.
        other: configuration of the other method, with the length of the run's.
        ratio: encoder passes of a step of the run, in those of a step of the other method.
    """
    config, name = run.config, other.method_name
    epochs = max(1, round(config.train.epochs * ratio))
    every = max(1, round(config.eval.every * ratio)) if config.eval.every else 0
    other = replace(other, {"train.epochs": epochs, "eval.every": every, "eval.baselines": False, "compare": ()})
    path = run.folder.path / "compare" / name
    folder, lock = RunFolder(path), None
    if current().rank == 0:
        path.mkdir(parents=True, exist_ok=True)
        lock = Lock(path, run.console.line)
        folder.write_config(other, "compare", {"train.epochs": f"equal encoder cost with {config.method_name}"})
    run.console.line(
        f"\ncomparison: {name}, {epochs} epochs (a step costs {1 / ratio:.2f} times the encoder passes of one of "
        f"{config.method_name})"
    )
    start = path if current().first(folder.has_checkpoint) else None
    initial = initial_weights.reopen(run.folder.path) if config.init and start is None else None
    if initial and lock:
        initial.write(path)
    try:
        with folder.metrics.loggers:
            yield prepare(other, run.splits, folder, run.console, run.stop, run.device, start, lambda: None, initial)
        if lock:
            folder.write_status("finished", exit_code=0)
    finally:
        if lock:
            lock.release()


def complete(runs: Sequence[Run]) -> None:
    """Train runs to their ends and export their backbones; of several, each has a thread and a share of torch's.

    An error in one of them stops the others in order, as a signal does.
    """
    stop = runs[0].stop
    with stop.between_steps():
        if len(runs) == 1:
            complete_one(runs[0])
            return
        threads = torch.get_num_threads()
        torch.set_num_threads(max(1, threads // len(runs)))
        try:
            with ThreadPoolExecutor(len(runs)) as pool:
                for ended in as_completed([pool.submit(complete_one, run) for run in runs]):
                    if error := ended.exception():
                        stop.ask(signal.SIGTERM)
                        raise error
        finally:
            torch.set_num_threads(threads)


def complete_one(run: Run) -> None:
    """Train a run to its end, and export its backbone."""
    try:
        train(run)
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        memory = machine.memory_bytes(run.device)
        explained = explain_out_of_memory(run.config, run.method, run.batches.images, memory, run.clock.part)
        raise OutOfMemoryError(explained) from error
    run.graph = None  # its memory is wanted by what is trained beside this run
    current().first(lambda: export(run))
    run.task.close()
