"""Measures the steps of a run by part, alternately with the bare encoder passes that a step contains."""

import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mixfast.config.options import RunConfig, replace
from mixfast.data import ImageSet, Splits, kind_of
from mixfast.models import Encoder
from mixfast.models.encoder import KEY, QUERY
from mixfast.profile.memory import Peaks, held_bytes
from mixfast.run import engine, machine
from mixfast.run.budget import StepCost, step_cost
from mixfast.run.clock import Clock
from mixfast.run.console import Console
from mixfast.run.folder import RunFolder
from mixfast.run.graph import WARM_UP
from mixfast.run.signals import StopRequest
from mixfast.run.state import Run, build
from mixfast.scoring.features import extract
from mixfast.scoring.knn import knn_predict
from mixfast.spans import recording

BACKWARD, RECORD = "backward", "record"  # parts by the names that the loop gives them
# The order of parts in tables, roughly that of a step; parts with other names come last.
ORDER = (
    *("data", "augment", "mix", QUERY, KEY, "shuffle", "pooling", "heads", "losses", "other", BACKWARD),
    *("optimizer", "EMA", "queue", "logging"),
)
STEPS = 1  # of an epoch, and thus of a round
MIN_ROUNDS = 4
PROBE_QUERIES = 1024  # queries of the measured nearest-neighbour search
Parts = dict[str, float]


@dataclass(frozen=True)
class Timing:
    """Seconds per optimiser step: the lower quartile of the rounds, as other processes can only add time."""

    step: Parts  # by part, without a CUDA graph
    floor: Parts  # of the bare encoder passes
    graphed: float | None  # of the whole step as a CUDA graph; None if the run has none
    cost: StepCost  # number of encoder passes
    ratios: tuple[float, ...]  # step over floor of each round

    @property
    def seconds(self) -> float:
        """Seconds of a step as it is trained."""
        return sum(self.step.values()) if self.graphed is None else self.graphed

    @property
    def ratio(self) -> float:
        """Time of the step over that of the encoder passes alone."""
        return self.seconds / sum(self.floor.values())


class Ledger(Clock):
    """A clock that stores the times of all its records.

    Args:
        device: where the steps run.
        busy: on a CPU, count processor time of this process, not wall time: for a machine with other processes.
    """

    def __init__(self, device: torch.device, busy: bool = False):
        self._busy = busy and device.type == "cpu"
        super().__init__(device)
        self._total: dict[str, float] = {}

    def _now(self) -> Any:
        return time.process_time() if self._busy else super()._now()

    def seconds(self) -> dict[str, float]:
        parts = super().seconds()
        for name, value in parts.items():
            self._total[name] = self._total.get(name, 0.0) + value
        return parts

    def drain(self) -> dict[str, float]:
        """Seconds by part since the last call of this method."""
        self.seconds()
        parts, self._total = self._total, {}
        return parts


@contextmanager
def measured(run: Run, clock: Clock) -> Iterator[None]:
    """Within the block, measure the run's laps and the spans inside them by `clock`."""
    before, run.clock = run.clock, clock
    try:
        with recording(clock.inside):
            yield
    finally:
        run.clock = before


class Silent(Console):
    """A console that prints nothing."""

    def line(self, text: str = "") -> None: ...


