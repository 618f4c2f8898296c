"""The processes that train one run together: the rows of a batch that each process owns, and their communication.

Every option is about the global batch, whatever the number of processes: several processes compute what one computes,
up to the order of sums. Row n of a batch of B is in batch-norm group n mod S, and mixtures pair it with row B-1-n,
whose group is S-1-(n mod S). A process owns whole groups, and for each group also the group S-1-s. So batch norm by
groups and the reversal of a batch give the results of the global batch without any communication.

Every process makes all draws for the global batch and takes its own rows of them. With one process every function here
is the identity, and torch.distributed is not used.
"""

import pickle
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from functools import reduce
from typing import Any, TypeVar

import torch
from torch import Tensor

from mixfast.errors import ConfigError, PlatformError

Item = TypeVar("Item")
Result = TypeVar("Result")

_STEP = timedelta(minutes=10)  # in a step, after which a process that does not answer counts as lost
_WORK = timedelta(days=7)  # limit while processes wait for the first one: data, scores, files


class Elsewhere(Exception):
    """Another process has failed and prints the reason; this process ends without a message of its own."""

    def __init__(self, exit_code: int):
        super().__init__(f"another process has ended with exit code {exit_code}")
        self.exit_code = exit_code


class World:
    """This process among `size` processes; `join` makes one of several."""

    def __init__(self, rank: int = 0, size: int = 1, local_rank: int = 0, local_size: int = 1):
        """
        Args:
            rank, size: number of this process, from 0, and the number of processes.
            local_rank, local_size: number of this process, and the number of processes, on this machine.
        """
        self.rank, self.size, self.local_rank, self.local_size = rank, size, local_rank, local_size
        self.groups = 2 * size
        self._host: Any = None  # the process group for CPU tensors and Python objects
        self._rows: dict[tuple[int, torch.device], tuple[Tensor, Tensor]] = {}

    def arrange(self, splits: int) -> None:
        """Set the number of batch-norm groups of a batch. With one group the processes may divide the rows freely."""
        self.groups, self._rows = groups_of(splits, self.size), {}

    def rows(self, count: int, device: torch.device | str = "cpu") -> Tensor:
        """int64 [count / size], ascending: the rows of a global batch of `count` that this process owns."""
        return self._own_and_all(count, torch.device(device))[0]

    def _own_and_all(self, count: int, device: torch.device) -> tuple[Tensor, Tensor]:
        """The rows of this process [count / size], and the rows of all processes [count], process after process."""
        if (count, device) not in self._rows:
            if count % self.groups:
                raise ConfigError(
                    f"{self.size} processes: {count} rows cannot be divided into whole batch-norm groups. Their number "
                    f"must be a multiple of {self.groups}: change train.batch_size, or the method's option that "
                    "selects the rows."
                )
            groups = torch.arange(self.groups)
            owner = torch.minimum(groups, self.groups - 1 - groups) % self.size
            table = torch.arange(count).view(-1, self.groups)
            owned = [table[:, owner == rank].flatten() for rank in range(self.size)]
            self._rows[count, device] = owned[self.rank].to(device), torch.cat(owned).to(device)
        return self._rows[count, device]

    def own(self, batch: Tensor, dim: int = 0) -> Tensor:
        """The rows of this process in a tensor that has the rows of the global batch along `dim`."""
        return batch if self.size == 1 else batch.index_select(dim, self.rows(batch.shape[dim], batch.device))

    def batch_rows(self, batch: int, parts: int) -> Tensor | None:
        """The rows of this process in a batch that is trained in `parts` micro-batches; None if it owns all rows."""
        if self.size == 1:
            return None
        starts = torch.arange(parts) * (batch // parts)
        return (starts[:, None] + self.rows(batch // parts)).flatten()

    def ordered(self, rows: Tensor, block: int | None = None) -> Tensor:
        """Gather the rows of all processes in the order of the global batch, without gradient.

        Args:
            rows: [k block, ...], the rows of this process in k batches, `block` rows of each.
            block: rows per batch; None if all rows are of one batch.
        """
        if self.size == 1:
            return rows
        block = len(rows) if block is None else block
        if len(rows) % block:
            raise ConfigError(
                f"{self.size} processes: Step.carry must have a multiple of the {block} rows of a process's "
                f"micro-batch; got {len(rows)}. Train this method with one process."
            )
        by_process = self._gathered(rows.detach()).unflatten(1, (-1, block)).transpose(0, 1).flatten(1, 2)
        gathered = torch.empty_like(by_process)
        gathered[:, self._own_and_all(block * self.size, rows.device)[1]] = by_process
        return gathered.flatten(0, 1)

    def gather_for_loss(self, rows: Tensor) -> Tensor:
        """Gather the rows of all processes in the order of the global batch, for a loss that every process computes.

        A gradient flows to the own rows. It is `size` times that of the loss, since the gradients of parameters are
        averaged over the processes later.
        """
        if self.size == 1:
            return rows
        gathered: Tensor = _GatheredForLoss.apply(rows, self)  # type: ignore[no-untyped-call]
        return gathered

    def own_parts(self, parts: Sequence[Item]) -> list[Item]:
        """The parts of some work that this process does: numbers rank, rank + size, and so on.

        A process that would have a part fewer also gets the first part: `gather_parts` needs equally many.
        """
        own_parts = list(parts[self.rank :: self.size])
        return own_parts + list(parts[:1]) * (-(-len(parts) // self.size) - len(own_parts))

    def gather_parts(self, results: Sequence[Tensor], count: int, block: int) -> Tensor:
        """Gather the results of the parts of `own_parts`: the rows [count, ...] of all parts, without gradient.

        Args:
            results: [block, ...] for each part of this process; the last of all parts may have fewer rows.
            count: number of rows of all parts together.
            block: rows per part.
        """
        if self.size == 1:
            return torch.cat(list(results))
        padded = results[0].new_zeros(len(results), block, *results[0].shape[1:])
        for target, rows in zip(padded, results, strict=True):
            target[: len(rows)] = rows.detach()
        return self._gathered(padded).transpose(0, 1).flatten(0, 2)[:count]

    def permuted(self, rows: Tensor, order: Tensor) -> Tensor:
        """Reorder the global batch and return the own rows [B / size, ...] of the result, without gradient.

        Each process sends only the rows that another process needs. The host waits for `order`, to know their number.

        Args:
            rows: [B / size, ...], the own rows of the old batch.
            order: int64 [B], the same in all processes: row n of the new batch is row order[n] of the old one.
        """
        order, count = order.cpu(), len(order)
        owned = self._own_and_all(count, order.device)[1].view(self.size, -1)
        owner, position = torch.empty_like(order), torch.empty_like(order)  # of each row: process, index among its rows
        owner[owned] = torch.arange(self.size)[:, None].expand_as(owned)
        position[owned] = torch.arange(owned.shape[1]).expand_as(owned)
        needed = order[owned]  # for each process, the old rows that it will have
        to_send = [position[index[owner[index] == self.rank]] for index in needed]  # by process
        to_receive = [(owner[needed[self.rank]] == rank).nonzero().flatten() for rank in range(self.size)]
        sent = rows.detach()[torch.cat(to_send).to(rows.device)].contiguous()
        received, reordered = torch.empty_like(sent), torch.empty_like(sent)
        with named(self):
            torch.distributed.all_to_all_single(
                *(_bytes(received).view(len(rows), -1), _bytes(sent).view(len(rows), -1)),
                *([len(index) for index in to_receive], [len(index) for index in to_send]),
            )
        reordered[torch.cat(to_receive).to(rows.device)] = received
        return reordered

    def _gathered(self, local: Tensor) -> Tensor:
        """The tensors of all processes, [size, *local.shape], without gradient."""
        gathered = local.new_empty(self.size, *local.shape)
        with named(self):
            torch.distributed.all_gather(list(_bytes(gathered).view(self.size, -1).unbind()), _bytes(local))
        return gathered

    def stacked(self, local: Tensor) -> Tensor:
        """Gather tensors of equal shape from all processes, [size, ...]; their gradients are summed over processes."""
        gathered: Tensor = _Stacked.apply(local, self)  # type: ignore[no-untyped-call]
        return gathered

    def sum_(self, local: Tensor) -> Tensor:
        """Replace a tensor by its sum over all processes, in place, and return it."""
        with named(self):
            torch.distributed.all_reduce(local)
        return local

    def mean_(self, tensors: Sequence[Tensor]) -> None:
        """Replace tensors by their means over the processes, in place, with a single exchange for all of them."""
        self.begin_mean(tensors)()

    @torch.no_grad()
    def begin_mean(self, tensors: Sequence[Tensor]) -> Callable[[], None]:
        """Begin the exchange of `mean_`; the function that is returned ends it and overwrites the tensors."""
        if self.size == 1 or not tensors:
            return lambda: None
        dtype = reduce(torch.promote_types, [tensor.dtype for tensor in tensors])
        flat = torch.cat([tensor.to(dtype).flatten() for tensor in tensors])
        with named(self):
            exchange = torch.distributed.all_reduce(flat, async_op=True)

        @torch.no_grad()
        def end() -> None:
            with named(self):
                exchange.wait()
            pieces = flat.div_(self.size).split([tensor.numel() for tensor in tensors])
            for tensor, piece in zip(tensors, pieces, strict=True):
                tensor.copy_(piece.view(tensor.shape))

        return end

    def largest(self, *numbers: int) -> list[int]:
        """The maximum over all processes of each number. The exchange uses CPU memory and waits for no device."""
        if self.size == 1:
            return list(numbers)
        largest = torch.tensor(numbers)
        with named(self):
            torch.distributed.all_reduce(largest, torch.distributed.ReduceOp.MAX, group=self._host)
        return largest.tolist()

    def first(self, work: Callable[[], Result]) -> Result:
        """Call `work` in the first process while the others wait; all processes return its result.

        Raises:
            Elsewhere: in the other processes, if `work` has raised an error in the first.
        """
        if self.size == 1:
            return work()
        with alone():
            return self._from_first(work)

    def in_turn(self, work: Callable[[], Result]) -> Result:
        """Call `work` in every process, in the first one before the others, and return its result.

        Raises:
            Elsewhere: in the other processes, if `work` has raised an error in the first.
        """
        if self.size == 1:
            return work()
        if self.rank == 0:
            results: list[Result] = []
            self._from_first(lambda: results.append(work()))
            return results[0]
        self._from_first(lambda: None)
        return work()

    def jobs(self, count: int, job: Callable[[int], Result]) -> list[Result]:
        """Call job(0) to job(count - 1), each in one process as in a single one; all processes get all results.

        Raises:
            Elsewhere: a job of another process has raised an error.
        """
        results: dict[int, Result] = {}
        try:
            with alone():
                results = {number: job(number) for number in range(self.rank, count, self.size)}
        except Exception as error:
            self._from_all((getattr(error, "exit_code", 1), {}))
            raise
        outcomes = self._from_all((0, results))
        if code := next((code for code, _ in outcomes if code), 0):
            raise Elsewhere(code)
        return [outcomes[number % self.size][1][number] for number in range(count)]

    def _from_all(self, value: Result) -> list[Result]:
        """The values of all processes, in the order of their ranks."""
        if self.size == 1:
            return [value]
        pickled: list[Any] = [None] * self.size
        with named(self):
            torch.distributed.all_gather_object(pickled, pickle.dumps(value), group=self._host)
        return [pickle.loads(content) for content in pickled]

    def _from_first(self, work: Callable[[], Result]) -> Result:
        """The result of `work`, which the first process calls and sends to the others; after an error they raise
        Elsewhere."""
        message: list[Any] = [None]
        try:
            if self.rank == 0:
                message = [("returned", work())]
        except BaseException as error:
            self._broadcast([("raised", getattr(error, "exit_code", 1))])
            raise
        kind, value = self._broadcast(message)
        if kind == "raised":
            raise Elsewhere(value)
        result: Result = value
        return result

    def _broadcast(self, message: list[Any]) -> Any:
        with named(self):
            torch.distributed.broadcast_object_list(message, 0, group=self._host)
        return message[0]

    def compare(self, facts: dict[str, Any], error: type[Exception] = ConfigError, advice: str = "") -> None:
        """Raise `error` in the first process, and Elsewhere in the others, unless all processes give equal facts."""
        facts_of_all = self._from_all(facts)
        for rank, other_facts in enumerate(facts_of_all):
            for name, value in facts_of_all[0].items():
                if other_facts.get(name) != value:
                    self.fail(
                        error(
                            f"{name} differs: {value!r:.200} in process 0, {other_facts.get(name)!r:.200} in process "
                            f"{rank} of {self.size}. {advice}".rstrip()
                        )
                    )

    def fail(self, error: Exception) -> None:
        """Raise an error that all processes have found; all but the first raise Elsewhere: it is printed once."""
        raise error if self.rank == 0 else Elsewhere(getattr(error, "exit_code", 1))


class _GatheredForLoss(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, rows: Tensor, world: World) -> Tensor:
        ctx.world = world
        return world.ordered(rows)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:  # type: ignore[override]
        return ctx.world.own(gradient) * ctx.world.size, None


class _Stacked(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, local: Tensor, world: World) -> Tensor:
        ctx.world = world
        return world._gathered(local)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:  # type: ignore[override]
        return ctx.world.sum_(gradient.contiguous())[ctx.world.rank], None


def _bytes(tensor: Tensor) -> Tensor:
    """A tensor's memory as uint8: every communication backend can gather bytes, but not every dtype."""
    return tensor.contiguous().flatten().view(torch.uint8)


def groups_of(splits: int, size: int) -> int:
    """Number of groups of rows to be divided among `size` processes: the batch-norm groups, or two per process."""
    return 2 * size if splits == 1 and size > 1 else splits


@contextmanager
def named(world: World) -> Iterator[None]:
    """Within the block, turn an error of torch.distributed into a PlatformError that names this process."""
    try:
        yield
    except RuntimeError as error:
        raise PlatformError(
            f"process {world.rank} of {world.size} lost another process, which ended or does not answer: "
            f"{str(error).splitlines()[0]:.200}. The last checkpoint is intact; the other process may say why."
        ) from error


_current = World()


def current() -> World:
    """The world of this process: one process, until `join`."""
    return _current


@contextmanager
def alone() -> Iterator[None]:
    """Within the block, `current` is a world of this process alone."""
    global _current
    before, _current = _current, World(local_size=_current.local_size)
    try:
        yield
    finally:
        _current = before


def join(rank: int, size: int, local_rank: int = 0, local_size: int = 1, *, init_method: str = "env://") -> World:
    """Connect to the other processes; from then on `current` is the world of `size` processes.

    Args:
        rank, size, local_rank, local_size: as for `World`.
        init_method: the address of the meeting point, as for torch.distributed.init_process_group.
    """
    global _current
    import torch.distributed as dist

    world = World(rank, size, local_rank, local_size)
    with named(world):
        dist.init_process_group(init_method=init_method, rank=rank, world_size=size, timeout=_STEP)
        world._host = dist.new_group(backend="gloo", timeout=_WORK)
    _current = world
    return world


def leave(in_order: bool) -> None:
    """Make `current` a world of one process again; `in_order`: the others leave too, so connections can be closed."""
    global _current
    if _current.size > 1 and in_order:
        torch.distributed.destroy_process_group()
    _current = World()
