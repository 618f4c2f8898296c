"""evaluate replay: repeats the step at which a NaN or an infinity appeared in a run."""

import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import torch
import tyro
from torch import Tensor

from mixfast.errors import CheckpointError, NonFiniteError
from mixfast.run import checkpoint
from mixfast.run.console import Console
from mixfast.run.engine import train_step
from mixfast.run.folder import RunFolder
from mixfast.run.reopen import MachineOptions, set_up_run
from mixfast.run.restore import check_config, check_fields, expect, load_generators
from mixfast.run.setup import Setup
from mixfast.run.signals import StopRequest
from mixfast.run.state import Run, build

NONFINITE = "nonfinite.pt"


@dataclass(frozen=True)
class Replay(MachineOptions):
    """Run the step again at which a run met a NaN or an infinity, and show where it begins."""

    run: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="RUN")]  # folder of the run; it holds nonfinite.pt


def replay(options: Replay) -> None:
    """Print the loss terms of the first bad step, then let autograd name the operation that made the first NaN."""
    folder = RunFolder.open(options.run)
    path = folder.path / NONFINITE
    if not path.is_file():
        raise CheckpointError(f"{path} is not there: this run met no NaN or infinity.")
    state = checkpoint.load(path)
    step, terms = state.get("step"), state.get("terms")
    expect(type(step) is int, path, "step", "a whole number", step)
    expect(isinstance(terms, list) and all(isinstance(term, str) for term in terms), path, "terms", "words", terms)
    setup = set_up_run(options.run, options)
    if "method" in state:
        replay_step(setup, state, path)
    else:
        search(setup, folder, int(str(step)))


def search(setup: Setup, folder: RunFolder, until: int) -> None:
    """Train again from the newest checkpoint, check every step, and replay the first that is not finite.

    Args:
        setup: of the run.
        folder: of the run; nothing in it is changed.
        until: the step after which training found the NaN or infinity.
    """
    file, state = checkpoint.load_newest(folder.path, print)
    with tempfile.TemporaryDirectory() as temporary:
        run = build(setup.config, setup.splits, RunFolder(Path(temporary)), Console(), StopRequest(), setup.device)
        run.restore(state, file)
        print(f"the run noticed at step {until}; checking every step from {run.step} on, the newest checkpoint's")
        try:
            while run.step <= until and run.epoch < setup.config.train.epochs:
                _check_steps(run, until)
        except NonFiniteError:
            path = Path(temporary) / NONFINITE
            if "method" in (nonfinite_state := checkpoint.load(path)):
                replay_step(setup, nonfinite_state, path)
            return
    raise CheckpointError(
        f"{folder.path}: trained again from step {state['step']} to {run.step}, and everything stays finite: this "
        "machine does not repeat the bits of the run; --train.deterministic and the same number of threads would."
    )


def _check_steps(run: Run, until: int) -> None:
    """Train to the end of the epoch, or until step `until`; NonFiniteError at the first step that is not finite."""
    for images in run.batches.epoch():
        largest = max(value.abs().max().item() for value in run.method.parameters())
        train_step(run, images, check=True)
        if diverged := run.not_finite():
            print(f"step {run.step - 1}, epoch {run.epoch}: loss and gradients are finite; not finite after the step:")
            print("\n".join(f"  {name} = {value}" for name, value in list(diverged.items())[:5]))
            print(f"rate of the step: {run.rate:g}; largest weight before it: {largest:.3g}")
            raise run.diverged(diverged, {})
        if run.step > until:
            return
    run.epoch += 1


def replay_step(setup: Setup, state: dict[str, Any], path: Path) -> None:
    """Repeat a step from the state before it."""
    images = state.get("images")
    shape = (setup.config.train.batch_size, *setup.train_images.shape[1:])
    fits = isinstance(images, Tensor) and images.dtype == torch.uint8 and images.shape == shape
    expect(fits, path, "images", f"uint8 {list(shape)}", images)
    assert isinstance(images, Tensor)
    check_fields(state, path)
    check_config(state, setup.config, path)
    setup.load_method(state, path)
    load_generators(setup.generators, state["generators"], path)
    print(f"step {state['step']}, epoch {state['epoch']}: saved because {'; '.join(state['terms'][:5])}")
    for part in images.to(setup.device).chunk(setup.config.train.accumulate):
        views = setup.views(part)
        with torch.autograd.set_detect_anomaly(True), setup.autocast():
            output = setup.method.step(views, setup.generators)
            for name, value in {"loss": output.loss.detach(), **output.parts}.items():
                print(f"  {name:<16} {value.item():.6g}")
            try:
                output.loss.backward()  # type: ignore[no-untyped-call]
            except RuntimeError as error:
                print(f"  first in the backward pass: {error}")
                return
    norms = {n: p.grad.norm().item() for n, p in setup.method.named_parameters() if p.grad is not None}
    for name, value in sorted(norms.items(), key=lambda item: -abs(item[1]))[:5]:
        print(f"  gradient of {name}: norm {value:.6g}")
