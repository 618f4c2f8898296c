"""python -m benchmarks.scaling [--out FILE.json] [--seconds S] [--smoke]: what a step costs as its sizes grow.

Steps of Approach 1 and of plain PyTorch (benchmarks/plain_steps.py, views ready-made) beside their bare encoder passes,
against the batch, the queue's length and the image's side; and the losses alone against the number of terms. One
thread; MIXFAST_BENCH_BUSY=1 counts processor seconds, for a machine that others use as well.
`python -m benchmarks.profile_page` draws the file.
"""

import argparse
import json
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from benchmarks import infonce
from benchmarks.interleave import BUSY, interleaved, looped, quantiles
from benchmarks.plain_steps import PlainStep
from mixfast.config.options import replace
from mixfast.config.presets import build
from mixfast.profile.__main__ import SHAPES
from mixfast.profile.measure import bare_encoder, prepare
from mixfast.run import engine, machine
from mixfast.run.budget import step_cost

FIXED = {**SHAPES["small"], "train.batch_size": 32, "method.queue_size": 4096}
SWEEPS: dict[str, tuple[str, list[int]]] = {
    "batch": ("train.batch_size", [16, 32, 64, 128, 256]),
    "K": ("method.queue_size", [1024, 4096, 16384, 65536]),
    "H = W": ("data.size", [16, 32, 64, 128]),
}
TERMS = [1, 2, 4, 8, 16]
LEAST, MOST = 5, 60  # samples
SHORTEST = 2e-3  # seconds of one


def sampled(runs: dict[str, Callable[[], object]], seconds: float) -> dict[str, float]:
    """Seconds by implementation: the lowest tenth of samples taken in turn."""
    samplers = {name: looped(run, SHORTEST)[0] for name, run in runs.items()}
    samples = interleaved(samplers, seconds, LEAST, MOST)
    return {name: quantiles(values)[0] for name, values in samples.items()}


def steps(changes: dict[str, Any], seconds: float) -> dict[str, float]:
    config = replace(build("approach1", [], None)[0], {**FIXED, **changes})
    with tempfile.TemporaryDirectory() as folder:
        run = prepare(config, torch.device("cpu"), Path(folder))
        images = run.batches.images[: config.train.batch_size]
        runs: dict[str, Callable[[], object]] = {
            "bare encoder": bare_encoder(run, step_cost(config, side=16)),
            "mixfast": lambda: engine.optimiser_step(run, images, check=False),
            "plain PyTorch": PlainStep(run, images),
        }
        return sampled(runs, seconds)


def losses(terms: int, seconds: float) -> dict[str, float]:
    """Forward and backward of that many terms on one queue, B = 64, K = 4096, D = 128."""
    data = infonce.inputs(infonce.Case((0,) * terms, 64, 4096), generator=torch.Generator().manual_seed(0))
    runs = {
        "matrix products": lambda: infonce.products(data),
        "mixfast": infonce.with_gradients(infonce.by_mixfast("cpu"), data),
        "plain PyTorch": infonce.with_gradients(infonce.eager, data),
    }
    return sampled(runs, seconds)


def points(seconds: float, smoke: bool) -> list[dict[str, Any]]:
    result = []
    for sweep, (key, values) in SWEEPS.items():
        for value in values[:1] if smoke else values:
            small = {"train.batch_size": 8, "model.depth": 8, "model.width": 8} if smoke else {}
            result.append({"sweep": sweep, "x": value, "seconds": steps({**small, key: value}, seconds)})
    for terms in TERMS[:1] if smoke else TERMS:
        result.append({"sweep": "terms", "x": terms, "seconds": losses(terms, seconds)})
    return result


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.scaling", description=__doc__.split("\n\n")[1])
    parser.add_argument("--out", type=Path, default=Path("runs/scaling.json"), help="default: %(default)s")
    parser.add_argument("--seconds", type=float, default=4.0, help="of sampling a point of a curve (%(default)s)")
    parser.add_argument("--smoke", action="store_true", help="one tiny point of each curve; measures nothing")
    options = parser.parse_args()
    torch.set_num_threads(1)
    machine.keep_freed_memory()
    facts = machine.environment(torch.device("cpu"))
    environment = {key: value for key, value in facts.items() if key not in ("argv", "platform", "backends")}
    environment["clock"] = "processor" if BUSY else "wall"
    measured = points(0.0 if options.smoke else options.seconds, options.smoke)
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps({"environment": environment, "points": measured}, indent=1) + "\n")
    print(f"wrote {options.out}")


if __name__ == "__main__":
    main()
