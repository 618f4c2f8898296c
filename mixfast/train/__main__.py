"""Command line: python -m mixfast.train [preset] [--section.key value]. `--help` shows the rest."""

import multiprocessing
import os
import shlex
import signal
import sys
import traceback
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

import mixfast
from mixfast import initial_weights
from mixfast.config.options import RunConfig, replace
from mixfast.config.presets import DEFAULT, switch_method
from mixfast.data import Splits, load
from mixfast.data.decoder import has_torchvision
from mixfast.errors import ConfigError, DataError, OutOfMemoryError
from mixfast.export import check_exportable, export
from mixfast.initial_weights import InitialWeights, Origin
from mixfast.run import checkpoint, machine, monitor
from mixfast.run.budget import check_memory, explain_out_of_memory, step_cost
from mixfast.run.claim import Claim, Lock
from mixfast.run.command import VERSION
from mixfast.run.console import Console
from mixfast.run.engine import train
from mixfast.run.failure import USER_CODE, Failure, explain, is_out_of_memory, run_command
from mixfast.run.folder import RunFolder, write_json
from mixfast.run.log import TensorBoard, summary_writer
from mixfast.run.signals import Stopped, StopRequest
from mixfast.run.state import Run, build
from mixfast.run.streams import reason, steady_streams
from mixfast.run.torch_state import fresh_torch_state
from mixfast.train import cli, report, transfer
from mixfast.world import Elsewhere, alone, current, leave


@dataclass
class Attempt:
    """What a call of `main` has got hold of, for whoever must leave it in order."""

    console: Console
    claim: Claim | None = None
    resumed: bool = False
    begun: bool = False  # whether training has; a start that fails before leaves everything as it was
    finished: bool = False  # whether training has, and its report is written; what the networks are worth may follow
    done: bool = False  # to the end


@fresh_torch_state()
def main(words: list[str] | None = None) -> int:
    """Run the command line; returns the exit code. torch's global state is left as it was; glibc keeps freed memory."""
    words = sys.argv[1:] if words is None else words
    switches = cli.switches(words)
    if {"--help", "-h", "--help-all", "--version"} & switches:
        return run_command(lambda: show_help(words, switches))
    attempt, method = Attempt(Console()), ""

    def at_once(number: int) -> None:
        lost = "" if attempt.finished else "; what came after the last checkpoint is lost"
        text = f"stopped by {signal.Signals(number).name} at once{lost}"
        finish(attempt, "stopped", Failure(128 + number, text, ""))

    with steady_streams("log.txt has every line"), StopRequest(at_once) as stop:
        try:
            machine.join_processes(words)
            invocation = current().in_turn(lambda: parse(words))
            method = invocation.config.method_name
            launch(invocation, attempt, stop)
            return 0
        except Elsewhere as error:
            stop.leave()
            return error.exit_code
        except (Stopped, KeyboardInterrupt) as error:
            stop.leave()
            end = error if isinstance(error, Stopped) else Stopped(signal.SIGINT)
            what = f"by {end}; the state is saved" if attempt.begun else f"before training began ({end})"
            what = f"by {end}" if attempt.finished else what
            return finish(attempt, "stopped", Failure(end.exit_code, f"stopped {what}", ""))
        except Exception as error:
            stop.leave()
            folder = attempt.claim.folder.path if attempt.claim else None
            failure = explain(error, attempt.console.log_path, method if "." in method else "", folder)
            details = "".join(traceback.format_exception(error))
            if "--traceback" in switches:
                failure = failure._replace(lines=details)
            return finish(attempt, "failed", failure, details)
        finally:
            if attempt.claim:
                attempt.claim.release()
            leave(in_order=attempt.done)


def parse(words: list[str]) -> cli.Invocation:
    """The command line; of a run that torchrun starts again (--max-restarts), what continues it.

    Raises:
        ConfigError: also where torchrun may start a run again that has no folder to be found in.
    """
    invocation = cli.parse(words)
    limit, count = (int(os.environ.get(f"TORCHELASTIC_{name}", 0)) for name in ("MAX_RESTARTS", "RESTART_COUNT"))
    if limit and not (invocation.out or invocation.resume):
        raise ConfigError("--max-restarts of torchrun needs --out DIR, where a run that ended is looked for.")
    if count and invocation.out and (invocation.out / "config.json").is_file():
        return cli.parse(["--resume", str(invocation.out)])
    return invocation


def show_help(words: list[str], switches: set[str]) -> None:
    """Print what --version, --help-all or --help asks for."""
    if "--version" in switches:
        print(VERSION)
    elif "--help-all" in switches:
        cli.full_help(words)
    else:
        print(cli.short_help())


