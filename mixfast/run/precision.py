"""The precision of a run's training passes: as asked for, or chosen for the machine where the run starts."""

import dataclasses
import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from typing import Any, NamedTuple

import torch
from torch import Tensor

from mixfast.config.options import RunConfig
from mixfast.models import Encoder, build_encoder
from mixfast.run import machine
from mixfast.world import current

UNITS = ("avx512_bf16", "amx_bf16")  # that multiply in bf16, by their names in torch.cpu.get_capabilities()
GAIN = 1.15  # times as fast as fp32 that bf16 must be to be chosen
SECONDS = 1.6  # of measuring
MOST_ROUNDS = 16  # of a small network, whose times are soon known


class PassSeconds(NamedTuple):
    """Seconds of an encoder's forward and backward pass on a number of images, in both precisions."""

    images: int
    fp32: float
    bf16: float


def autocast(device: torch.device, precision: str) -> AbstractContextManager[Any]:
    """The precision of forward passes on `device`: fp32 or bf16."""
    # No cache: a weight cast for the keys, without gradient, would be reused for the queries.
    return torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16", cache_enabled=False)


def pick_precision(wanted: str, device: torch.device) -> str:
    """fp32 or bf16, without measuring: auto is bf16 on GPUs from Ampere on, and fp32 elsewhere."""
    if wanted != "auto":
        return wanted
    return "bf16" if device.type == "cuda" and torch.cuda.get_device_capability(device) >= (8, 0) else "fp32"


def choose(config: RunConfig[Any], device: torch.device) -> tuple[str, str]:
    """fp32 or bf16 for a run that leaves it to the machine, and a phrase that says why.

    On a CPU it may be measured; of several processes the first decides for all.
    """
    here = current()
    if device.type == "cuda":
        return here.first(lambda: (pick_precision("auto", device), "auto: bf16 on GPUs from Ampere on"))
    if config.train.deterministic:
        return "fp32", "auto: --train.deterministic depends on no measurement"
    return here.first(lambda: choose_on_cpu(torch.cpu.get_capabilities(), lambda: time_passes(config, here.size)))


def choose_on_cpu(capabilities: Mapping[str, Any], measure: Callable[[], PassSeconds]) -> tuple[str, str]:
    """bf16 on a processor that multiplies in it, where `measure` finds it `GAIN` times as fast; else fp32. And why.

    Args:
        capabilities: of the processor, as torch.cpu.get_capabilities() names them.
        measure: called only for a processor with one of `UNITS`.
    """
    if not any(capabilities.get(unit) for unit in UNITS):
        return "fp32", "auto: the processor has neither AVX512-BF16 nor AMX"
    images, fp32, bf16 = measure()
    times = f"{1e3 * fp32:.1f} ms in fp32, {1e3 * bf16:.1f} ms in bf16"
    why = f"auto: the encoder takes {times}, forward and backward, for {images} images"
    return ("bf16" if fp32 >= GAIN * bf16 else "fp32"), why


def time_passes(config: RunConfig[Any], processes: int = 1) -> PassSeconds:
    """Least times of passes in both precisions in turn, by an encoder like the run's, on the CPU.

    The encoder, its statistics and its images are made for this, from a generator of their own: training has the same
    bits afterwards. Takes `SECONDS`, or two passes where these take longer.

    Args:
        config: of the run. The passes have the images of a micro-batch, or fewer where time does not suffice for all.
        processes: among which a batch, and its groups of batch norm, are divided; the passes are those of one.
    """
    train, side, generator = config.train, config.data.size, torch.Generator().manual_seed(config.seed)
    splits, most = max(1, config.model.bn_splits // processes), train.batch_size // train.accumulate // processes
    layout = machine.pick_memory_format(train.memory_format)

    def draw(count: int) -> Tensor:
        return torch.randn(count, 3, side, side, generator=generator).contiguous(memory_format=layout)

    count, end = min(2 * splits, most), time.perf_counter() + SECONDS
    with torch.random.fork_rng(devices=[]):  # a backbone from elsewhere may draw from torch's own generator
        encoder = build_encoder(dataclasses.replace(config.model, bn_splits=splits), generator).train()
        encoder.to(memory_format=layout)  # type: ignore[call-overload]
        images, rounds = draw(count), list[list[float]]()
        while not rounds or (len(rounds) < MOST_ROUNDS and time.perf_counter() + sum(rounds[-1]) < end):
            rounds.append([_seconds(encoder, images, precision) for precision in ("fp32", "bf16")])
            if count < most and 8 * sum(rounds[-1]) < SECONDS:  # twice the images leave time for some rounds
                count, rounds = min(2 * count, most), []
                images = draw(count)
    return PassSeconds(count, *map(min, zip(*rounds, strict=True)))


def _seconds(encoder: Encoder, images: Tensor, precision: str) -> float:
    encoder.zero_grad(set_to_none=True)
    start = time.perf_counter()
    with autocast(images.device, precision):
        z = encoder(images).z
    z.float().sum().backward()  # type: ignore[no-untyped-call]
    return time.perf_counter() - start
