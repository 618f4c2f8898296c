"""--version, --traceback and the exit code of every command except training."""

import sys
import traceback
from collections.abc import Callable

import mixfast
from mixfast.errors import UserError
from mixfast.run.failure import run_command

VERSION = f"mixfast {mixfast.__version__}"


def run(words: list[str] | None, command: Callable[[list[str]], object]) -> int:
    """Run a command on the words of its command line; returns the exit code.

    Args:
        words: None: those of this process.
        command: takes them without --traceback.
    """
    words = sys.argv[1:] if words is None else words
    if "--version" in words:
        print(VERSION)
        return 0

    def call() -> None:
        try:
            command([word for word in words if word != "--traceback"])
        except UserError:  # of any other error the traceback is shown anyway
            if "--traceback" in words:
                traceback.print_exc()
            raise

    return run_command(call)
