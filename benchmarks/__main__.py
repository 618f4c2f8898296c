"""python -m benchmarks [--smoke] [--busy] [--out FILE.json] [-k EXPRESSION]: runs the benchmarks, writes a report."""

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.report import render

FOLDER = Path(__file__).parent


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--smoke", action="store_true", help="every benchmark once, at small shapes; keeps nothing")
    parser.add_argument(
        "--out", type=Path, default=Path("runs/benchmarks.json"), help="results (default: %(default)s); FILE.md beside"
    )
    parser.add_argument("--busy", action="store_true", help="processor seconds on one thread: the machine is shared")
    parser.add_argument("-k", metavar="EXPRESSION", default="", help="only the benchmarks that match, as in pytest")
    options = parser.parse_args()
    words = ["-q", "-rs", "-p", "no:cacheprovider", str(FOLDER), "-k", options.k]
    if options.smoke:
        return pytest.main([*words, "--benchmark-disable"])
    options.out.parent.mkdir(parents=True, exist_ok=True)
    words += [f"--benchmark-json={options.out.resolve()}", "--benchmark-columns=min,median,rounds"]
    shared = {"MIXFAST_BENCH_BUSY": "1", "OMP_NUM_THREADS": "1"} if options.busy else {}
    command = [sys.executable, "-m", "pytest", *words]
    code = subprocess.run(command, cwd=FOLDER.parent, env={**os.environ, **shared}).returncode
    if code == 0:
        report = options.out.with_suffix(".md")
        report.write_text(render(json.loads(options.out.read_text())) + "\n")
        print(f"wrote {options.out} and {report}")
    return code


if __name__ == "__main__":
    raise SystemExit(main())
