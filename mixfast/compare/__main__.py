"""Command line: python -m mixfast.compare RUN... [--out FOLDER]. Reads what training wrote; changes no run."""

import sys

import tyro

from mixfast.compare.build import Compare, compare
from mixfast.run.failure import run_command
from mixfast.run.folder import homes_expanded


def main(words: list[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    words = sys.argv[1:] if words is None else words

    def write() -> None:
        options = tyro.cli(Compare, args=words, prog="python -m mixfast.compare")
        file = compare(homes_expanded(options), words)
        print(f"report    {file}")

    return run_command(write)


if __name__ == "__main__":
    sys.exit(main())
