"""Averages gradients over the processes: those of the last layers while the first ones' are still being computed."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager

from torch import Tensor, nn

from mixfast.world import current

BUCKET = 2**21  # numbers of one exchange, 8 MiB in float32: few enough to begin early, enough to make latency small


class GradientMeans:
    """Exchanges the gradients of some parameters by buckets, in an order that is the same in all processes.

    The order is that of the parameters from the last to the first, in which a backward pass reaches most of them. A
    bucket is sent as soon as its gradients and all earlier buckets are ready, and what is left after the pass by
    `finish`. A method may use a parameter several times in a step: its gradient is ready when the last use is added.

    DistributedDataParallel does the same for a module that is called once. It supports neither several passes of an
    encoder in a step nor averaged running statistics, would broadcast the queues at every step, and renames the entries
    of a checkpoint.
    """

    def __init__(self, parameters: Iterable[nn.Parameter]):
        """With one process nothing is exchanged; `current` must be the final world."""
        self._buckets = buckets(parameters) if current().size > 1 else []
        self._missing = [0] * len(self._buckets)  # gradients of a bucket that the backward pass still owes
        self._sent: list[Callable[[], None]] = []  # for each bucket that was sent, its end
        self._overlapping = False
        for number, bucket in enumerate(self._buckets):
            for parameter in bucket:
                parameter.register_post_accumulate_grad_hook(lambda _, number=number: self._ready(number))

    @contextmanager
    def overlapping(self, last: bool) -> Iterator[None]:
        """Around a backward pass: send what it makes ready, if it is the `last` of the step."""
        self._missing = [len(bucket) for bucket in self._buckets]
        self._overlapping = last
        try:
            yield
        finally:
            self._overlapping = False

    def _ready(self, number: int) -> None:
        if self._overlapping:
            self._missing[number] -= 1
            while len(self._sent) < len(self._buckets) and not self._missing[len(self._sent)]:
                self._send()

    def _send(self) -> None:
        """Begin the exchange of the next bucket."""
        bucket = self._buckets[len(self._sent)]
        self._sent.append(current().begin_mean([weight.grad for weight in bucket if weight.grad is not None]))

    def finish(self, others: Sequence[Tensor]) -> None:
        """Replace all gradients, and the tensors `others`, by their means over the processes, in place."""
        while len(self._sent) < len(self._buckets):
            self._send()
        current().mean_(others)
        for end in self._sent:
            end()
        self._sent = []


def buckets(parameters: Iterable[nn.Parameter]) -> list[list[nn.Parameter]]:
    """The trained parameters from the last to the first, in parts of BUCKET numbers or of a single larger parameter."""
    made: list[list[nn.Parameter]] = []
    room = 0
    for parameter in reversed([parameter for parameter in parameters if parameter.requires_grad]):
        if parameter.numel() > room:
            made.append([])
            room = BUCKET
        made[-1].append(parameter)
        room -= parameter.numel()
    return made
