"""Measures a group: the implementations take turns, each on as many sets of inputs as the conditions ask for."""

import dataclasses
import gc
import math
from collections.abc import Callable
from typing import Any

import torch

from benchmarks.gpu.floors import Rates
from benchmarks.gpu.group import Group, Peer, deviation, tensors
from benchmarks.gpu.timing import COLD, Call, Timer
from benchmarks.interleave import Sampler, interleaved, quantiles

SECONDS, LEAST, MOST = 1.0, 10, 120  # of sampling one implementation; its samples
SMOKE = (0.0, 2, 2)
LONGEST = 0.02  # seconds of a sample, if one call is not longer
INPUTS = 100  # sets at most
HOT = 20  # calls of a sample on the same inputs
SHARE = 8  # the part of the memory that the prepared calls of an implementation may keep is one in so many
Row = dict[str, Any]


class DeviceLost(RuntimeError):
    """The GPU answers no more after an error in a kernel: only a new process can go on."""


def measure(group: Group, timer: Timer, rates: Rates, smoke: bool) -> list[Row]:
    """A row for each implementation: its times, or the reason why it has none."""
    if group.compiles:
        torch._dynamo.reset()
        torch._functorch.config.donated_buffer = False  # the backward pass is repeated alone
    with timer.running():
        rows = timed(group, drawn(group, timer, smoke), timer, smoke)
    return [facts(group, name) | floor(group, rates) | row for name, row in rows.items()]


def drawn(group: Group, timer: Timer, smoke: bool) -> list[Any]:
    """As many sets of inputs as the conditions need; repetitions of one set if the cache may be hot."""
    generator = torch.Generator(timer.device).manual_seed(0)
    inputs = [group.draw(generator)]
    if not group.cold:
        return inputs * (2 if smoke else HOT)
    count = math.ceil(COLD * timer.cache_bytes / sum(tensor.nbytes for tensor in tensors(inputs[0])))
    return inputs + [group.draw(generator) for _ in range(min(count, 2 if smoke else INPUTS) - 1)]


def timed(group: Group, inputs: list[Any], timer: Timer, smoke: bool) -> dict[str, Row]:
    rows: dict[str, Row] = {}
    samplers: dict[str, Sampler] = {}
    truth = attempt(timer, lambda: group.truth(inputs[0]))[0]
    for name, peer in group.peers.items():
        ready, reason = attempt(timer, lambda peer=peer: prepare(group, peer, inputs, timer, truth))
        if ready is None:
            rows[name] = {"reason": reason}
        else:
            samplers[name], rows[name] = ready
    samples = interleaved(samplers, *(SMOKE if smoke else (SECONDS, LEAST, MOST))) if samplers else {}
    for name, times in samples.items():
        low, median, high = (value * 1e6 for value in quantiles(times))
        rows[name] |= {"median_us": median, "p10_us": low, "p90_us": high, "samples": len(times)}
    return rows


def prepare(group: Group, peer: Peer, inputs: list[Any], timer: Timer, truth: Any) -> tuple[Sampler, Row]:
    """The sampler of an implementation, and the entries of its row before the first sample."""
    call = peer.prepare(inputs[0])
    seconds, peak = timer.seconds(call), timer.peak_bytes(call)
    bytes_per_call = timer.peak_bytes(lambda: peer.prepare(inputs[0])()) or 1
    calls = max(1, min(len(inputs), int(LONGEST / seconds), timer.memory_bytes // SHARE // bytes_per_call))
    row: Row = {"calls": calls, "peak_mib": None if peak is None else peak / 2**20}
    if peer.comparable and truth is not None:
        row["deviation"] = deviation(call(), truth)
    ready: list[Call] = [call, *(peer.prepare(data) for data in inputs[1:calls])]
    return timer.sampler(ready, group.graph, group.cold), row


def attempt(timer: Timer, work: Callable[[], Any]) -> tuple[Any, str]:
    """(result, "") or (None, the reason); a failed implementation must not keep the others from being measured."""
    try:
        return work(), ""
    except torch.OutOfMemoryError:
        reason = "out of memory"
    except Exception as error:
        reason = f"{type(error).__name__}: {str(error).strip().splitlines()[0][:300] if str(error).strip() else ''}"
    gc.collect()  # the exception's frames held the tensors
    if timer.device.type == "cuda":
        try:
            torch.cuda.synchronize()
            torch.cuda.empty_cache()
        except RuntimeError as error:
            raise DeviceLost(reason) from error
    return None, reason


def facts(group: Group, name: str) -> Row:
    """The entries of a row that do not depend on a measurement."""
    return {
        "kind": "row",
        "title": group.title,
        "task": group.task,
        "implementation": name,
        "graph": group.graph,
        "cold": group.cold,
        "goal_us": group.goals_us.get(name),
        "facts": dict(group.facts),
    }


def floor(group: Group, rates: Rates) -> Row:
    dtype = group.facts["dtype"]
    least, bound = rates.floor_us(group.work, dtype if dtype in rates.products else "bfloat16")
    return {"floor_us": least, "bound": bound, "work": dataclasses.asdict(group.work)}
