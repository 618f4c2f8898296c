"""The processes that train one run together: which rows of a batch are whose, and what they tell each other.

Every option means the global batch, whatever the number of processes: W of them compute what one computes, up to the
order of sums. Row n of a batch of B is in batch-norm group n mod S, and mixtures pair it with row B-1-n, whose group is
S-1-(n mod S). A process owns whole groups, and with each group its mirror image. Batch norm by groups, and the
reversal of a batch, are then those of the global batch without a word to another process.

Every draw is made for the global batch by every process, and each takes its own rows of it. With one process all of
this is the identity, and torch.distributed is not used.
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

_STEP = timedelta(minutes=10)  # after which a process that does not take part in a step counts as lost
_WORK = timedelta(days=7)  # the same for what the first process does while the others wait: data, scores, files


class Elsewhere(Exception):
    """Another process has failed and says why; this one has nothing to add."""

    def __init__(self, exit_code: int):
        super().__init__(f"another process has ended with exit code {exit_code}")
        self.exit_code = exit_code


class World:
    """This process among `size` processes; `join` makes one of several."""

    def __init__(self, rank: int = 0, size: int = 1, local_rank: int = 0, local_size: int = 1):
        """
        Args:
            rank, size: which process this is, from 0, of how many.
            local_rank, local_size: the same on this machine.
        """
        self.rank, self.size, self.local_rank, self.local_size = rank, size, local_rank, local_size
        self.groups = 2 * size
        self._host: Any = None  # a group of processes for what lies on the CPU
        self._rows: dict[tuple[int, torch.device], tuple[Tensor, Tensor]] = {}

    def arrange(self, splits: int) -> None:
        """From here on batches have `splits` batch-norm groups. With one group, halves of any pairs are dealt out."""
        self.groups, self._rows = groups_of(splits, self.size), {}

    def rows(self, count: int, device: torch.device | str = "cpu") -> Tensor:
        """int64 [count / size], ascending: the rows of a global batch of `count` that this process owns."""
        return self._own_and_all(count, torch.device(device))[0]

    def _own_and_all(self, count: int, device: torch.device) -> tuple[Tensor, Tensor]:
        """The rows of this process, and those of all, process after process."""
        if (count, device) not in self._rows:
            if count % self.groups:
                raise ConfigError(
                    f"{self.size} processes: {count} rows cannot be dealt out in whole batch-norm groups. They must be "
                    f"a multiple of {self.groups}: change train.batch_size, or the method's option that chooses them."
                )
            groups = torch.arange(self.groups)
            owner = torch.minimum(groups, self.groups - 1 - groups) % self.size
            table = torch.arange(count).view(-1, self.groups)
            owned = [table[:, owner == rank].flatten() for rank in range(self.size)]
            self._rows[count, device] = owned[self.rank].to(device), torch.cat(owned).to(device)
        return self._rows[count, device]

    def own(self, whole: Tensor, dim: int = 0) -> Tensor:
        """The rows of this process in a tensor that has the rows of the global batch along `dim`."""
        return whole if self.size == 1 else whole.index_select(dim, self.rows(whole.shape[dim], whole.device))

    def batch_rows(self, batch: int, parts: int) -> Tensor | None:
        """The rows of this process in a batch that is trained in `parts` micro-batches; None: all."""
        if self.size == 1:
            return None
        starts = torch.arange(parts) * (batch // parts)
        return (starts[:, None] + self.rows(batch // parts)).flatten()

    def ordered(self, rows: Tensor, block: int | None = None) -> Tensor:
        """The rows of all processes in the order of the global batch, without gradient.

        Args:
            rows: [k block, ...] of this process: of k batches, each `block` rows.
            block: None: all rows are of one batch.
        """
        if self.size == 1:
            return rows
        block = len(rows) if block is None else block
        if len(rows) % block:
            raise ConfigError(
                f"{self.size} processes: Step.carry must have a multiple of the {block} rows of a process's "
                f"micro-batch; got {len(rows)}. Train this method with one process."
            )
        found = self._gathered(rows.detach()).unflatten(1, (-1, block)).transpose(0, 1).flatten(1, 2)
        whole = torch.empty_like(found)
        whole[:, self._own_and_all(block * self.size, rows.device)[1]] = found
        return whole.flatten(0, 1)

    def everyone(self, rows: Tensor) -> Tensor:
        """The rows of all processes in the order of the batch, with gradient, for a loss that every process computes.

        The gradient of the own rows is `size` times that of the loss, since gradients are averaged over the processes.
        """
        if self.size == 1:
            return rows
        found: Tensor = _Everyone.apply(rows, self)  # type: ignore[no-untyped-call]
        return found

    def dealt(self, parts: Sequence[Item]) -> list[Item]:
        """Parts rank, rank + size, ... of work that is dealt out; the first once more where there are too few for all.

        So every process has equally many, and knows the shape of a result.
        """
        mine = list(parts[self.rank :: self.size])
        return mine + list(parts[:1]) * (-(-len(parts) // self.size) - len(mine))

    def collected(self, results: Sequence[Tensor], count: int, block: int) -> Tensor:
        """The rows [count, ...] of all parts in order, without gradient, from results of those that `dealt` gave.

        Args:
            results: [block, ...] of each part; the last part may have fewer rows.
            count: of the rows of all parts.
            block: rows of a part.
        """
        if self.size == 1:
            return torch.cat(list(results))
        padded = results[0].new_zeros(len(results), block, *results[0].shape[1:])
        for place, rows in zip(padded, results, strict=True):
            place[: len(rows)] = rows.detach()
        return self._gathered(padded).transpose(0, 1).flatten(0, 2)[:count]

    def permuted(self, rows: Tensor, order: Tensor) -> Tensor:
        """The own rows [B / size, ...] of the global batch in another order, without gradient.

        Only rows that move are sent. The host must know how many go where: it waits for `order`.

        Args:
            rows: [B / size, ...], the own rows of the batch as it is.
            order: int64 [B], the same in all processes: row n of the new batch is row order[n].
        """
        host, count = order.cpu(), len(order)
        owned = self._own_and_all(count, host.device)[1].view(self.size, -1)
        owner, place = torch.empty_like(host), torch.empty_like(host)
        owner[owned] = torch.arange(self.size)[:, None].expand_as(owned)
        place[owned] = torch.arange(owned.shape[1]).expand_as(owned)
        wanted = host[owned]  # by process, the rows that it will have
        leaving = [place[some[owner[some] == self.rank]] for some in wanted]
        coming = [(owner[wanted[self.rank]] == rank).nonzero().flatten() for rank in range(self.size)]
        sent = rows.detach()[torch.cat(leaving).to(rows.device)].contiguous()
        received, found = torch.empty_like(sent), torch.empty_like(sent)
        with named(self):
            torch.distributed.all_to_all_single(
                *(_bytes(received).view(len(rows), -1), _bytes(sent).view(len(rows), -1)),
                *([len(some) for some in coming], [len(some) for some in leaving]),
            )
        found[torch.cat(coming).to(rows.device)] = received
        return found

    def _gathered(self, local: Tensor) -> Tensor:
        """[size, *local.shape]"""
        found = local.new_empty(self.size, *local.shape)
        with named(self):
            torch.distributed.all_gather(list(_bytes(found).view(self.size, -1).unbind()), _bytes(local))
        return found

    def stacked(self, local: Tensor) -> Tensor:
        """The same-shaped tensors of all processes, [size, ...], with gradient: each gets the sum of all processes'."""
        found: Tensor = _Stacked.apply(local, self)  # type: ignore[no-untyped-call]
        return found

    def sum_(self, local: Tensor) -> Tensor:
        """Replace a tensor by the sum of all processes' tensors."""
        with named(self):
            torch.distributed.all_reduce(local)
        return local

    @torch.no_grad()
    def mean_(self, tensors: Sequence[Tensor]) -> None:
        """Replace tensors by their means over the processes, by one exchange."""
        if self.size == 1:
            return
        dtype = reduce(torch.promote_types, [tensor.dtype for tensor in tensors])
        flat = self.sum_(torch.cat([tensor.to(dtype).flatten() for tensor in tensors])).div_(self.size)
        for tensor, piece in zip(tensors, flat.split([tensor.numel() for tensor in tensors]), strict=True):
            tensor.copy_(piece.view(tensor.shape))

    def largest(self, *numbers: int) -> list[int]:
        """The largest of all processes' numbers, by place. They travel through the hosts: no device is waited for."""
        if self.size == 1:
            return list(numbers)
        found = torch.tensor(numbers)
        with named(self):
            torch.distributed.all_reduce(found, torch.distributed.ReduceOp.MAX, group=self._host)
        return found.tolist()

    def first(self, work: Callable[[], Result]) -> Result:
        """What `work` returns in the first process, which does it alone while the others wait.

        Raises:
            Elsewhere: in the other processes, where the work has raised in the first.
        """
        if self.size == 1:
            return work()
        with alone():
            return self._told(work)

    def in_turn(self, work: Callable[[], Result]) -> Result:
        """`work`, in the first process before it begins in the others; Elsewhere there if it raises in the first."""
        if self.size == 1:
            return work()
        if self.rank == 0:
            kept: list[Result] = []
            self._told(lambda: kept.append(work()))
            return kept[0]
        self._told(lambda: None)
        return work()

    def jobs(self, count: int, job: Callable[[int], Result]) -> list[Result]:
        """job(number) for 0 ... count - 1, each done by one process as if it were alone; all get all results.

        Raises:
            Elsewhere: where a job of another process has raised.
        """
        results: dict[int, Result] = {}
        try:
            with alone():
                results = {number: job(number) for number in range(self.rank, count, self.size)}
        except Exception as error:
            self._all_told((getattr(error, "exit_code", 1), {}))
            raise
        found = self._all_told((0, results))
        if code := next((code for code, _ in found if code), 0):
            raise Elsewhere(code)
        return [found[number % self.size][1][number] for number in range(count)]

    def _all_told(self, value: Result) -> list[Result]:
        """The values of all processes."""
        if self.size == 1:
            return [value]
        found: list[Any] = [None] * self.size
        with named(self):
            torch.distributed.all_gather_object(found, pickle.dumps(value), group=self._host)
        return [pickle.loads(other) for other in found]

    def _told(self, work: Callable[[], Result]) -> Result:
        told: list[Any] = [None]
        try:
            if self.rank == 0:
                told = [("returned", work())]
        except BaseException as error:
            self._broadcast([("raised", getattr(error, "exit_code", 1))])
            raise
        kind, value = self._broadcast(told)
        if kind == "raised":
            raise Elsewhere(value)
        result: Result = value
        return result

    def _broadcast(self, told: list[Any]) -> Any:
        with named(self):
            torch.distributed.broadcast_object_list(told, 0, group=self._host)
        return told[0]

    def compare(self, facts: dict[str, Any], error: type[Exception] = ConfigError, advice: str = "") -> None:
        """Raise `error` in the first process, and Elsewhere in the others, unless all processes give equal facts."""
        found = self._all_told(facts)
        for rank, other in enumerate(found):
            for name, value in found[0].items():
                if other.get(name) != value:
                    self.fail(
                        error(
                            f"{name} differs: {value!r:.200} in process 0, {other.get(name)!r:.200} in process "
                            f"{rank} of {self.size}. {advice}".rstrip()
                        )
                    )

    def fail(self, error: Exception) -> None:
        """Raise an error that all processes have: in the first; in the others Elsewhere, so that it is said once."""
        raise error if self.rank == 0 else Elsewhere(getattr(error, "exit_code", 1))