def finish(attempt: Attempt, state: str, failure: Failure, details: str = "") -> int:
    """Leave a trace of an end that is not success, on stderr and in the run folder; returns the exit code.

    A start that came to nothing leaves none in the folder, unless it was stopped, or its log is needed to find an
    error in code.

    Args:
        attempt: holds the folder once there is one.
        state: for status.json.
        failure: what is printed.
        details: the whole traceback, for the log.
    """
    if current().rank == 0:
        print(failure.lines + failure.text, file=sys.stderr)
    elif state == "failed":
        print(f"{failure.lines}process {current().rank}: {failure.text}", file=sys.stderr)
    if attempt.claim is None:
        return failure.exit_code
    if attempt.finished:
        attempt.console.log(details + failure.text)
        again = f"python -m mixfast.train --resume {shlex.quote(str(attempt.claim.folder.path))}"
        print(f"the run is finished; what its report lacks is made by: {again}", file=sys.stderr)
        return failure.exit_code
    claim, folder, stopped = attempt.claim, attempt.claim.folder, state == "stopped"
    code_failed = failure.exit_code in (1, USER_CODE)
    if attempt.begun or (claim.fresh and (stopped or code_failed)):
        with suppress(OSError):
            folder.drop_unfinished()
        attempt.console.log(details + failure.text)
        record_end(folder, state, failure)
    else:
        if stopped and attempt.resumed and not is_finished(folder):
            record_end(folder, state, failure)
        claim.abandon()
    if attempt.begun or attempt.resumed or (claim.fresh and stopped):
        name_the_way_back(folder)
    return failure.exit_code


def is_finished(folder: RunFolder) -> bool:
    """Whether status.json says so."""
    try:
        return folder.status().get("state") == "finished"
    except Exception:  # damaged
        return False


def record_end(folder: RunFolder, state: str, failure: Failure) -> None:
    """Write status.json; say so if that cannot be done."""
    try:
        folder.write_status(state, exit_code=failure.exit_code, reason=failure.text.splitlines()[0])
    except OSError as error:
        print(f"status.json of {folder.path} is out of date: it cannot be written ({reason(error)})", file=sys.stderr)


def name_the_way_back(folder: RunFolder) -> None:
    """Print the command that continues a run, or begins one that ended before its first checkpoint."""
    command = f"python -m mixfast.train --resume {shlex.quote(str(folder.path))}"
    with suppress(OSError):
        if folder.has_checkpoint():
            print(f"checkpoint: {checkpoint.find(folder.path)}\ncontinue with: {command}", file=sys.stderr)
        elif not folder.has_trained():
            print(f"begin it with: {command}", file=sys.stderr)


def launch(invocation: cli.Invocation, attempt: Attempt, stop: StopRequest) -> None:
    """Train what the command line asks for, and what it is compared with; write the report."""
    config, preset, console, here = invocation.config, invocation.preset, attempt.console, current()
    device = here.in_turn(lambda: check_machine(config))
    start = invocation.checkpoint()
    initial = here.in_turn(lambda: first_weights(invocation, start, console))
    config = replace(config, {"init": initial.origin.title}) if initial else config
    threads, keeps_memory = machine.set_threads(config.train.threads), machine.keep_freed_memory()
    machine.set_determinism(config.train.deterministic)
    facts = {"keeps_freed_memory": keeps_memory, "jpeg_decoder": "torchvision" if has_torchvision() else "Pillow"}
    attempt.resumed = invocation.resume is not None

    def claim() -> Path:
        attempt.claim = invocation.claim_folder(console.line)
        return attempt.claim.folder.path

    path = here.first(claim)
    folder = attempt.claim.folder if attempt.claim else RunFolder(path)

    def open_files(claim: Claim) -> None:
        claim.begin()
        folder.write_command(["python", "-m", "mixfast.train", *invocation.words])
        folder.write_config(config, preset, invocation.origins)
        if initial:
            initial.write(folder.path)
        write_json(folder.path / "env.json", machine.environment(device, processes=here.size, **facts))
        folder.write_status("running")
        console.open_log(folder.log)

    def begin() -> None:
        attempt.begun = True
        if attempt.claim and not attempt.claim.fresh:
            open_files(attempt.claim)
            if start is None:
                folder.metrics.truncate(0)

    if attempt.claim and attempt.claim.fresh:
        open_files(attempt.claim)
    announce(config, preset, console, f"{device} ({threads} threads)", machine.kernels(device), folder)
    if attempt.resumed and start is None:
        console.line("it was stopped before its first checkpoint: training begins with step 1")
    if config.init:
        console.line(f"begun with {config.init}: {initial.origin if initial else Origin.of_run(folder.path)}")
    splits = load_everywhere(config, console, device)
    with console:
        run = train_one(config, splits, folder, console, stop, device, start, begin, initial)
        companions = {}
        for name in config.compare:
            if name != config.method_name:
                companions[name] = train_beside(run, name)
        console.line("\n" + here.first(lambda: report.write(run, preset, invocation.origins, companions)))
        if here.rank == 0:
            folder.write_status("finished", exit_code=0, step=run.step, epoch=run.epoch)
        attempt.finished = True
        if transfer.wanted(run, preset, companions):
            console.line("\n" + here.first(lambda: transfer.add(run, companions)))
    console.line(f"\nreport    {folder.report}\nbackbone  {folder.export / 'backbone.safetensors'} (reload checked)")
    stop.leave()
    attempt.done = True


