"""Command line: python -m mixfast.compare RUN... [--out FOLDER]. Reads what training wrote; changes no run."""

import sys

import tyro

from mixfast.compare.build import Compare, compare
from mixfast.errors import UserError


def main(words: list[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    words = sys.argv[1:] if words is None else words
    try:
        file = compare(tyro.cli(Compare, args=words, prog="python -m mixfast.compare"), words)
        print(f"report    {file}")
        return 0
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    except SystemExit as end:  # tyro has printed its help or what it did not understand
        return int(end.code or 0)


if __name__ == "__main__":
    sys.exit(main())