def prepare(config: RunConfig[Any], device: torch.device, folder: Path) -> Run:
    """A run on `STEPS` batches of noise with learning rate 0, so that weights do not change; it writes to `folder`."""
    config = replace(config, {"optim.lr": 0.0, "train.checkpoint_seconds": 0.0})
    count, side = STEPS * config.train.batch_size, config.data.size
    noise = torch.randint(256, (count, 3, side, side), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    images = ImageSet(noise, torch.zeros(count, dtype=torch.int64), ("noise",))
    splits = Splits(images, images, (0.5, 0.5, 0.5), (0.25, 0.25, 0.25), "noise")
    return build(config, splits, RunFolder(folder), Silent(), StopRequest(), device)


def bare_encoder(run: Run, cost: StepCost) -> Callable[[], None]:
    """A function that runs only the encoder passes of a step, with ready inputs and random gradients of the embeddings.

    It uses the run's own networks, in its precision and memory format.
    """
    encoders = [module for module in run.method.modules() if isinstance(module, Encoder)]
    encoder, follower = encoders[0], encoders[-1]
    batch, micro = run.config.train.batch_size, run.config.train.accumulate
    inputs = run.normalise(run.batches.images[:batch]).chunk(micro)
    gradient = torch.randn(batch // micro, encoder.dim, device=run.device)

    def passes() -> None:
        for images in inputs:
            with run.autocast():
                with torch.no_grad():
                    for _ in range(cost.forward_only):
                        follower(images)
                embeddings = [encoder(images).z for _ in range(cost.trained)]
            torch.autograd.backward(embeddings, [gradient.to(z.dtype) for z in embeddings])
            run.optimizer.zero_grad(set_to_none=True)
            run.clock.lap(BACKWARD)

    return passes


def time_run(run: Run, seconds: float, busy: bool = False) -> Timing:
    """Time epochs of the run and bare encoder passes alternately, for about `seconds` after a first call of each.

    A run with a CUDA graph is timed twice: call by call, which shows the parts, and as the graph.

    Args:
        run: from `prepare`.
        seconds: duration of the measurement.
        busy: count processor time, as in `Ledger`.
    """
    cost, graph = step_cost(run.config, side=min(32, run.config.data.size)), run.graph
    passes, clock = bare_encoder(run, cost), Ledger(run.device, busy)

    def bare() -> None:
        with measured(run, clock):
            clock.skip()
            for _ in range(STEPS):
                passes()

    def eager() -> None:
        run.graph = None
        with measured(run, clock):
            engine.train_epoch(run)

    def graphed() -> None:
        run.graph, run.clock = graph, clock
        engine.train_epoch(run)

    kinds = [bare, eager, *([graphed] if graph is not None else [])]
    rounds: dict[Callable[[], None], list[Parts]] = {kind: [] for kind in kinds}
    for kind in (*kinds, *([graphed] * WARM_UP if graph is not None else [])):
        kind()
    clock.drain()
    end = time.monotonic() + seconds
    while len(rounds[bare]) < MIN_ROUNDS or time.monotonic() < end:
        for kind in kinds if len(rounds[bare]) % 2 else reversed(kinds):
            kind()
            rounds[kind].append({name: value / STEPS for name, value in clock.drain().items()})
    steps = [per_step(parts, run.config.train.log_every) for parts in rounds[eager]]
    graphed_steps = [sum(parts.values()) for parts in rounds.get(graphed, [])]
    return summary(steps, rounds[bare], graphed_steps, cost)


def per_step(parts: Parts, log_every: int) -> Parts:
    """Parts in the order of ORDER. The record at the end of each short epoch here counts at its share in a training."""
    seconds = {"other" if name == "forward" else name: value for name, value in parts.items()}
    seconds["logging"] = seconds.get("logging", 0.0) + seconds.pop(RECORD, 0.0) * STEPS / log_every
    return {name: seconds[name] for name in sorted(seconds, key=order_of)}


def order_of(part: str) -> int:
    """Position of a part in tables and pictures."""
    return ORDER.index(part) if part in ORDER else len(ORDER)


def summary(steps: list[Parts], floors: list[Parts], graphed: list[float], cost: StepCost) -> Timing:
    """The `Timing` of rounds: of steps and bare passes by part, and of whole steps as a graph, if there is one."""
    step_seconds = graphed or [sum(parts.values()) for parts in steps]
    ratios = tuple(step / sum(floor.values()) for step, floor in zip(step_seconds, floors, strict=True))
    return Timing(quartiles(steps), quartiles(floors), quartile(graphed) if graphed else None, cost, ratios)


def quartile(values: list[float]) -> float:
    """The lower quartile of at least two values."""
    return statistics.quantiles(values, n=4, method="inclusive")[0]


def quartiles(rounds: list[Parts]) -> Parts:
    """The lower quartile of each part over the rounds; a part that a round lacks took no time there."""
    names = sorted({name for parts in rounds for name in parts}, key=order_of)
    return {name: quartile([parts.get(name, 0.0) for parts in rounds]) for name in names}


def peak_bytes(run: Run) -> tuple[int, dict[str, int]]:
    """(bytes allocated between steps, by part of a step the peak above them)."""
    machine.return_freed_memory()
    graph, run.graph = run.graph, None  # a graph keeps its memory all the time
    images = run.batches.images[: run.config.train.batch_size]
    for _ in range(2):
        engine.optimiser_step(run, images, check=False)  # allocates the optimiser's state and the libraries' buffers
    peaks = Peaks(run.device)
    base = held_bytes(run.device)
    with measured(run, peaks):
        peaks.skip()
        engine.optimiser_step(run, images, check=False)
    run.graph = graph
    parts = {"other" if name == "forward" else name: peak - base for name, peak in peaks.bytes().items()}
    return base, {name: parts[name] for name in sorted(parts, key=order_of)}


def data_sizes(config: RunConfig[Any]) -> tuple[int, int] | None:
    """Numbers of training and test images of a configuration's data set; None if they depend on its files."""
    data = config.data
    return (data.scenes, data.test_scenes) if data.kind == "scenes" else kind_of(data.kind).counts


def evaluation_seconds(run: Run, busy: bool = False) -> float | None:
    """Seconds of a weighted kNN evaluation on a data set of the run's size; None if that is unknown.

    Extrapolated from a few images: time for features is proportional to the images, for neighbours to the queries.
    """
    sizes = data_sizes(run.config)
    if sizes is None:
        return None
    bank, queries = sizes
    options, encoder, images = run.config.eval, run.method.encoder, run.batches.images
    clock = Ledger(run.device, busy)
    widths = [rows.shape[1] for rows in extract(encoder, images, run.normalise, options.batch_size)]  # the first call
    clock.skip()
    extract(encoder, images, run.normalise, options.batch_size)
    clock.lap("features")
    labels = torch.arange(bank, device=run.device) % 10
    for width in widths:
        points: Tensor = torch.randn(bank + PROBE_QUERIES, width, device=run.device)
        clock.skip()
        knn_predict(points[bank:], points[:bank], labels, k=min(options.k, bank), temperature=options.temperature)
        clock.lap("neighbours")
    parts = clock.drain()
    return parts["features"] * (bank + queries) / len(images) + parts["neighbours"] * queries / PROBE_QUERIES
