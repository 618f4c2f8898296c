"""Print what can be run: python -m mixfast."""

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


def main(words: list[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    return run(words, show)


def show(words: list[str]) -> None:
    """List the commands; a word that is meant as one of them is an error that names it."""
    if words and not {"--help", "-h"} & set(words):
        near = difflib.get_close_matches(words[0].lower(), COMMANDS, n=1)
        commands = ", ".join(f"python -m mixfast.{name}" for name in near or COMMANDS)
        raise ConfigError(f"there is no command {words[0]!r}; commands are written with a dot: {commands}.")
    print(f"{VERSION}: self-supervised pre-training with image mixtures\n\nusage: python -m mixfast.COMMAND ...\n")
    print("\n".join(f"  {name:<10}{text}" for name, text in COMMANDS.items()))
    print("\npython -m mixfast.COMMAND --help shows the options of each.")


if __name__ == "__main__":
    sys.exit(main())
