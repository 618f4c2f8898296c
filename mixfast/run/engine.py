"""The training loop."""

import time

import torch
from torch import Tensor, nn

from mixfast.run.monitor import end_epoch, record
from mixfast.run.optim import learning_rate, set_learning_rate
from mixfast.run.state import Run
from mixfast.run.tensors import not_finite
from mixfast.spans import span
from mixfast.world import current


def train(run: Run) -> None:
    """Train from where the run stands to its last epoch; evaluate and save on the way.

    Raises:
        Stopped: a signal came; the run is saved.
        NonFiniteError: something is NaN or infinite; the message says whether the weights have moved.
    """
    epochs = run.config.train.epochs
    while True:
        run.check_finite()
        end_epoch(run)
        if checkpoint_due(run):
            run.save()
        run.report()
        if run.epoch == epochs:
            (run.stop.number,) = current().largest(run.stop.number)  # all processes end with the same exit code
            return
        train_epoch(run)
        run.epoch += 1


def train_epoch(run: Run) -> None:
    """Train for the rest of the current epoch."""
    run.clock.skip()
    for images in run.batches.epoch():  # uint8 [B, 3, H, W], this process's rows, on the device
        run.clock.lap("data")
        log_now = (run.step + 1) % run.config.train.log_every == 0 or (run.step + 1) % len(run.batches) == 0
        means = train_step(run, images, check=log_now)
        if log_now:
            record(run)
        if run.callbacks.step:
            run.call(run.callbacks.step, means)
            run.clock.lap("callbacks")
        pause(run)


def train_step(run: Run, images: Tensor, check: bool) -> dict[str, Tensor]:
    """One step at the learning rate of the schedule; arguments and result as in `optimiser_step`."""
    run.rate = learning_rate(run.config.optim, run.epoch, run.config.train.epochs, run.step)
    set_learning_rate(run.optimizer, run.rate)
    means = optimiser_step(run, images, check=check)
    run.meter.add(means)
    run.step += 1
    run.images += current().size * len(images)
    return means


class StateBefore:
    """A copy of everything that the first half of a step changes: generators, and the buffers of the method."""

    def __init__(self, run: Run):
        self.generators = run.generators.state_dict()
        self._buffers = [buffer.clone() for buffer in run.method.buffers()]

    def restore_buffers(self, run: Run) -> None:
        """Set every buffer to its values before the step."""
        for buffer, value in zip(run.method.buffers(), self._buffers, strict=True):
            buffer.copy_(value)


def optimiser_step(run: Run, images: Tensor, check: bool) -> dict[str, Tensor]:
    """Update the weights from uint8 images [B, 3, H, W]; returns the loss and its terms, still on the device."""
    before = StateBefore(run) if check else None
    run.progress.fill_(run.step / run.steps)
    means, carry = run.graphed_or_eager(gradients, images)
    if current().size > 1:
        carry = share(run, means, carry)
    if before:
        check_finite(run, means, images, before)
    run.graphed_or_eager(update, carry)
    return means


def gradients(run: Run, images: Tensor) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """The first half of a step, up to the gradients. Returns the loss with its terms, and the carry for
    `Method.update`.

    With accumulation the gradients of the micro-batches are averaged, all of them read the same queue, and their keys
    are enqueued together after the update, as those of one step. Each micro-batch has its own batch statistics, boxes
    and permutations.
    """
    parts = images.chunk(run.config.train.accumulate)
    carries, values = [], []
    run.method.begin(run.progress)
    for number, part in enumerate(parts, 1):
        views = run.views(part)
        run.clock.lap("augment")
        with run.autocast():
            output = run.method.step(views, run.generators)
        run.clock.lap("forward")
        with run.gradient_means.overlapping(number == len(parts)):
            (output.loss / len(parts)).backward()  # type: ignore[no-untyped-call]
        run.clock.lap("backward")
        carries.append(output.carry)
        values.append({"loss": output.loss.detach(), "total_weight": output.total_weight(), **output.parts})
    means = {name: torch.stack([value[name] for value in values]).mean(dim=0) for name in values[0]}
    return means, {name: torch.cat([carry[name] for carry in carries]) for name in carries[0]}


def share(run: Run, means: dict[str, Tensor], carry: dict[str, Tensor]) -> dict[str, Tensor]:
    """Average gradients, running statistics and `means` over the processes; returns the carry of all processes."""
    norms = [norm for norm in run.method.modules() if isinstance(norm, nn.BatchNorm1d | nn.BatchNorm2d)]
    statistics = [value for norm in norms for value in (norm.running_mean, norm.running_var) if value is not None]
    run.gradient_means.finish([*statistics, *means.values()])
    run.clock.lap("average")
    shared = {name: current().ordered(rows, own_block(run)) for name, rows in carry.items()}
    run.clock.lap("queue")
    return shared


def own_block(run: Run) -> int:
    """Number of rows of a micro-batch that this process has."""
    return run.config.train.batch_size // run.config.train.accumulate // current().size


def update(run: Run, carry: dict[str, Tensor]) -> None:
    """The second half of a step: update the weights, then pass `carry` to the method, which updates its queues."""
    run.optimizer.step()
    run.optimizer.zero_grad(set_to_none=True)
    run.clock.lap("optimizer")
    run.method.update(carry)
    run.clock.lap("queue")


@span("record")
def check_finite(run: Run, values: dict[str, Tensor], images: Tensor, before: StateBefore) -> None:
    """Raise NonFiniteError unless the loss, its terms and all gradients are finite.

    Called at logged steps only, where the host waits for the device anyway. The state before the step is saved with
    the batch, unless an earlier step, which was not checked, has already made it non-finite.
    """
    gradients = {f"gradient of {name}": p.grad for name, p in run.method.named_parameters() if p.grad is not None}
    if not (diverged := not_finite({**values, **gradients})):
        return
    before.restore_buffers(run)
    earlier = run.not_finite()
    images = current().ordered(images, own_block(run))
    state = {} if earlier else {**run.state_dict(), "generators": before.generators, "images": images.cpu()}
    current().fail(run.diverged({**diverged, **earlier}, state))


def checkpoint_due(run: Run) -> bool:
    """Whether to save now: at the start, every `checkpoint_every` epochs, and at the end."""
    interval = run.config.train.checkpoint_every
    return run.epoch in (0, run.config.train.epochs) or bool(interval and run.epoch % interval == 0)


def pause(run: Run) -> None:
    """Between two steps: obey a signal, or save because the last checkpoint is old; all processes do the same."""
    limit = run.config.train.checkpoint_seconds
    overdue = bool(limit) and time.monotonic() - run.saved_at > limit
    signal_number, overdue_anywhere = current().largest(run.stop.number, overdue)
    run.obey(signal_number)
    if overdue_anywhere:
        run.save()
        run.clock.lap("checkpoint")