class _Everyone(torch.autograd.Function):
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
    """The memory of a tensor as bytes, which can be gathered whatever the dtype."""
    return tensor.contiguous().flatten().view(torch.uint8)


def groups_of(splits: int, size: int) -> int:
    """Groups of rows that are dealt out to `size` processes: the batch-norm groups, or two for each process."""
    return 2 * size if splits == 1 and size > 1 else splits


def check_sums(tensors: dict[str, Tensor]) -> dict[str, int]:
    """A number for each tensor, the sum of its bits read as whole numbers. Waits for the device once."""
    kinds = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
    sums = [
        tensor.detach().contiguous().flatten().view(kinds[tensor.element_size()]).sum(dtype=torch.int64)
        for tensor in tensors.values()
    ]
    return dict(zip(tensors, torch.stack(sums).tolist() if sums else [], strict=True))


@contextmanager
def named(world: World) -> Iterator[None]:
    """Within the block an error of the exchange becomes one that says which process has lost the others."""
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
    """Within the block this process acts as one that trains by itself."""
    global _current
    kept, _current = _current, World(local_size=_current.local_size)
    try:
        yield
    finally:
        _current = kept


def join(rank: int, size: int, local_rank: int = 0, local_size: int = 1, *, init_method: str = "env://") -> World:
    """Meet the other processes; from here on `current` is the world of `size` processes.

    Args:
        rank, size, local_rank, local_size: as of `World`.
        init_method: where they meet, as torch.distributed.init_process_group has it.
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
    """This process is on its own again; `in_order`: the others leave too, so that connections can be closed."""
    global _current
    if _current.size > 1 and in_order:
        torch.distributed.destroy_process_group()
    _current = World()
