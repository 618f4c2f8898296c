"""Print the list of commands: python -m mixfast."""

import difflib
import sys

from mixfast.errors import ConfigError
from mixfast.run.command import VERSION, run

COMMANDS = {
    "train": "train an encoder; without a word, a first run of a few minutes",
    "evaluate": "kNN, linear classifier, detection, attention maps, localisation of trained runs",
    "compare": "a report that puts runs side by side",
    "export": "the backbone of a run as a file for other programs",
    "profile": "what a training step costs, part by part",
    "doctor": "versions, devices, and which operations can run on this machine",
}


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    return run(arguments, show)


def show(arguments: list[str]) -> None:
    """List the commands; an argument that is a command without its dot is an error with the right spelling."""
    if arguments and not {"--help", "-h"} & set(arguments):
        nearest = difflib.get_close_matches(arguments[0].lower(), COMMANDS, n=1)
        commands = ", ".join(f"python -m mixfast.{name}" for name in nearest or COMMANDS)
        raise ConfigError(f"there is no command {arguments[0]!r}; commands are written with a dot: {commands}.")
    print(f"{VERSION}: self-supervised pre-training with image mixtures\n\nusage: python -m mixfast.COMMAND ...\n")
    print("\n".join(f"  {name:<10}{text}" for name, text in COMMANDS.items()))
    print("\npython -m mixfast.COMMAND --help shows the options of each.")


if __name__ == "__main__":
    sys.exit(main())
