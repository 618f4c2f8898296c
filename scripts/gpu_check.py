"""Two calls on a machine with a GPU: build, every kernel, benchmarks, training, profile, sanitizers and tests.

The sources are copied to build/gpu-check and everything happens there: nothing is installed, and modules of an editable
install in the checkout are neither used nor touched. The folder OUT gets environment.json, parts.json, tests.jsonl,
profile/, training/, benchmarks.jsonl, summary.md and check.log, and OUT.tar.gz has all of them. A part that has
finished for the same sources is not repeated, unless --part names it; of the other parts, the one that has run for the
shortest time comes first. Needs torch, setuptools, pybind11, cmake, ninja, nvcc and pytest with hypothesis, and
mixfast's own requirements (tyro and its dependencies) for training and the profile; --wheels installs missing ones.

Exit codes: 0 all is well, 1 something failed, 2 bad arguments, 3 nothing failed but parts are unfinished: call again.
"""

import argparse
import datetime
import json
import shutil
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import gpu_parts
from gpu_machine import CALLS, RESERVE, Machine, Outcome, Part, commit

FINISHED = ("passed", "failed", "skipped")


class Parts:
    """parts.json: the results of the parts, for one state of the sources."""

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

    def seconds(self, name: str) -> float:
        """The time that a part has taken so far."""
        return float(self.records.get(name, {}).get("seconds", 0))

    def set(self, name: str, outcome: Outcome, seconds: float) -> None:
        date = datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds")
        seconds += 0 if self.finished(name) else self.seconds(name)
        self.records[name] = {**outcome._asdict(), "seconds": round(seconds, 1), "date": date}
        self.path.write_text(json.dumps({"source": self.digest, "commit": commit(), "parts": self.records}, indent=1))

    def table(self, names: Sequence[str]) -> str:
        lines = ["| part | result | seconds | note |", "|---|---|---|---|"]
        for name in names:
            record = self.records.get(name, {"status": "not reached", "seconds": "", "note": ""})
            lines.append(f"| {name} | {record['status']} | {record['seconds']} | {record['note']} |")
        return "\n".join(lines)


def plan(work: dict[str, Part]) -> str:
    """A table of every part with its estimate and its limit, and the sums of each call."""
    lines = ["| call | part | estimate, s | limit, s |", "|---|---|---|---|"]
    for call, seconds in CALLS.items():
        parts = {name: part for name, part in work.items() if part.call in (0, call)}
        lines += [f"| {call} | {name} | {part.estimate:.0f} | {part.limit:.0f} |" for name, part in parts.items()]
        estimate, limit = (sum(part[field] for part in parts.values()) for field in (2, 3))
        lines.append(f"| {call} | all, of {seconds:.0f} | {estimate:.0f} | {limit:.0f} |")
    return "\n".join(lines)


def perform(machine: Machine, parts: Parts, work: dict[str, Part], only: str) -> int:
    """Run the parts within the time; with `only`, that part, even if it has finished, and the build that it needs."""
    order = sorted(work, key=lambda name: (name != "build", name == "summary", parts.seconds(name)))
    for name in order:
        part = work[name]
        if (only and name not in (only, "build")) or (parts.finished(name) and name not in (only, "summary")):
            continue
        remaining = machine.left() - RESERVE
        if remaining < part.least:
            parts.set(name, Outcome("not reached", f"{machine.left():.0f} s were left"), 0.0)
            continue
        print(f"== {name}", flush=True)
        start = time.monotonic()
        try:
            outcome = part.do(machine, remaining if machine.dry else min(remaining, part.limit))
        except Exception as error:
            outcome = Outcome("failed", f"{type(error).__name__}: {error}")
        parts.set(name, outcome, time.monotonic() - start)
        print(f"{outcome.status}: {outcome.note}", flush=True)
        if name == "build" and outcome.status != "passed":
            break
    requested = [name for name in work if not only or name in (only, "build")]
    statuses = {parts.records.get(name, {}).get("status", "not reached") for name in requested}
    return 1 if "failed" in statuses else 0 if statuses <= set(FINISHED) else 3


def main() -> int:
    parser = argparse.ArgumentParser(prog="gpu_check.sh", description=__doc__.split("\n\n")[0])
    parser.add_argument("out", type=Path, help="folder for the evidence; give the same again to go on")
    parser.add_argument("--part", choices=gpu_parts.PARTS, default="", help="this part alone, again if it has finished")
    parser.add_argument(
        "--dry-run", action="store_true", help="what needs no GPU: plan, collected tests, tiny CPU runs"
    )
    parser.add_argument("--wheels", type=Path, help="folder of wheels that this machine lacks; unpacked, not installed")
    parser.add_argument(
        "--images", type=Path, help="to train on: a folder with train/ and test/, or a tar archive of it"
    )
    parser.add_argument("--seconds", type=float, default=CALLS[1], help="for everything (default: %(default)s)")
    options = parser.parse_args()
    machine = Machine(options.out, options.dry_run, options.seconds, options.wheels, options.images)
    parts = Parts(machine)
    if parts.finished("build") and not gpu_parts.is_built(machine):
        del parts.records["build"]  # the evidence came from another machine
    if machine.dry:
        print(f"{plan(gpu_parts.PARTS)}\n", flush=True)
    code = perform(machine, parts, gpu_parts.PARTS, options.part)
    archive = shutil.make_archive(str(machine.out), "gztar", machine.out)
    print(f"{gpu_parts.report(machine)}\n{parts.table(list(gpu_parts.PARTS))}\n\nThe evidence is in {archive}.")
    return code


if __name__ == "__main__":
    raise SystemExit(main())
