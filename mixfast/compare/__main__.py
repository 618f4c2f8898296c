"""Command line: python -m mixfast.compare RUN... [--out FOLDER]. Reads what training wrote; changes no run."""

import sys

from mixfast.compare.build import Compare, compare
from mixfast.config.words import parse
from mixfast.run.command import run


def main(words: list[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    return run(words, write)


def write(words: list[str]) -> None:
    """Write the report that the words ask for, and print its path."""
    print(f"report    {compare(parse(Compare, words, 'python -m mixfast.compare'), words)}")


if __name__ == "__main__":
    sys.exit(main())
