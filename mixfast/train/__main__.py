"""Command line: python -m mixfast.train [preset] [--section.key value]. `--help` shows the rest."""

import multiprocessing
import os
import shlex
import signal
import sys
from contextlib import suppress

from mixfast.errors import ConfigError
from mixfast.run import checkpoint, processes
from mixfast.run.command import VERSION
from mixfast.run.console import Console
from mixfast.run.failure import Failure, run_command
from mixfast.run.folder import RunFolder
from mixfast.run.signals import Stopped, StopRequest
from mixfast.run.streams import steady_streams
from mixfast.run.torch_state import fresh_torch_state
from mixfast.train import cli
from mixfast.train.launch import Attempt, Ending, launch
from mixfast.world import Elsewhere, current, leave


@fresh_torch_state()
def main(arguments: list[str] | None = None) -> int:
    """Run the command line; returns the exit code. Restores torch's global state, but glibc keeps freed memory."""
    arguments = sys.argv[1:] if arguments is None else arguments
    switches = cli.switches(arguments)
    if {"--help", "-h", "--help-all", "--version"} & switches:
        return run_command(lambda: show_help(arguments, switches))
    attempt = Attempt(Console())

    def end_at_once(number: int) -> None:
        lost = "" if attempt.finished else "; what came after the last checkpoint is lost"
        text = f"stopped by {signal.Signals(number).name} at once{lost}"
        finish(attempt, Ending("stopped", Failure(128 + number, text, "")))

    with steady_streams("log.txt has every line"), StopRequest(end_at_once) as stop:
        try:
            processes.join_processes(arguments)
            launch(current().in_turn(lambda: parse(arguments)), attempt, stop)
            return 0
        except Elsewhere as error:
            stop.ignore_further()
            return error.exit_code
        except (Stopped, KeyboardInterrupt, Exception) as error:
            stop.ignore_further()
            ending = attempt.ending(error)
            if "--traceback" in switches and ending.details:
                ending = ending._replace(failure=ending.failure._replace(lines=ending.details))
            return finish(attempt, ending)
        finally:
            if attempt.claim:
                attempt.claim.release()
            leave(in_order=attempt.done)


def parse(arguments: list[str]) -> cli.Invocation:
    """The parsed command line; if torchrun has restarted the run (--max-restarts), that which continues it.

    Raises:
        ConfigError: also if torchrun may restart the run, and --out or --resume does not name its folder.
    """
    invocation = cli.parse(arguments)
    limit, count = (int(os.environ.get(f"TORCHELASTIC_{name}", 0)) for name in ("MAX_RESTARTS", "RESTART_COUNT"))
    if limit and not (invocation.out or invocation.resume):
        raise ConfigError("--max-restarts of torchrun needs --out DIR, where a run that ended is looked for.")
    if count and invocation.out and (invocation.out / "config.json").is_file():
        return cli.parse(["--resume", str(invocation.out)])
    return invocation


def show_help(arguments: list[str], switches: set[str]) -> None:
    """Print what --version, --help-all or --help asks for."""
    if "--version" in switches:
        print(VERSION)
    elif "--help-all" in switches:
        cli.full_help(arguments)
    else:
        print(cli.short_help())


def finish(attempt: Attempt, ending: Ending) -> int:
    """Print on stderr why an attempt failed or stopped, and how to continue it; returns the exit code."""
    failure = ending.failure
    if current().rank == 0:
        print(failure.lines + failure.text, file=sys.stderr)
    elif ending.state == "failed":
        print(f"{failure.lines}process {current().rank}: {failure.text}", file=sys.stderr)
    attempt.end(ending)
    if attempt.claim is None:
        return failure.exit_code
    folder = attempt.claim.folder
    if attempt.finished:
        command = f"python -m mixfast.train --resume {shlex.quote(str(folder.path))}"
        print(f"the run is finished; complete its report with: {command}", file=sys.stderr)
    elif attempt.begun or attempt.resumed or (attempt.claim.fresh and ending.state == "stopped"):
        print_resume_command(folder)
    return failure.exit_code


def print_resume_command(folder: RunFolder) -> None:
    """Print the command that continues a run, or that begins one which ended before its first checkpoint."""
    command = f"python -m mixfast.train --resume {shlex.quote(str(folder.path))}"
    with suppress(OSError):
        if folder.has_checkpoint():
            print(f"checkpoint: {checkpoint.find(folder.path)}\ncontinue with: {command}", file=sys.stderr)
        elif not folder.has_trained():
            print(f"begin it with: {command}", file=sys.stderr)


if __name__ == "__main__":
    multiprocessing.set_forkserver_preload(["mixfast.train.__main__"])  # imported once, and shared by all workers
    sys.exit(main())
