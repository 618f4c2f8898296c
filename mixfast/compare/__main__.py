"""Command line: python -m mixfast.compare RUN... [--out FOLDER]. Reads what training wrote; changes no run."""

import signal
import sys

import tyro

from mixfast.compare.build import Compare, compare
from mixfast.run.failure import run_command


def main(words: list[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    words = sys.argv[1:] if words is None else words

    def write() -> None:
        file = compare(tyro.cli(Compare, args=words, prog="python -m mixfast.compare"), words)
        print(f"report    {file}")

    before = signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))  # so that what is half done goes
    try:
        return run_command(write)
    finally:
        signal.signal(signal.SIGTERM, before)


if __name__ == "__main__":
    sys.exit(main())
