"""One training from an invocation to its report, for the command line and for Python, and its end after an error."""

import dataclasses
import signal
import sys
import traceback
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch

import mixfast
from mixfast import initial_weights
from mixfast.config.options import RunConfig, replace
from mixfast.config.presets import DEFAULT
from mixfast.data import Splits, load
from mixfast.data.decoder import has_torchvision
from mixfast.errors import DataError
from mixfast.initial_weights import InitialWeights, Origin
from mixfast.run import loggers, machine
from mixfast.run.budget import check_memory
from mixfast.run.claim import Claim
from mixfast.run.console import Console
from mixfast.run.failure import USER_CODE, Failure, explain
from mixfast.run.folder import RunFolder, write_json
from mixfast.run.precision import choose, pick_precision
from mixfast.run.signals import Stopped, StopRequest
from mixfast.run.state import Run
from mixfast.run.streams import reason
from mixfast.train import cli, report, transfer
from mixfast.train.trainings import prepare, train_all
from mixfast.world import current


class Ending(NamedTuple):
    """The end of an attempt that failed or was stopped."""

    state: str  # for status.json: stopped or failed
    failure: Failure
    details: str = ""  # the whole traceback, for the log


@dataclass
class Attempt:
    """The resources and progress of one call, for the code that must clean up after an error."""

    console: Console
    method: str = ""  # dotted name of the user's method that is trained; "" for a method of mixfast
    claim: Claim | None = None
    resumed: bool = False
    begun: bool = False  # training has begun; a failure before that changes nothing
    finished: bool = False  # training has ended and its report is written; scores of the networks may follow
    done: bool = False  # everything has ended

    def ending(self, error: BaseException) -> Ending:
        """The `Ending` for an error: "stopped" for a signal, else "failed"."""
        if isinstance(error, Exception):
            folder = self.claim.folder.path if self.claim else None
            failure = explain(error, self.console.log_path, self.method, folder)
            return Ending("failed", failure, "".join(traceback.format_exception(error)))
        end = error if isinstance(error, Stopped) else Stopped(signal.SIGINT)
        text = f"by {end}; the state is saved" if self.begun else f"before training began ({end})"
        text = f"by {end}" if self.finished else text
        return Ending("stopped", Failure(end.exit_code, f"stopped {text}", ""))

    def end(self, ending: Ending) -> None:
        """Write log and status of the ending to the run folder, or remove a folder in which training has not begun.

        A folder in which training has not begun is kept if the start was stopped, or if code has failed, for its log.
        """
        if self.claim is None:
            return
        state, failure, details = ending
        if self.finished:
            self.console.log(details + failure.text)
            return
        claim, folder, stopped = self.claim, self.claim.folder, state == "stopped"
        code_failed = failure.exit_code in (1, USER_CODE)
        if self.begun or (claim.fresh and (stopped or code_failed)):
            with suppress(OSError):
                folder.drop_unfinished()
            self.console.log(details + failure.text)
            _record_end(folder, state, failure)
        else:
            if stopped and self.resumed and not _is_finished(folder):
                _record_end(folder, state, failure)
            claim.abandon()


def _is_finished(folder: RunFolder) -> bool:
    """Whether the state in status.json is "finished"."""
    try:
        return folder.status().get("state") == "finished"
    except Exception:  # damaged
        return False


def _record_end(folder: RunFolder, state: str, failure: Failure) -> None:
    """Write status.json; print a line if it cannot be written."""
    try:
        folder.write_status(state, exit_code=failure.exit_code, reason=failure.text.splitlines()[0])
    except OSError as error:
        print(f"status.json of {folder.path} is out of date: it cannot be written ({reason(error)})", file=sys.stderr)


def launch(invocation: cli.Invocation, attempt: Attempt, stop: StopRequest) -> Run:
    """Train the run of an invocation and its companions, and write the report; returns the finished run."""
    config, preset, console, world = invocation.config, invocation.preset, attempt.console, current()
    attempt.method = config.method_name if "." in config.method_name else ""
    device = world.in_turn(lambda: check_machine(config))
    start = invocation.checkpoint()
    initial = world.in_turn(lambda: first_weights(invocation, start, console))
    config = replace(config, {"init": initial.origin.title}) if initial else config
    facts = set_machine(config)
    invocation = settle_precision(invocation, config, device)
    config = invocation.config
    attempt.resumed = invocation.resume is not None

    def claim() -> Path:
        attempt.claim = invocation.claim_folder(console.line)
        return attempt.claim.folder.path

    path = world.first(claim)
    folder = attempt.claim.folder if attempt.claim else RunFolder(path)

    def open_files(claim: Claim) -> None:
        claim.begin()
        folder.write_command([*invocation.command, *invocation.arguments])
        folder.write_config(config, preset, invocation.origins)
        if initial:
            initial.write(folder.path)
        write_json(folder.path / "env.json", machine.environment(device, processes=world.size, **facts))
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
    announce(invocation, config, console, device, folder)
    if attempt.resumed and start is None:
        console.line("it was stopped before its first checkpoint: training begins with step 1")
    if config.init:
        console.line(f"begun with {config.init}: {initial.origin if initial else Origin.of_run(folder.path)}")
    splits = load_everywhere(config, console, device, invocation.images)
    with console, folder.metrics.loggers:
        run = prepare(config, splits, folder, console, stop, device, start, begin, initial, invocation.callbacks)
        companions = train_all(run)
        console.line("\n" + world.first(lambda: report.write(run, preset, invocation.origins, companions)))
        if world.rank == 0:
            folder.write_status("finished", exit_code=0, step=run.step, epoch=run.epoch)
        attempt.finished = True
        if transfer.is_demo(run, preset, companions):
            console.line("\n" + world.first(lambda: transfer.add(run, companions)))
    console.line(f"\nreport    {folder.report}\nbackbone  {folder.export / 'backbone.safetensors'} (reload checked)")
    stop.ignore_further()
    attempt.done = True
    return run


