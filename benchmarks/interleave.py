"""Samples of several implementations taken in turn, so that a machine that slows down for a while slows down all."""

import os
import statistics
import time
from collections.abc import Callable, Mapping

Sampler = Callable[[], float]  # takes one sample, returns seconds for one call
# Whether to count processor seconds of this process, all threads together: on a shared machine wall time says little.
BUSY = bool(os.environ.get("MIXFAST_BENCH_BUSY"))
clock = time.process_time if BUSY else time.perf_counter


def interleaved(samplers: Mapping[str, Sampler], seconds: float, least: int, most: int) -> dict[str, list[float]]:
    """The samples of each implementation, in rounds of one sample each; every other round runs backwards.

    Args:
        samplers: by implementation.
        seconds: for the samples of one implementation. A slow one gets fewer samples, spread over all rounds.
        least, most: smallest and largest number of samples of an implementation.
    """
    costs = {}
    for name, sample in samplers.items():
        start = time.perf_counter()
        sample()
        costs[name] = time.perf_counter() - start
    counts = {name: max(least, min(most, int(seconds / max(cost, 1e-9)))) for name, cost in costs.items()}
    rounds = max(counts.values())
    samples: dict[str, list[float]] = {name: [] for name in samplers}
    for number in range(rounds):
        names = list(samplers) if number % 2 == 0 else list(reversed(samplers))
        for name in names:
            if (number + 1) * counts[name] // rounds > number * counts[name] // rounds:
                samples[name].append(samplers[name]())
    return samples


def quantiles(samples: list[float]) -> tuple[float, float, float]:
    """10 %, median, 90 %."""
    if len(samples) == 1:
        return samples[0], samples[0], samples[0]
    tenths = statistics.quantiles(samples, n=10, method="inclusive")
    return tenths[0], statistics.median(samples), tenths[8]


def looped(run: Callable[[], object], shortest: float) -> tuple[Sampler, int]:
    """A sampler by the clock `now`, of as many calls as last `shortest` seconds; and that number of calls."""
    start = clock()
    run()
    calls = max(1, int(shortest / max(clock() - start, 1e-9)))

    def sample() -> float:
        start = clock()
        for _ in range(calls):
            run()
        return (clock() - start) / calls

    return sample, calls
