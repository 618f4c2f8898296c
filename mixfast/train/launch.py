"""One training from an invocation to its report, for the command line and for Python; and how an attempt ends."""

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
    """How an attempt ends that is no success."""

    state: str  # for status.json: stopped or failed
    failure: Failure
    details: str = ""  # the whole traceback, for the log


@dataclass
class Attempt:
    """The resources and progress of one call, for the code that must clean up after an error."""

    console: Console
    method: str = ""  # dotted name of the user's method that is trained; "" for one of mixfast
    claim: Claim | None = None
    resumed: bool = False
    begun: bool = False  # training has begun; a failure before that changes nothing
    finished: bool = False  # training has ended and its report is written; scores of the networks may follow
    done: bool = False  # everything has ended

    def ending(self, error: BaseException) -> Ending:
        """The ending that an error stands for: the call was stopped, or it failed."""
        if isinstance(error, Exception):
            folder = self.claim.folder.path if self.claim else None
            failure = explain(error, self.console.log_path, self.method, folder)
            return Ending("failed", failure, "".join(traceback.format_exception(error)))
        end = error if isinstance(error, Stopped) else Stopped(signal.SIGINT)
        what = f"by {end}; the state is saved" if self.begun else f"before training began ({end})"
        what = f"by {end}" if self.finished else what
        return Ending("stopped", Failure(end.exit_code, f"stopped {what}", ""))

    def end(self, ending: Ending) -> None:
        """Leave a trace in the run folder.

        A start that came to nothing leaves none, unless it was stopped, or its log is needed to find an error in code.
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
    """Whether status.json says so."""
    try:
        return folder.status().get("state") == "finished"
    except Exception:  # damaged
        return False


def _record_end(folder: RunFolder, state: str, failure: Failure) -> None:
    """Write status.json; say so if that cannot be done."""
    try:
        folder.write_status(state, exit_code=failure.exit_code, reason=failure.text.splitlines()[0])
    except OSError as error:
        print(f"status.json of {folder.path} is out of date: it cannot be written ({reason(error)})", file=sys.stderr)


def launch(invocation: cli.Invocation, attempt: Attempt, stop: StopRequest) -> Run:
    """Train what an invocation asks for, and what it is compared with; write the report. Returns the finished run."""
    config, preset, console, here = invocation.config, invocation.preset, attempt.console, current()
    attempt.method = config.method_name if "." in config.method_name else ""
    device = here.in_turn(lambda: check_machine(config))
    start = invocation.checkpoint()
    initial = here.in_turn(lambda: first_weights(invocation, start, console))
    config = replace(config, {"init": initial.origin.title}) if initial else config
    facts = set_machine(config)
    invocation = settle_precision(invocation, config, device)
    config = invocation.config
    attempt.resumed = invocation.resume is not None

    def claim() -> Path:
        attempt.claim = invocation.claim_folder(console.line)
        return attempt.claim.folder.path

    path = here.first(claim)
    folder = attempt.claim.folder if attempt.claim else RunFolder(path)

    def open_files(claim: Claim) -> None:
        claim.begin()
        folder.write_command([*invocation.command, *invocation.words])
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
    announce(invocation, config, console, device, folder)
    if attempt.resumed and start is None:
        console.line("it was stopped before its first checkpoint: training begins with step 1")
    if config.init:
        console.line(f"begun with {config.init}: {initial.origin if initial else Origin.of_run(folder.path)}")
    splits = load_everywhere(config, console, device, invocation.images)
    with console, folder.metrics.loggers:
        run = prepare(config, splits, folder, console, stop, device, start, begin, initial, invocation.callbacks)
        companions = train_all(run)
        console.line("\n" + here.first(lambda: report.write(run, preset, invocation.origins, companions)))
        if here.rank == 0:
            folder.write_status("finished", exit_code=0, step=run.step, epoch=run.epoch)
        attempt.finished = True
        if transfer.wanted(run, preset, companions):
            console.line("\n" + here.first(lambda: transfer.add(run, companions)))
    console.line(f"\nreport    {folder.report}\nbackbone  {folder.export / 'backbone.safetensors'} (reload checked)")
    stop.leave()
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
    """Print the lines that say what is trained, and on what."""
    size, preset = current().size, invocation.preset
    console.line(
        f"mixfast {mixfast.__version__}   torch {torch.__version__}   {device} ({torch.get_num_threads()} threads)"
        f"{f' in each of {size} processes' if size > 1 else ''}   kernels: {machine.kernels(device)}   "
        f"seed {config.seed}"
    )
    choices = machine.pick_compile(config.train.compile, device), machine.pick_graph(config.train.graph, device)
    console.line("   ".join(why for _, why in choices))
    precision = pick_precision(config.train.precision, device)
    console.line(f"precision {precision} ({invocation.origins.get('train.precision', 'auto')})")
    console.line(
        f"preset {preset}: {config.method_name} on {config.data.kind}, {config.model.title}, "
        f"{config.train.epochs} epochs   folder {folder.path}"
    )
    if preset == DEFAULT and config.data.kind != "scenes":
        console.line(
            f"warning: network and length of preset {preset} are made for its scenes; to train on {config.data.kind}, "
            "name a preset such as moco, or a --method."
        )
    if invocation.advice:
        console.line(invocation.advice)


def first_weights(invocation: cli.Invocation, start: Path | None, console: Console) -> InitialWeights | None:
    """The weights of --init, or its stored copy if a run was stopped before its first checkpoint; None: random ones."""
    if invocation.init:
        return initial_weights.read(invocation.init, invocation.config.model, console.line)
    if invocation.resume and invocation.config.init and start is None:
        return initial_weights.reopen(RunFolder.open(invocation.resume).path)
    return None


def load_everywhere(config: RunConfig[Any], console: Console, device: torch.device, images: object) -> Splits:
    """The images; the first process makes caches and measures, before the others load. `images` as in `load`."""
    here, room, loaded = current(), {**machine.room(device), "images": images}, list[Splits]()

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
