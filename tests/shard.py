"""pytest -p tests.shard --shard I/N --results FILE [--known FILE]: every N-th test, for N processes beside each other.

FILE gets a JSON line for each outcome as it comes. Tests with an outcome in either file are not run again; one that
ended the process, which FILE tells, counts as failed. After an error that a GPU does not recover from the process ends
with DEVICE_LOST, so that a new one can run the other tests. Needs nothing beyond pytest.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

DEVICE_LOST = 70  # exit code
FATAL = ("CUDA error", "illegal memory access", "unspecified launch failure", "device-side assert")


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("shard")
    group.addoption("--shard", default="1/1", help="I/N: of every N tests the I-th")
    group.addoption("--results", type=Path, help="file that gets a JSON line for each outcome")
    group.addoption("--known", type=Path, help="file with outcomes of earlier runs")


def pytest_configure(config: pytest.Config) -> None:
    config.pluginmanager.register(Recorder(config), "recorder")


def read(path: Path | None) -> dict[str, dict[str, Any]]:
    """The last line of each test."""
    lines = path.read_text().splitlines() if path is not None and path.exists() else []
    return {record["test"]: record for record in map(json.loads, lines)}


class Recorder:
    def __init__(self, config: pytest.Config) -> None:
        self.path: Path | None = config.getoption("results")
        mine, earlier = read(self.path), read(config.getoption("known"))
        for record in mine.values():
            if record["outcome"] == "begun":
                self.write(record["test"], "failed", 0.0, "it ended the process")
        self.known = {*mine, *(test for test, record in earlier.items() if record["outcome"] != "begun")}
        index, count = map(int, config.getoption("shard").split("/"))
        self.index, self.count = index - 1, count
        self.lost = ""

    def write(self, test: str, outcome: str, seconds: float = 0.0, message: str = "") -> None:
        record = {"test": test, "outcome": outcome, "seconds": round(seconds, 3), "message": message}
        if self.path is not None:
            with self.path.open("a") as file:
                file.write(json.dumps(record) + "\n")

    @pytest.hookimpl(trylast=True)
    def pytest_collection_modifyitems(self, config: pytest.Config, items: list[pytest.Item]) -> None:
        """After `-m` has chosen."""
        mine = [item for item in items[self.index :: self.count] if item.nodeid not in self.known]
        config.hook.pytest_deselected(items=[item for item in items if item not in mine])
        items[:] = mine

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_protocol(self, item: pytest.Item) -> Iterator[None]:
        self.write(item.nodeid, "begun")
        result = yield
        if self.lost:
            pytest.exit(f"the GPU is lost after {self.lost}", returncode=DEVICE_LOST)
        return result

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.when == "call" or report.outcome != "passed":
            reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else report.longreprtext[-2000:]
            self.write(report.nodeid, report.outcome, report.duration, reason)
            if report.failed and any(words in reason for words in FATAL):
                self.lost = report.nodeid