def announce(
    config: RunConfig[Any], preset: str, console: Console, where: str, kernels: str, folder: RunFolder
) -> None:
    """Print the lines that say what is trained, and on what."""
    size = current().size
    console.line(
        f"mixfast {mixfast.__version__}   torch {torch.__version__}   {where}"
        f"{f' in each of {size} processes' if size > 1 else ''}   kernels: {kernels}   seed {config.seed}"
    )
    console.line(
        f"preset {preset}: {config.method_name} on {config.data.kind}, {config.model.title}, "
        f"{config.train.epochs} epochs   folder {folder.path}"
    )
    if preset == DEFAULT and config.data.kind != "scenes":
        console.line(
            f"warning: network and length of preset {preset} are made for its scenes; to train on {config.data.kind}, "
            "name a preset such as moco, or a --method."
        )


def first_weights(invocation: cli.Invocation, start: Path | None, console: Console) -> InitialWeights | None:
    """The weights of --init, or those kept for a run that was stopped before its first checkpoint; None: drawn ones."""
    if invocation.init:
        return initial_weights.read(invocation.init, invocation.config.model, console.line)
    if invocation.resume and invocation.config.init and start is None:
        return initial_weights.reopen(RunFolder.open(invocation.resume).path)
    return None


def load_everywhere(config: RunConfig[Any], console: Console, device: torch.device) -> Splits:
    """The images; the first process makes caches and measures, before the others load."""
    here, room, loaded = current(), machine.room(device), list[Splits]()

    def load_first() -> tuple[tuple[float, ...], tuple[float, ...]]:
        loaded.append(load(config.data, config.seed, console.line, **room))
        return loaded[0].mean, loaded[0].std

    statistics = here.first(load_first)
    splits = loaded[0] if loaded else load(config.data, config.seed, console.line, **room, statistics=statistics)
    if here.size > 1:
        here.compare({"the data set": splits.fingerprint}, DataError, "Let all processes see the same images.")
    return splits


def check_machine(config: RunConfig[Any]) -> torch.device:
    """The device to train on; raises a UserError if this machine lacks it or another thing that the run asks for."""
    device = machine.pick_own_device(config.train.device)
    machine.pick_compile(config.train.compile, device)
    machine.pick_graph(config.train.graph, device)
    if config.train.tensorboard:
        summary_writer()
    check_memory(config, device)
    return device


def train_one(
    config: RunConfig[Any],
    splits: Splits,
    folder: RunFolder,
    console: Console,
    stop: StopRequest,
    device: torch.device,
    start: Path | None,
    begin: Callable[[], None],
    initial: InitialWeights | None,
) -> Run:
    """Train one method, from the checkpoint or folder `start` if there is one; export its backbone.

    Without `start` the backbone begins with `initial`, or with drawn weights.
    `begin` is called when all that can be refused has been tried; before it, nothing is written for a run to continue.
    """
    here = current()
    run = build(config, splits, folder, console, stop, device, initial.weights if initial else None)
    check_exportable(run)
    views = None
    if start is None and here.rank == 0:
        with alone():
            views = report.first_views(run)
    console.line("   ".join(run.choices))
    if start:
        here.in_turn(lambda: run.load(start))
    here.compare({"the step to begin at": run.step})
    begin()
    if start:
        console.line(f"continuing {config.method_name} after step {run.step} of {run.steps} (epoch {run.epoch})")
    if views:
        report.draw_views(run, *views)
    if config.train.tensorboard and here.rank == 0:
        folder.metrics.mirror = TensorBoard(folder.path / "tensorboard", run.step)
    monitor.introduce(run)
    try:
        with stop.between_steps():
            train(run)
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        raise OutOfMemoryError(
            explain_out_of_memory(config, run.method, run.batches.images, machine.memory_bytes(device), run.clock.part)
        ) from error
    run.graph = None  # its memory is wanted by what is trained beside this run
    here.first(lambda: export(run))
    run.task.close()
    return run


def train_beside(run: Run, name: str) -> RunFolder:
    """Train another method on the same data in a folder inside the run's, for as many epochs as cost the same."""
    config, side = run.config, run.splits.train.images.shape[-1]
    other = switch_method(config, name)
    ratio = step_cost(config, side).encoder / step_cost(other, side).encoder
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
        train_one(other, run.splits, folder, run.console, run.stop, run.device, start, lambda: None, initial)
        if lock:
            folder.write_status("finished", exit_code=0)
    finally:
        if lock:
            lock.release()
    return folder


if __name__ == "__main__":
    multiprocessing.set_forkserver_preload(["mixfast.train.__main__"])  # what all workers import: once, and shared
    sys.exit(main())
