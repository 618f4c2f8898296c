"""python -m benchmarks.gpu --out FOLDER [--seconds N] [--only REGEX] [--list] [--smoke]

Writes FOLDER/benchmarks.jsonl, a line for each implementation as soon as its group is measured. If it is started again
with the same folder and the same sources, it continues where it stopped. The most important groups come first.

Exit codes: 0 all groups are measured, 1 one of ours failed, 3 the time ran out, 4 the GPU was lost (start again).
"""

import argparse
import dataclasses
import gc
import json
import os
import re
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import torch

from benchmarks.gpu import augment_groups, floors, infonce_groups, machine, norm_groups, pool_groups
from benchmarks.gpu.group import Group
from benchmarks.gpu.measure import DeviceLost, Row, facts, measure
from benchmarks.gpu.timing import Events, Timer, Wall

FAILED, CUT_OFF, LOST = 1, 3, 4
RESERVE = {False: 8.0, True: 45.0}  # seconds that a group may take, without and with compiling
ATTEMPTS = 2  # of a group that ends the process
WRONG = 0.1  # relative deviation from float32 that no rounding explains


def plan(smoke: bool) -> list[Group]:
    """In order of value, for a run that is cut off."""
    known = [*pool_groups.boxes(smoke), *infonce_groups.step(smoke)]
    again = known[:: len(known) - 1] if smoke else known
    return [
        *known,
        *augment_groups.step(smoke),
        *norm_groups.step(smoke),
        *pool_groups.variants(smoke),
        *infonce_groups.eager(smoke),
        *pool_groups.eager(smoke),
        *augment_groups.eager(smoke),
        *infonce_groups.sweep(smoke),
        *pool_groups.sweep(smoke),
        *infonce_groups.compiled(smoke),
        *pool_groups.compiled(smoke),
        *(group.among(graph=True, cold=False) for group in again),
        *(group.among(graph=False, cold=True) for group in again),
    ]


class Results:
    """The file: what earlier runs of the same sources have written, and what is added."""

    def __init__(self, folder: Path, source: str) -> None:
        self.path = folder / "benchmarks.jsonl"
        folder.mkdir(parents=True, exist_ok=True)
        self.records = [json.loads(line) for line in self.path.read_text().splitlines()] if self.path.exists() else []
        if self.records and self.records[0].get("source") != source:
            self.path.rename(folder / f"benchmarks-{self.records[0].get('source') or 'unknown'}.jsonl")
            self.records = []

    def add(self, record: Row) -> None:
        self.records.append(record)
        with self.path.open("a") as file:
            file.write(json.dumps(record) + "\n")
            file.flush()
            os.fsync(file.fileno())

    def of(self, kind: str) -> list[Row]:
        return [record for record in self.records if record["kind"] == kind]

    def open_groups(self, groups: list[Group]) -> list[Group]:
        """Those without rows. One that has ended the process again and again gets rows that say so, and is done."""
        begun = Counter(record["title"] for record in self.of("begun"))
        for group in self.without_rows(groups):
            for name in group.peers if begun[group.title] >= ATTEMPTS else ():
                self.add(facts(group, name) | {"reason": f"the process ended {begun[group.title]} times in this group"})
        return self.without_rows(groups)

    def without_rows(self, groups: list[Group]) -> list[Group]:
        done = {row["title"] for row in self.of("row")}
        return [each for each in groups if each.title not in done]


def failures(rows: list[Row]) -> list[str]:
    """Ours that were not measured, or whose results are wrong."""
    bad = []
    for row in rows:
        wrong = "deviation" in row and not row["deviation"] < WRONG
        if row["implementation"].startswith("mixfast") and (row.get("reason") or wrong):
            bad.append(f"{row['title']}: {row['implementation']}: {row.get('reason') or row['deviation']}")
    return bad


def run(groups: list[Group], results: Results, timer: Timer, deadline: float, smoke: bool) -> int:
    environment = machine.describe()
    results.add({"kind": "machine", **environment})
    with timer.running():
        rates = floors.measured(timer, smoke)
    results.add({"kind": "rates", **dataclasses.asdict(rates)})
    for group in results.open_groups(groups):
        if time.monotonic() + RESERVE[group.compiles] > deadline:
            print("the time is over: start again for the other groups", flush=True)
            return CUT_OFF
        results.add({"kind": "begun", "title": group.title})
        try:
            rows = measure(group, timer, rates, smoke)
        except DeviceLost as lost:
            print(f"{group.title}: the GPU is lost: {lost}", flush=True)
            return LOST
        for row in rows:
            results.add(row)
            print(line(row), flush=True)
        if timer.device.type == "cuda":
            gc.collect()
            torch.cuda.empty_cache()
    found = failures(results.of("row"))
    print("\n".join(found))
    return FAILED if found else 0


def line(row: dict[str, Any]) -> str:
    time_or_reason = (
        row.get("reason") or f"{row['median_us']:.2f} us, {row['floor_us'] / row['median_us']:.0%} of the floor"
    )
    return f"{row['title']}: {row['implementation']}: {time_or_reason}"


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu", description=__doc__.split("\n\n")[1])
    parser.add_argument("--out", type=Path, required=True, help="folder of benchmarks.jsonl")
    parser.add_argument("--seconds", type=float, default=480.0, help="stop in time for this (default: %(default)s)")
    parser.add_argument("--only", default="", help="regular expression that the title of a group contains")
    parser.add_argument("--list", action="store_true", help="print the titles of the groups, measure nothing")
    parser.add_argument("--smoke", action="store_true", help="every group once, tiny, on the CPU; measures nothing")
    options = parser.parse_args()
    deadline = time.monotonic() + options.seconds
    groups = [group for group in plan(options.smoke) if re.search(options.only, group.title)]
    unique = {group.title: group for group in groups}
    if options.list:
        print("\n".join(unique))
        return 0
    if not options.smoke and not torch.cuda.is_available():
        print("there is no GPU; --smoke runs every benchmark on the CPU", file=sys.stderr)
        return 2
    torch._dynamo.config.recompile_limit = 64  # beyond it torch would run eager code under the name of compiled code
    results = Results(options.out, os.environ.get("MIXFAST_SOURCE", ""))
    return run(list(unique.values()), results, Wall() if options.smoke else Events(), deadline, options.smoke)


if __name__ == "__main__":
    raise SystemExit(main())
