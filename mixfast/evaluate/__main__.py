"""Command line: python -m mixfast.evaluate COMMAND RUN... Evaluates runs; changes no checkpoint."""

import multiprocessing
import os
import sys
import textwrap
from collections.abc import Callable
from contextlib import nullcontext, redirect_stdout
from functools import partial
from typing import Any

from mixfast.config.arguments import matching_name, parse, unknown_name
from mixfast.evaluate.components import Components, components
from mixfast.evaluate.contestants import Localise
from mixfast.evaluate.detect import Detect, detect_command
from mixfast.evaluate.embed import Embed, embed
from mixfast.evaluate.knn import Knn, knn
from mixfast.evaluate.linear import Linear, linear
from mixfast.evaluate.localise import localise
from mixfast.evaluate.maps import Maps, maps
from mixfast.evaluate.replay import Replay, replay
from mixfast.run.command import run
from mixfast.run.processes import join_processes, refuse_several_processes
from mixfast.world import current, leave

COMMANDS: dict[str, tuple[type, Callable[[Any], object]]] = {
    "knn": (Knn, knn),
    "linear": (Linear, linear),
    "maps": (Maps, maps),
    "localise": (Localise, localise),
    "detect": (Detect, detect_command),
    "components": (Components, components),
    "embed": (Embed, embed),
    "replay": (Replay, replay),
}
SHARED = ("knn", "linear", "detect")  # commands that several processes may divide among them


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    return run(arguments, evaluate)


def evaluate(arguments: list[str]) -> None:
    """Run the sub-command that the first argument names, or print the list of sub-commands."""
    if not arguments or arguments[0] in ("--help", "-h"):
        print("Evaluate what python -m mixfast.train has written; no checkpoint is changed.\n")
        print("usage: python -m mixfast.evaluate COMMAND RUN... [options]; COMMAND --help lists them")
        print("       RUN: the folder of a run, or one of its checkpoints\n")
        for name, (kind, _) in COMMANDS.items():
            print(textwrap.fill(kind.__doc__ or "", 98, initial_indent=f"  {name:<12}", subsequent_indent=14 * " "))
        return
    chosen = matching_name(arguments[0], COMMANDS)
    if chosen is None:
        raise unknown_name("command", arguments[0], COMMANDS)
    kind, command = COMMANDS[chosen]
    if chosen in SHARED:
        join_processes(arguments)
    else:
        refuse_several_processes()
    in_order = False
    try:
        with open(os.devnull, "w") as nobody, redirect_stdout(nobody) if current().rank else nullcontext():
            options = current().in_turn(partial(parse, kind, arguments[1:], f"python -m mixfast.evaluate {chosen}"))
            command(options)
        in_order = True
    finally:
        leave(in_order)


if __name__ == "__main__":
    multiprocessing.set_forkserver_preload(["mixfast.evaluate.__main__"])  # imported once, and shared by all workers
    sys.exit(main())
