"""The training loop."""

import time
from typing import Any

import torch
from torch import Tensor

from mixfast.errors import NonFiniteError
from mixfast.run.monitor import end_epoch, record
from mixfast.run.optim import learning_rate, set_learning_rate
from mixfast.run.state import Run
from mixfast.spans import span


def train(run: Run) -> None:
    """Train from where the run stands to its last epoch; evaluate and save on the way.

    Raises:
        Stopped: a signal came; the run is saved.
        NonFiniteError: a loss or gradient is NaN or infinite; the weights have not moved.
    """
    epochs = run.config.train.epochs
    while True:
        end_epoch(run)
        if checkpoint_due(run):
            run.save()
        if run.epoch == epochs:
            return
        train_epoch(run)
        run.epoch += 1


def train_epoch(run: Run) -> None:
    """Train for the rest of the current epoch."""
    run.clock.skip()
    for images in run.batches.epoch():  # uint8 [B, 3, H, W], already on the device
        run.clock.lap("data")
        run.rate = learning_rate(run.config.optim, run.epoch, run.config.train.epochs, run.step)
        set_learning_rate(run.optimizer, run.rate)
        log_now = (run.step + 1) % run.config.train.log_every == 0 or (run.step + 1) % len(run.batches) == 0
        run.meter.add(optimiser_step(run, images, check=log_now))
        run.step += 1
        run.images += len(images)
        if log_now:
            record(run)
        pause(run)


def optimiser_step(run: Run, images: Tensor, check: bool) -> dict[str, Tensor]:
    """Update the weights from uint8 images [B, 3, H, W]; returns the loss and its terms, still on the device."""
    before = run.generators.state_dict() if check else {}
    run.progress.fill_(run.step / run.steps)
    means, carry = run.graphed_or_eager(gradients, images)
    if check:
        check_finite(run, means, images, before)
    run.graphed_or_eager(update, carry)
    return means


def gradients(run: Run, images: Tensor) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """The first half of a step, up to the gradients. Returns the loss with its terms, and what `Method.update` takes.

    With accumulation the gradients of the micro-batches are averaged, all of them read the same queue, and their keys
    are enqueued together after the update: to the queue it is one step. Batch statistics, boxes and permutations are
    each micro-batch's own.
    """
    parts = images.chunk(run.config.train.accumulate)
    carries, values = [], []
    run.method.begin(run.progress)
    for part in parts:
        views = run.views(part)
        run.clock.lap("augment")
        with run.autocast():
            out = run.method.step(views, run.generators)
        run.clock.lap("forward")
        (out.loss / len(parts)).backward()  # type: ignore[no-untyped-call]
        run.clock.lap("backward")
        carries.append(out.carry)
        values.append({"loss": out.loss.detach(), "total_weight": out.total_weight(), **out.parts})
    means = {name: torch.stack([value[name] for value in values]).mean(dim=0) for name in values[0]}
    return means, {name: torch.cat([carry[name] for carry in carries]) for name in carries[0]}


def update(run: Run, carry: dict[str, Tensor]) -> None:
    """The second half of a step: move the weights, then hand `carry` to the method, whose queues move."""
    run.optimizer.step()
    run.optimizer.zero_grad(set_to_none=True)
    run.clock.lap("optimizer")
    run.method.update(carry)
    run.clock.lap("queue")


@span("record")
def check_finite(run: Run, values: dict[str, Any], images: Tensor, generators: dict[str, Tensor]) -> None:
    """Raise NonFiniteError, with the batch saved, unless the loss, its terms and all gradients are finite.

    Looks once, at the steps that are logged, where the host waits anyway; `generators` are the states before the
    batch's views were drawn.
    """
    gradients = {name: p.grad for name, p in run.method.named_parameters() if p.grad is not None}
    norms = torch._foreach_norm(list(gradients.values()))  # type: ignore[attr-defined]
    numbers = torch.stack([*values.values(), *norms]).float()
    finite = numbers.isfinite().tolist()
    names = [*values, *(f"gradient of {name}" for name in gradients)]
    bad = [f"{name} = {number}" for name, number, ok in zip(names, numbers.tolist(), finite, strict=True) if not ok]
    if not bad:
        return
    path = run.folder.path / "nonfinite.pt"
    state = {"images": images.cpu(), "terms": bad, **run.state_dict(), "generators": generators}
    torch.save(state, path)
    raise NonFiniteError(
        f"step {run.step} (epoch {run.epoch}), precision {run.precision}: {'; '.join(bad[:5])}.\n"
        f"The weights have not moved; batch and state are in {path}.\n"
        f"Replay it with `python -m mixfast.evaluate replay {run.folder.path}`; a lower --optim.lr or "
        f"--train.precision fp32 often helps."
    )


def checkpoint_due(run: Run) -> bool:
    """Whether to save now: at the start, so that a kill is never fatal, every `checkpoint_every` epochs, at the end."""
    every = run.config.train.checkpoint_every
    return run.epoch in (0, run.config.train.epochs) or bool(every and run.epoch % every == 0)


def pause(run: Run) -> None:
    """Between two steps: obey a signal, or save because the last checkpoint is old."""
    run.obey_signal()
    limit = run.config.train.checkpoint_seconds
    if limit and time.monotonic() - run.saved_at > limit:
        run.save()
        run.clock.lap("checkpoint")
