"""How a call is timed on a device: CUDA events around graphs or eager calls; on the CPU, for smoke runs, a wall clock.

A sample covers several calls, one for each of the inputs that it is given: with enough of them, together larger than
the L2 cache several times over, every call finds its inputs in DRAM ("cold"). Their results are kept until the last
call, so that what a call writes is not in the cache either.
"""

import contextlib
import gc
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Protocol

import torch

from benchmarks.interleave import Sampler

Call = Callable[[], object]
COLD = 3  # times the L2 cache that is read between two uses of the same bytes


class Timer(Protocol):
    device: torch.device
    cache_bytes: int  # of the L2
    memory_bytes: int

    def sampler(self, calls: Sequence[Call], graph: bool, cold: bool) -> Sampler: ...
    def seconds(self, call: Call) -> float: ...
    def peak_bytes(self, call: Call) -> int | None: ...
    def running(self) -> contextlib.AbstractContextManager[None]: ...


class Wall:
    """The CPU in place of a GPU: proves that the benchmarks run, measures nothing worth keeping."""

    device = torch.device("cpu")
    cache_bytes, memory_bytes = 1 << 12, 1 << 30

    def sampler(self, calls: Sequence[Call], graph: bool, cold: bool) -> Sampler:
        return lambda: sum(self.seconds(call) for call in calls) / len(calls)

    def seconds(self, call: Call) -> float:
        start = time.perf_counter()
        call()
        return time.perf_counter() - start

    def peak_bytes(self, call: Call) -> int | None:
        call()
        return None

    @contextlib.contextmanager
    def running(self) -> Iterator[None]:
        yield


class Events:
    """A GPU. Everything happens on one stream of its own, which graphs can capture."""

    def __init__(self) -> None:
        self.device = torch.device("cuda", torch.cuda.current_device())
        found = torch.cuda.get_device_properties(self.device)
        self.cache_bytes, self.memory_bytes = found.L2_cache_size, found.total_memory
        self.stream = torch.cuda.Stream(self.device)
        self.flushed = torch.ones(COLD * self.cache_bytes // 4, dtype=torch.int32, device=self.device)
        self.start, self.end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        torch.cuda.synchronize()

    @contextlib.contextmanager
    def running(self) -> Iterator[None]:
        with torch.cuda.stream(self.stream):
            yield
        self.stream.synchronize()

    def sampler(self, calls: Sequence[Call], graph: bool, cold: bool) -> Sampler:
        """Times one graph of all calls, or the calls one by one; `cold` clears the cache before each sample."""
        replay = self.captured(calls).replay if graph else lambda: [call() for call in calls]

        def sample() -> float:
            if cold:
                self.flushed.sum()  # reads: written lines would still have to leave the cache, in the time of the calls
            elif graph:
                replay()
            # The GPU is still busy with that when a graph is launched, so its launch is not measured; the host's part
            # of eager calls is, so these begin on an idle GPU.
            if not graph:
                self.stream.synchronize()
            self.start.record()
            replay()
            self.end.record()
            self.end.synchronize()
            return self.start.elapsed_time(self.end) / 1e3 / len(calls)

        return sample

    def captured(self, calls: Sequence[Call]) -> torch.cuda.CUDAGraph:
        for _ in range(2):  # kernels are loaded and tables copied before, never while a graph is captured
            for call in calls:
                call()
        self.stream.synchronize()
        graph = torch.cuda.CUDAGraph()
        gc.disable()  # collecting what belongs to the GPU would end the capture
        try:
            graph.capture_begin(capture_error_mode="thread_local")
            try:
                results = [call() for call in calls]
            finally:
                graph.capture_end()
        finally:
            gc.enable()
        del results
        return graph

    def seconds(self, call: Call) -> float:
        """Approximate seconds of one call; a call before it triggers compilation."""
        call()
        self.stream.synchronize()
        start = time.perf_counter()
        call()
        self.stream.synchronize()
        return time.perf_counter() - start

    def peak_bytes(self, call: Call) -> int | None:
        call()
        self.stream.synchronize()
        torch.cuda.reset_peak_memory_stats(self.device)
        before = torch.cuda.memory_allocated(self.device)
        results = call()
        self.stream.synchronize()
        peak = torch.cuda.max_memory_allocated(self.device) - before
        del results
        return peak
