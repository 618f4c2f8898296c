"""python -m benchmarks.processes [--out FILE.json] [--rounds N] [--smoke] [--model]: the cost of several processes.

Compares in turn, on an idle machine of at least two cores: steps of one process with one thread; the same steps of two
processes with one thread each; and steps of two processes that run at the same time but know nothing of each other, on
half a batch each, which is what the machine itself allows. ResNet-18 of width 64, images of 32 pixels, float32. For two
processes it reports the seconds of a step inside each kind of exchange, with the waiting time, and for all the peak
memory of a process.

--model prints instead the table of docs/distributed.md: computed, for many GPUs and a ResNet-50 at 224 pixels.
"""

import argparse
import json
import math
import multiprocessing
import resource
import statistics
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from mixfast import methods, world
from mixfast.config.options import replace
from mixfast.config.presets import build
from mixfast.models import build_encoder
from mixfast.profile.__main__ import SHAPES
from mixfast.profile.measure import prepare
from mixfast.rng import Generators
from mixfast.run import engine, machine
from mixfast.run.gradient_means import BUCKET, GradientMeans
from mixfast.world import World

PROCESSES = multiprocessing.get_context("forkserver")
TINY = {"model.depth": 8, "model.width": 8, "data.size": 16}
CASES = [("moco", 8, 64), ("moco", 8, 128), ("approach1", 8, 64), ("approach1", 8, 128), ("moco", 1, 64)]
EXCHANGES = {
    "begin_mean": "send gradients during the backward pass",
    "finish": "end the exchange of gradients, and reduce statistics",
    "permuted": "exchange shuffled views",
    "ordered": "gather keys",
    "stacked": "batch norm of all rows, forward",
    "sum_": "the same, backward",
    "largest": "agree on signals",
}

# What the table of many GPUs supposes.
IMAGES = 32  # of each process
FLOPS = 100e12  # floating-point operations a second that a device sustains in a step
BANDWIDTH_INSIDE, BANDWIDTH_BETWEEN = (
    300e9,
    50e9,
)  # bytes a second that a device sends inside a machine of 8, and between machines
LATENCY = 30e-6  # seconds that an exchange takes if there is nothing to send


class Stopwatch:
    """Seconds inside the exchanges by name of the method; an exchange inside another counts as the outer one."""

    def __init__(self) -> None:
        self.seconds = dict.fromkeys(EXCHANGES, 0.0)
        self._busy = False
        for name in EXCHANGES:
            owner = GradientMeans if name == "finish" else World
            setattr(owner, name, self._timed(name, getattr(owner, name)))

    def _timed(self, name: str, call: Callable[..., Any]) -> Callable[..., Any]:
        def timed(*args: Any, **options: Any) -> Any:
            if self._busy:
                return call(*args, **options)
            self._busy, started = True, time.perf_counter()
            try:
                return call(*args, **options)
            finally:
                self._busy = False
                self.seconds[name] += time.perf_counter() - started

        return timed


