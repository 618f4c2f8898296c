"""The training of a run and of its companions, the methods of --compare; on a CPU side by side where that is faster."""

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

SMALL_STEP = 2**30  # bytes of activations of a batch, below which several threads hardly speed up a step


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

    Without `start` the backbone begins with `initial`, or with random weights.
    `begin` is called after every check that may refuse the run; nothing is written before.
    """
    world = current()
    run = build(config, splits, folder, console, stop, device, initial.weights if initial else None, callbacks)
    check_exportable(run)
    views = None
    if start is None and world.rank == 0:
        with alone():
            views = report.first_views(run)
    if start:
        world.in_turn(lambda: run.load(start))
    world.compare({"the step to begin at": run.step})
    begin()
    if start:
        console.line(f"continuing {config.method_name} after step {run.step} of {run.steps} (epoch {run.epoch})")
    if world.rank == 0:
        folder.metrics.loggers.open(config.train.log, folder.path, flatten(config), run.step, console.line)
    if views:
        report.draw_views(run, *views)
    monitor.introduce(run)
    return run


def train_all(run: Run) -> dict[str, RunFolder]:
    """Train a prepared run and its companions, and export them; returns the companions' folders by method."""
    main_name = run.config.method_name
    companions = {name: switch_method(run.config, name) for name in run.config.compare if name != main_name}
    configs = {main_name: run.config, **companions}

    @cache
    def cost(name: str) -> StepCost:
        return step_cost(configs[name], run.splits.train.images.shape[-1])

    together = bool(companions) and gains_side_by_side(run, configs, cost)
    folders = {}
    for names in [list(configs)] if together else [[name] for name in configs]:
        with ExitStack() as stack:
            runs = [run] if main_name in names else []
            for name in [name for name in names if name in companions]:
                runs.append(
                    stack.enter_context(
                        open_companion(run, companions[name], cost(main_name).encoder / cost(name).encoder)
                    )
                )
            run.console.line(monitor.HEADER)
            train_side_by_side(runs)
            folders.update(
                {companion.config.method_name: companion.folder for companion in runs if companion is not run}
            )
    return folders


def gains_side_by_side(run: Run, names: Collection[str], cost: Callable[[str], StepCost]) -> bool:
    """Whether several methods train faster side by side, each with a share of the threads, than one after the other.

    Only methods and networks of this package are trained side by side: they draw from their own generators alone, so
    that the results have the same bits. Runs with callbacks or loggers, which expect the caller's thread, are not.
    """
    config = run.config
    built_in = set(names) <= set(methods.names()) and config.model.backbone == RESNET
    in_memory = isinstance(run.train_images, Tensor) and not machine.pick_compile(config.train.compile, run.device)[0]
    threaded = run.device.type == "cpu" and current().size == 1 and torch.get_num_threads() > 1
    listened_to = run.callbacks != Callbacks() or bool(config.train.log)
    if listened_to or not (threaded and built_in and in_memory):
        return False
    images = config.train.batch_size // config.train.accumulate
    return all(cost(name).saved_bytes * images < SMALL_STEP for name in names)


@contextmanager
def open_companion(run: Run, companion: RunConfig[Any], ratio: float) -> Iterator[Run]:
    """Another method on the data of a run, ready to train in a folder inside the run's, for epochs of equal total cost.

    When the block ends, the status of the folder becomes "finished".

    Args:
        run: whose data and console are used, too.
        companion: configuration of the other method, with as many epochs as the run.
        ratio: encoder passes of a step of the run, divided by those of a step of the other method.
    """
    config, name = run.config, companion.method_name
    epochs = max(1, round(config.train.epochs * ratio))
    interval = max(1, round(config.eval.every * ratio)) if config.eval.every else 0
    companion = replace(
        companion, {"train.epochs": epochs, "eval.every": interval, "eval.baselines": False, "compare": ()}
    )
    path = run.folder.path / "compare" / name
    folder, lock = RunFolder(path), None
    if current().rank == 0:
        path.mkdir(parents=True, exist_ok=True)
        lock = Lock(path, run.console.line)
        folder.write_config(companion, "compare", {"train.epochs": f"equal encoder cost with {config.method_name}"})
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
            yield prepare(
                companion, run.splits, folder, run.console, run.stop, run.device, start, lambda: None, initial
            )
        if lock:
            folder.write_status("finished", exit_code=0)
    finally:
        if lock:
            lock.release()


def train_side_by_side(runs: Sequence[Run]) -> None:
    """Train runs to their ends and export their backbones, each in a thread with a share of torch's threads.

    An error in one of them stops the others as SIGTERM does: after a step, with a checkpoint.
    """
    stop = runs[0].stop
    with stop.between_steps():
        if len(runs) == 1:
            train_and_export(runs[0])
            return
        threads = torch.get_num_threads()
        torch.set_num_threads(max(1, threads // len(runs)))
        try:
            with ThreadPoolExecutor(len(runs)) as pool:
                for ended in as_completed([pool.submit(train_and_export, run) for run in runs]):
                    if error := ended.exception():
                        stop.request(signal.SIGTERM)
                        raise error
        finally:
            torch.set_num_threads(threads)


def train_and_export(run: Run) -> None:
    """Train a run to its end, and export its backbone."""
    try:
        train(run)
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        memory = machine.memory_bytes(run.device)
        explained = explain_out_of_memory(run.config, run.method, run.batches.images, memory, run.clock.part)
        raise OutOfMemoryError(explained) from error
    run.graph = None  # frees its memory for the runs that are trained next
    current().first(lambda: export(run))
    run.task.close()
