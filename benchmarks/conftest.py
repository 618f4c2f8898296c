"""What every benchmark gets: small shapes for a smoke run, one way to measure, peak memory beside the time."""

import ctypes
import gc
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from pytest_benchmark.fixture import BenchmarkFixture

STATUS, CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")


@pytest.fixture
def smoke(request: pytest.FixtureRequest) -> bool:
    """Whether nothing is measured (--benchmark-disable): shapes should then be small."""
    return bool(request.config.getoption("benchmark_disable"))


def resident_kib(field: str) -> int:
    """VmRSS, resident memory now, or VmHWM, its peak, of this process."""
    line = next(line for line in STATUS.read_text().splitlines() if line.startswith(field + ":"))
    return int(line.split()[1])


def extra_memory_mib(run: Callable[[], object]) -> float | None:
    """How far resident memory rises above its level before the call, at the peak; None where Linux does not tell."""
    if not CLEAR.exists():
        return None
    gc.collect()
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # else memory that was freed before hides what is taken now
    if trim is not None:
        trim(0)
    CLEAR.write_text("5")  # the peak starts again from here
    before = resident_kib("VmRSS")
    run()
    return (resident_kib("VmHWM") - before) / 1024


@pytest.fixture
def measure(benchmark: BenchmarkFixture, smoke: bool) -> Callable[[str, str, Callable[[], object]], None]:
    """measure(group, implementation, run): time and extra memory of `run`, a row of the table `group`.

    Implementations named "mixfast ..." are ours, one named "floor ..." is what no implementation can do without; the
    report prints every other time as a multiple of these.
    """

    def measure_one(group: str, implementation: str, run: Callable[[], object]) -> None:
        benchmark.group, benchmark.name = group, implementation
        run()  # compiles, and touches what stays allocated
        memory = None if smoke else extra_memory_mib(run)
        benchmark.extra_info.update(
            implementation=implementation, extra_memory_mib=memory, threads=torch.get_num_threads()
        )
        if smoke:
            benchmark.pedantic(run, rounds=1, iterations=1)
        else:
            benchmark(run)

    return measure_one