def serve(connection: Any, changes: dict[str, Any], preset: str, rank: int, size: int, meeting: str) -> None:
    """A process of `size`: trains one step for each message, and answers with the seconds it took."""
    torch.set_num_threads(1)
    machine.keep_freed_memory()
    watch = Stopwatch()
    if size > 1:
        world.join(rank, size, rank, size, init_method=f"file://{meeting}")
    config = replace(build(preset, [], None)[0], changes)
    with tempfile.TemporaryDirectory() as folder:
        run = prepare(config, torch.device("cpu"), Path(folder))
        images = run.batches.images[: config.train.batch_size // size]
        while connection.recv():
            watch.seconds = dict.fromkeys(EXCHANGES, 0.0)
            started = time.perf_counter()
            engine.train_step(run, images, check=False)
            engine.pause(run)
            seconds = time.perf_counter() - started
            peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
            connection.send({"seconds": seconds, "exchanges": watch.seconds, "mib": peak})
    world.leave(in_order=True)


class Group:
    """Processes that take a step at the same time when asked: of one run (`joined`), or each of a run of its own."""

    def __init__(self, count: int, joined: bool, changes: dict[str, Any], preset: str, folder: Path):
        self.pipes, self.members = [], []
        for number in range(count):
            parent_end, child_end = PROCESSES.Pipe()
            rank, size = (number, count) if joined else (0, 1)
            arguments = (child_end, changes, preset, rank, size, str(folder / "meeting"))
            self.members.append(PROCESSES.Process(target=serve, args=arguments, daemon=True))
            self.members[-1].start()
            child_end.close()  # so that the end of a process is noticed
            self.pipes.append(parent_end)

    def step(self) -> dict[str, Any]:
        """The answer of the slowest process to a step of all processes."""
        for pipe in self.pipes:
            pipe.send(True)
        return max((pipe.recv() for pipe in self.pipes), key=lambda answer: float(answer["seconds"]))

    def end(self) -> None:
        for pipe in self.pipes:
            pipe.send(False)
        for member in self.members:
            member.join()


def measured(preset: str, splits: int, batch: int, rounds: int, smoke: bool) -> dict[str, Any]:
    """Medians over the rounds, in each of which the groups take turns; the first step of each does not count."""
    changes = {**SHAPES["cifar"], "train.batch_size": batch, "model.bn_splits": splits, "method.queue_size": 4096}
    changes |= TINY if smoke else {}
    half = changes | {"train.batch_size": batch // 2, "model.bn_splits": max(1, splits // 2)}
    with tempfile.TemporaryDirectory() as folder:
        contestants = ((1, False, changes), (2, True, changes), (2, False, half))
        groups = [Group(*contestant, preset, Path(folder)) for contestant in contestants]
        answers: list[list[dict[str, Any]]] = [[] for _ in groups]
        for number in range(rounds + 1):
            for index in (0, 1, 2) if number % 2 else (2, 1, 0):
                answer = groups[index].step()
                if number:
                    answers[index].append(answer)
        for group in groups:
            group.end()
    single, double, apart = (statistics.median(answer["seconds"] for answer in steps) for steps in answers)
    parts = {
        title: 1e3 * statistics.median(answer["exchanges"][name] for answer in answers[1])
        for name, title in EXCHANGES.items()
    }
    return {
        "case": f"{preset}, batch {batch}, bn_splits {splits}",
        "images_per_s": [round(batch / seconds, 1) for seconds in (single, double, apart)],
        "efficiency": round(single / double / 2, 3),
        "efficiency_without_exchanges": round(single / apart / 2, 3),
        "step_ms": [round(1e3 * seconds, 1) for seconds in (single, double, apart)],
        "exchanges_ms": {title: round(value, 2) for title, value in parts.items() if value},
        "mib": [round(max(answer["mib"] for answer in steps)) for steps in answers],
        "seconds": [[round(answer["seconds"], 6) for answer in steps] for steps in answers],
    }


class Traffic(NamedTuple):
    """Bytes that a process sends in a step, by kind of exchange, and the number of exchanges."""

    gradients: float
    views: float
    maps: float
    keys: float
    norms: float
    exchanges: int


class Sizes(NamedTuple):
    """Counts of the parts of a method's step on a ResNet-50."""

    reduced: int  # numbers: gradients and running statistics
    key_sets: int  # batches of shuffled keys
    map_sets: int  # those of them whose maps are read
    queues: int
    trained: int  # passes with gradient
    channels: int  # of all batch norms of the encoder
    norms: int  # batch norms of the encoder
    flops: float  # of an image


def sizes(preset: str) -> Sizes:
    """Counted on the method itself."""
    key_sets, map_sets, queues = {"moco": (1, 0, 1), "approach1": (2, 1, 3)}[preset]
    config = replace(build(preset, [], None)[0], SHAPES["imagenet"])
    generators = Generators(0)
    make_encoder = partial(build_encoder, config.model, generators["weights"])
    method = methods.load(preset)(config.method, make_encoder, generators)
    norms = [norm for norm in method.modules() if isinstance(norm, nn.BatchNorm2d)]
    channels = sum(norm.num_features for norm in norms)
    trainable = sum(weight.numel() for weight in method.parameters() if weight.requires_grad)
    encoder = method.encoder.to("meta").eval()
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        encoder(torch.empty(1, 3, config.data.size, config.data.size, device="meta"))
    flops = counter.get_total_flops() * key_sets * (3 + 1)  # a backward pass costs two forward ones
    # Half of the batch norms are the key encoder's, which has no gradient.
    return Sizes(
        *(trainable + 2 * channels, key_sets, map_sets, queues, key_sets, channels // 2, len(norms) // 2, flops)
    )


def traffic(counts: Sizes, size: int, synced: bool) -> Traffic:
    """The traffic of a step of `size` processes, with batch norm by groups or of all rows (`synced`)."""
    other_count = size - 1
    number, view, cells, dim = 4, 3 * 224**2, 2048 * 7**2, 128
    passes = counts.trained + counts.key_sets
    return Traffic(
        gradients=2 * other_count / size * number * counts.reduced,
        views=counts.key_sets * other_count / size * number * IMAGES * view,
        maps=counts.map_sets * other_count / size * number * IMAGES * cells,
        keys=counts.queues * other_count * number * IMAGES * dim,
        norms=synced * number * 2 * counts.channels * other_count * (passes + 2 * counts.trained),
        exchanges=1
        + math.ceil(counts.reduced / BUCKET)
        + 2 * counts.key_sets
        + counts.map_sets
        + counts.queues
        + synced * counts.norms * (passes + counts.trained),
    )


def table() -> str:
    """The table of many GPUs, as Markdown."""
    lines = [
        "| method, batch norm | processes | compute | gradients | views, maps | keys | batch norms | exchanges "
        "| computed time of exchanges | of it hidden | computed efficiency |",
        "|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for preset in ("moco", "approach1"):
        counts = sizes(preset)
        compute = IMAGES * counts.flops / FLOPS
        for synced in (False, True):
            for size in (8, 64):
                sent = traffic(counts, size, synced)
                kinds = (sent.gradients, sent.views + sent.maps, sent.keys, sent.norms)
                rate = BANDWIDTH_INSIDE if size <= 8 else BANDWIDTH_BETWEEN
                wait = sum(kinds) / rate + sent.exchanges * LATENCY
                # Half of the computation is the backward pass, which all buckets but the last can be sent beside.
                hidden = min(sent.gradients * (1 - BUCKET / counts.reduced) / rate, compute / 2)
                mib = " | ".join(f"{kind / 2**20:.1f} MiB" for kind in kinds)
                lines.append(
                    f"| {preset}, {'of all rows' if synced else 'by groups'} | {size} | {1e3 * compute:.1f} ms | {mib} "
                    f"| {sent.exchanges} | {1e3 * wait:.1f} ms | {1e3 * hidden:.1f} ms "
                    f"| {100 * compute / (compute + wait - hidden):.0f} % |"
                )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.processes", description=__doc__.split("\n\n")[1])
    parser.add_argument("--out", type=Path, default=Path("runs/processes.json"), help="default: %(default)s")
    parser.add_argument("--rounds", type=int, default=4, help="steps of each that count (%(default)s)")
    parser.add_argument("--smoke", action="store_true", help="a tiny network, one round; measures nothing")
    parser.add_argument("--model", action="store_true", help="print the computed table of many GPUs")
    options = parser.parse_args()
    if options.model:
        print(table())
        return
    PROCESSES.set_forkserver_preload(["benchmarks.processes"])
    facts = machine.environment(torch.device("cpu"))
    environment = {key: value for key, value in facts.items() if key not in ("argv", "platform", "backends")}
    rows = []
    for case in CASES[-1:] if options.smoke else CASES:
        rows.append(measured(*case, 1 if options.smoke else options.rounds, options.smoke))
        print(json.dumps({key: value for key, value in rows[-1].items() if key != "seconds"}), flush=True)
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps({"environment": environment, "rows": rows}, indent=1) + "\n")
    print(f"wrote {options.out}")


if __name__ == "__main__":
    main()
