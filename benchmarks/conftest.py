"""Fixtures of all benchmarks: small shapes for a smoke run, and the measurement of a table of times and memory."""

import copy
import ctypes
import gc
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
import torch
from pytest_benchmark.fixture import BenchmarkFixture

from benchmarks.interleave import BUSY, interleaved, looped, quantiles

STATUS, CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")
SECONDS, LEAST, MOST = 4.0, 7, 400  # of sampling one row; its samples
SHORTEST = 0.5e-3  # seconds of a sample
Table = Callable[[str, Mapping[str, Callable[[], object]]], None]


@pytest.fixture
def smoke(request: pytest.FixtureRequest) -> bool:
    """Whether nothing is measured (--benchmark-disable): shapes should then be small."""
    return bool(request.config.getoption("benchmark_disable"))


def resident_kib(field: str) -> int:
    """VmRSS, resident memory now, or VmHWM, its peak, of this process."""
    line = next(line for line in STATUS.read_text().splitlines() if line.startswith(field + ":"))
    return int(line.split()[1])


def extra_memory_mib(run: Callable[[], object]) -> float | None:
    """Peak of the resident memory during a call, minus its level before; None if the system does not report it."""
    if not CLEAR.exists():
        return None
    gc.collect()
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # else the call could reuse freed memory unnoticed
    if trim is not None:
        trim(0)
    CLEAR.write_text("5")  # the peak starts again from here
    before = resident_kib("VmRSS")
    run()
    return (resident_kib("VmHWM") - before) / 1024


@pytest.fixture
def measure(benchmark: BenchmarkFixture, smoke: bool) -> Table:
    """measure(group, {implementation: run}): a table of times and extra memory, its rows sampled in turn.

    Implementations named "mixfast ..." are this package's, one named "floor ..." is the work that every implementation
    needs; the report prints every other time as a multiple of these.
    """

    def table(group: str, runs: Mapping[str, Callable[[], object]]) -> None:
        def each_once() -> None:  # compiles, and touches what stays allocated
            for run in runs.values():
                run()

        if smoke:
            benchmark.pedantic(each_once)
            return
        each_once()
        memory = {name: extra_memory_mib(run) for name, run in runs.items()}
        samplers = {name: looped(run, SHORTEST) for name, run in runs.items()}
        samples = interleaved({name: sampler for name, (sampler, _) in samplers.items()}, SECONDS, LEAST, MOST)
        for name in runs:
            add_row(benchmark, group, name, samples[name], samplers[name][1], memory[name])

    return table


def add_row(
    benchmark: BenchmarkFixture, group: str, name: str, samples: list[float], calls: int, memory: float | None
) -> None:
    """A row of pytest-benchmark's own table and file, which has no public way to several rows from one test."""
    row = copy.copy(benchmark)
    row.group, row.name = group, name
    low, _, high = quantiles(samples)
    row.extra_info = {"implementation": name, "extra_memory_mib": memory, "threads": torch.get_num_threads()}
    row.extra_info["clock"] = "processor" if BUSY else "wall"
    row.extra_info |= {"p10": low, "p90": high}
    stats = row._make_stats(iterations=calls)
    for sample in samples:
        stats.update(sample * calls)
    benchmark._mode = "a table"  # used, that is
