"""Command line: python -m mixfast.compare RUN... [--out FOLDER]. Reads the folders of runs; changes none."""

import sys

from mixfast.compare.build import Compare, compare
from mixfast.config.arguments import parse
from mixfast.run.command import run


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    return run(arguments, write)


def write(arguments: list[str]) -> None:
    """Write the report that the arguments ask for, and print its path."""
    print(f"report    {compare(parse(Compare, arguments, 'python -m mixfast.compare'), arguments)}")


if __name__ == "__main__":
    sys.exit(main())