def settle_precision(invocation: cli.Invocation, config: RunConfig[Any], device: torch.device) -> cli.Invocation:
    """The invocation with `config`, where a precision that is left to the machine is chosen, and the reason its origin.

    The choice becomes part of the configuration: a run that continues keeps it.
    """
    origins = invocation.origins
    if config.train.precision == "auto" and invocation.resume is None:
        precision, why = choose(config, device)
        config, origins = replace(config, {"train.precision": precision}), {**origins, "train.precision": why}
    return dataclasses.replace(invocation, config=config, origins=origins)


def announce(
    invocation: cli.Invocation, config: RunConfig[Any], console: Console, device: torch.device, folder: RunFolder
) -> None:
    """Print versions, device, preset, method, data and folder, and warnings and advice about them."""
    size, preset = current().size, invocation.preset
    console.line(
        f"mixfast {mixfast.__version__}   torch {torch.__version__}   {device} ({torch.get_num_threads()} threads)"
        f"{f' in each of {size} processes' if size > 1 else ''}   kernels: {machine.kernels(device)}   "
        f"seed {config.seed}"
    )
    choices = machine.pick_compile(config.train.compile, device), machine.pick_graph(config.train.graph, device)
    console.line("   ".join(explanation for _, explanation in choices))
    precision = pick_precision(config.train.precision, device)
    console.line(f"precision {precision} ({invocation.origins.get('train.precision', 'auto')})")
    console.line(
        f"preset {preset}: {config.method_name} on {config.data.kind}, {config.data.size} px, {config.model.title}, "
        f"{config.train.epochs} epoch{'s' * (config.train.epochs > 1)}   folder {folder.path}"
    )
    if preset == DEFAULT and config.data.kind != "scenes":
        console.line(
            f"warning: network and length of preset {preset} are made for its scenes; to train on {config.data.kind}, "
            "name a preset such as moco, or a --method."
        )
    if invocation.advice:
        console.line(invocation.advice)


def first_weights(invocation: cli.Invocation, start: Path | None, console: Console) -> InitialWeights | None:
    """The weights of --init, or their copy in a run that was stopped before its first checkpoint; None: random ones."""
    if invocation.init:
        return initial_weights.read(invocation.init, invocation.config.model, console.line)
    if invocation.resume and invocation.config.init and start is None:
        return initial_weights.reopen(RunFolder.open(invocation.resume).path)
    return None


def load_everywhere(config: RunConfig[Any], console: Console, device: torch.device, images: object) -> Splits:
    """The images; the first process writes caches and measures before the others load. `images` as in `load`."""
    world, room, loaded = current(), {**machine.room(device), "images": images}, list[Splits]()

    def load_first() -> tuple[tuple[float, ...], tuple[float, ...]]:
        loaded.append(load(config.data, config.seed, console.line, **room))
        return loaded[0].mean, loaded[0].std

    statistics = world.first(load_first)
    splits = loaded[0] if loaded else load(config.data, config.seed, console.line, **room, statistics=statistics)
    if world.size > 1:
        world.compare({"the data set": splits.fingerprint}, DataError, "Let all processes see the same images.")
    return splits


def check_machine(config: RunConfig[Any]) -> torch.device:
    """The device to train on; raises a UserError if it or another requirement of the run is not there."""
    device = machine.pick_own_device(config.train.device)
    machine.pick_compile(config.train.compile, device)
    machine.pick_graph(config.train.graph, device)
    loggers.check(config.train.log)
    check_memory(config, device)
    return device


def set_machine(config: RunConfig[Any]) -> dict[str, Any]:
    """Apply a run's settings to this process; returns their entries in env.json."""
    machine.set_determinism(config.train.deterministic)
    return {
        "threads": machine.set_threads(config.train.threads),
        "keeps_freed_memory": machine.keep_freed_memory(),
        "jpeg_decoder": "torchvision" if has_torchvision() else "Pillow",
    }
