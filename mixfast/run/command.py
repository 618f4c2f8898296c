"""--version, --traceback and the exit code of every command except training."""

import sys
import traceback
from collections.abc import Callable

import mixfast
from mixfast.errors import UserError
from mixfast.run.failure import run_command

VERSION = f"mixfast {mixfast.__version__}"


def run(arguments: list[str] | None, command: Callable[[list[str]], object]) -> int:
    """Run a command with the arguments of a command line; returns the exit code.

    Args:
        arguments: of the command line; None: those of this process.
        command: called with the arguments without --traceback.
    """
    arguments = sys.argv[1:] if arguments is None else arguments
    if "--version" in arguments:
        print(VERSION)
        return 0

    def call() -> None:
        try:
            command([word for word in arguments if word != "--traceback"])
        except UserError:  # run_command prints the traceback of every other error
            if "--traceback" in arguments:
                traceback.print_exc()
            raise

    return run_command(call)
