"""One call on a machine with a GPU: build, doctor, parity, sanitizer, profile, benchmarks, summary, all kept in OUT.

The sources are copied to build/gpu-check and everything happens there: nothing is installed, and modules of an editable
install in the checkout are neither used nor touched. OUT gets environment.json, parts.json, tests.jsonl, profile/,
benchmarks.jsonl, summary.md and check.log. A part that has finished for the same sources is not repeated, unless --part
names it. Needs torch, setuptools, pybind11, cmake, ninja, nvcc and pytest with hypothesis, and mixfast's own
requirements for the profile; --wheels brings what is missing.

Exit codes: 0 all is well, 1 something failed, 2 bad arguments, 3 nothing failed but parts are unfinished: call again.
"""

import argparse
import datetime
import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import gpu_parts
from gpu_machine import RESERVE, Machine, Outcome, Work, commit

FINISHED = ("passed", "failed", "skipped")


class Parts:
    """parts.json: what has finished, for which sources."""

    def __init__(self, machine: Machine) -> None:
        self.path, self.digest = machine.out / "parts.json", f"{machine.digest}{'-dry' if machine.dry else ''}"
        stored = json.loads(self.path.read_text()) if self.path.exists() else {}
        self.records: dict[str, dict[str, Any]] = stored.get("parts", {}) if self.same(stored) else {}
        if stored and not self.same(stored):
            (machine.out / "tests.jsonl").unlink(missing_ok=True)

    def same(self, stored: dict[str, Any]) -> bool:
        return stored.get("source") == self.digest

    def finished(self, name: str) -> bool:
        return self.records.get(name, {}).get("status") in FINISHED

    def set(self, name: str, outcome: Outcome, seconds: float) -> None:
        when = datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds")
        self.records[name] = {**outcome._asdict(), "seconds": round(seconds, 1), "date": when}
        self.path.write_text(json.dumps({"source": self.digest, "commit": commit(), "parts": self.records}, indent=1))

    def table(self, names: Sequence[str]) -> str:
        lines = ["| part | result | seconds | note |", "|---|---|---|---|"]
        for name in names:
            record = self.records.get(name, {"status": "not reached", "seconds": "", "note": ""})
            lines.append(f"| {name} | {record['status']} | {record['seconds']} | {record['note']} |")
        return "\n".join(lines)


def perform(machine: Machine, parts: Parts, work: dict[str, tuple[float, Work]], only: str) -> int:
    """Runs the parts in order, within the time; `only` one, which is then repeated, and the build that it needs."""
    for name, (least, do) in work.items():
        if (only and name not in (only, "build")) or (parts.finished(name) and name not in (only, "summary")):
            continue
        if machine.left() < least + RESERVE:
            parts.set(name, Outcome("not reached", f"{machine.left():.0f} s were left"), 0.0)
            continue
        print(f"== {name}", flush=True)
        start = time.monotonic()
        try:
            outcome = do(machine)
        except Exception as error:
            outcome = Outcome("failed", f"{type(error).__name__}: {error}")
        parts.set(name, outcome, time.monotonic() - start)
        print(f"{outcome.status}: {outcome.note}", flush=True)
        if name == "build" and outcome.status != "passed":
            break
    asked = [name for name in work if not only or name in (only, "build")]
    statuses = {parts.records.get(name, {}).get("status", "not reached") for name in asked}
    return 1 if "failed" in statuses else 0 if statuses <= set(FINISHED) else 3


def main() -> int:
    parser = argparse.ArgumentParser(prog="gpu_check.sh", description=__doc__.split("\n\n")[0])
    parser.add_argument("out", type=Path, help="folder for the evidence; give the same again to go on")
    parser.add_argument("--part", choices=gpu_parts.PARTS, default="", help="this part alone, again if it has finished")
    parser.add_argument(
        "--dry-run", action="store_true", help="what needs no GPU: plan, collected tests, tiny CPU runs"
    )
    parser.add_argument("--wheels", type=Path, help="folder of wheels that this machine lacks; unpacked, not installed")
    parser.add_argument("--seconds", type=float, default=540.0, help="for everything (default: %(default)s)")
    options = parser.parse_args()
    machine = Machine(options.out, options.dry_run, options.seconds, options.wheels)
    parts = Parts(machine)
    if parts.finished("build") and not gpu_parts.is_built(machine):
        del parts.records["build"]  # the evidence came from another machine
    code = perform(machine, parts, gpu_parts.PARTS, options.part)
    print(f"{gpu_parts.report(machine)}\n{parts.table(list(gpu_parts.PARTS))}\n\nThe evidence is in {machine.out}.")
    return code


if __name__ == "__main__":
    raise SystemExit(main())
