"""Command line: python -m mixfast.evaluate COMMAND RUN... Reads what training wrote; changes no checkpoint."""

import multiprocessing
import sys
from collections.abc import Callable
from typing import Any

import tyro

from mixfast.errors import ConfigError
from mixfast.evaluate.components import Components, components
from mixfast.evaluate.contestants import Localise
from mixfast.evaluate.embed import Embed, embed
from mixfast.evaluate.knn import Knn, knn
from mixfast.evaluate.linear import Linear, linear
from mixfast.evaluate.localise import localise
from mixfast.evaluate.maps import Maps, maps
from mixfast.evaluate.replay import Replay, replay
from mixfast.run.failure import run_command
from mixfast.run.folder import homes_expanded

COMMANDS: dict[str, tuple[type, Callable[[Any], None]]] = {
    "knn": (Knn, knn),
    "linear": (Linear, linear),
    "maps": (Maps, maps),
    "localise": (Localise, localise),
    "components": (Components, components),
    "embed": (Embed, embed),
    "replay": (Replay, replay),
}


def main(words: list[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    words = sys.argv[1:] if words is None else words
    return run_command(lambda: evaluate(words))


def evaluate(words: list[str]) -> None:
    """Run the sub-command that the first word names, or print what there is."""
    if not words or words[0] in ("--help", "-h"):
        print("Evaluate what python -m mixfast.train has written; no checkpoint is changed.\n")
        print("usage: python -m mixfast.evaluate COMMAND RUN... [options]; COMMAND --help lists them")
        print("       RUN: the folder of a run, or one of its checkpoints\n")
        print("\n".join(f"  {name:<11} {kind.__doc__}" for name, (kind, _) in COMMANDS.items()))
        return
    if words[0] not in COMMANDS:
        raise ConfigError(f"unknown command {words[0]!r}; known: {', '.join(COMMANDS)}.")
    kind, command = COMMANDS[words[0]]
    command(homes_expanded(tyro.cli(kind, args=words[1:], prog=f"python -m mixfast.evaluate {words[0]}")))


if __name__ == "__main__":
    multiprocessing.set_forkserver_preload(["mixfast.evaluate.__main__"])  # what all workers import: once, and shared
    sys.exit(main())
