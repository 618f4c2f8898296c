"""The speed of the machine, measured in the same run, and a lower bound of a call's time that follows from it."""

import statistics
from dataclasses import dataclass

import torch

from benchmarks.gpu.timing import Call, Timer

SAMPLES, WARM_UP = 30, 50
DTYPES = (torch.bfloat16, torch.float16)


@dataclass(frozen=True)
class Work:
    """What a call cannot do without."""

    bytes: int  # read and written, each once
    products: float = 0.0  # floating-point operations of matrix products, on 16-bit operands


@dataclass(frozen=True)
class Rates:
    copy: float  # bytes/s, counting bytes read and bytes written
    products: dict[str, float]  # operations/s of a large matrix product of random numbers, by dtype
    launch_us: float  # of a kernel that does next to nothing, inside a graph

    def floor_us(self, work: Work, dtype: str = "bfloat16") -> tuple[float, str]:
        """The least time, and what bounds it."""
        copy, products = work.bytes / self.copy * 1e6, work.products / self.products[dtype] * 1e6
        return (copy, "copy") if copy >= products else (products, "products")


def measured(timer: Timer, smoke: bool) -> Rates:
    """Half a second on a GPU, which is then at its working clocks."""
    side, elements = (64, 1 << 12) if smoke else (8192, 1 << 29)
    products = {str(dtype).removeprefix("torch."): _products(timer, side, dtype) for dtype in DTYPES}
    one = torch.ones(1, device=timer.device)
    sampler = timer.sampler([lambda: one.add_(1)] * 100, graph=True, cold=False)
    return Rates(_copy(timer, elements), products, statistics.median(sampler() for _ in range(SAMPLES)) * 1e6)


def _copy(timer: Timer, elements: int) -> float:
    source = torch.ones(elements, dtype=torch.int32, device=timer.device)
    target = torch.empty_like(source)
    return 2 * source.nbytes / _median(timer, lambda: target.copy_(source))


def _products(timer: Timer, side: int, dtype: torch.dtype) -> float:
    a, b = (torch.randn(side, side, device=timer.device, dtype=dtype) for _ in range(2))
    return 2 * side**3 / _median(timer, lambda: torch.mm(a, b))


def _median(timer: Timer, call: Call) -> float:
    sampler = timer.sampler([call], graph=False, cold=False)
    for _ in range(WARM_UP):
        sampler()
    return statistics.median(sampler() for _ in range(SAMPLES))
