"""The losses of lightly and solo-learn under their names, by `multi_queue_infonce` and `nt_xent`.

The formulas are derived from the papers (MoCo, He et al. 2020; SimCLR, Chen et al. 2020) and checked against the
results of the two libraries, without any of their code.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mixfast.ops import _dispatch, infonce, multi_queue_infonce, nt_xent


class MemoryBank(nn.Module):
    """The last K keys of a loss, a ring [K, D] that moves as lightly's memory bank does but is saved with the module.

    Buffers: `bank` [K, D], unit rows, random directions at first (from PyTorch's global generator, as lightly draws
    them); `bank_ptr` [1] int64, the row that is written next. Nothing waits for the device.

    Args:
        size: K, at least 1.
        dim: D.
    """

    bank: Tensor
    bank_ptr: Tensor

    def __init__(self, size: int, dim: int):
        super().__init__()
        self.register_buffer("bank", F.normalize(torch.randn(size, dim), dim=1))
        self.register_buffer("bank_ptr", torch.zeros(1, dtype=torch.int64))

    @property
    def negatives(self) -> Tensor:
        """The bank as [D, K], the layout in which solo-learn's losses take a queue: a view, not a copy."""
        return self.bank.T

    @torch.no_grad()
    def push_(self, keys: Tensor) -> None:
        """Overwrite the oldest rows by `keys` [N, D], in place; keys beyond the end of the ring are dropped, as lightly
        does, and the next call begins at row 0."""
        rows, last = torch.arange(len(keys), device=self.bank.device), len(self.bank) - 1
        rows = torch.minimum(rows, last - self.bank_ptr)  # a dropped key's row writes the last key once more
        self.bank.index_copy_(0, self.bank_ptr + rows, keys.to(self.bank.dtype)[rows])
        following = self.bank_ptr + len(keys)
        self.bank_ptr.copy_(torch.where(following > last, 0, following))


class NTXentLoss(nn.Module):
    """lightly's `NTXentLoss` (1.6): MoCo's loss against a memory bank, or SimCLR's within the batch without one.

    loss = NTXentLoss(...)(out0, out1) with out0, out1 [N, D] of any lengths: they are normalised here. With a bank out0
    are the queries and out1 the keys, which enter the bank after the loss if out0 requires a gradient. The N x K logits
    never exist. The bank moves to the device of out0 and is not copied there. It is part of `state_dict()`, which
    lightly's is not: to load a file that lightly's loss has written, pass strict=False.

    Args:
        temperature: tau, positive.
        memory_bank_size: (K, D), or 0 for the loss within the batch.
        gather_distributed: must be False: rows of other processes are not gathered.

    Raises:
        ValueError: an argument outside its range, or as `multi_queue_infonce` and `nt_xent` raise it.
        NotImplementedError: gather_distributed.
    """

    memory_bank: MemoryBank | None

    def __init__(
        self, temperature: float = 0.5, memory_bank_size: int | Sequence[int] = 0, gather_distributed: bool = False
    ):
        super().__init__()
        if not temperature >= 1e-8:
            raise ValueError(f"NTXentLoss: temperature must be at least 1e-8; got {temperature!r}.")
        if gather_distributed:
            raise NotImplementedError(
                "NTXentLoss: gather_distributed=True is not supported. In one process False is the same; in several "
                "keep lightly's loss."
            )
        self.temperature = temperature
        self.memory_bank = None if memory_bank_size in (0, (0,), [0]) else MemoryBank(*_bank_size(memory_bank_size))

    def forward(self, out0: Tensor, out1: Tensor) -> Tensor:
        """The loss of two views, out0 and out1 [N, D]: a scalar in float32, or in float64 for float64 input."""
        out0, out1 = F.normalize(out0, dim=1), F.normalize(out1, dim=1)
        if self.memory_bank is None:
            return nt_xent(out0, out1, temperature=self.temperature)
        bank = self.memory_bank.to(out0.device).bank  # users rarely move a criterion to the device
        facts = out0.device.type, out0.dtype, bank.dtype, _dispatch.constant_dim(out0.shape[-1])
        if out0.requires_grad and _dispatch.choose(infonce.NAME, "auto", *facts) == "reference":
            bank = bank.clone()  # the backward pass reads it after the new keys have entered the bank
        (loss,) = multi_queue_infonce([out0], [out1], [bank], [0], temperature=self.temperature)
        if out0.requires_grad:
            self.memory_bank.push_(out1)
        return loss


def _bank_size(size: int | Sequence[int]) -> tuple[int, int]:
    if isinstance(size, int) or len(size) != 2 or min(size) < 1:
        raise ValueError(f"NTXentLoss: memory_bank_size must be (K, D), both positive, or 0 for no bank; got {size!r}.")
    return size[0], size[1]


def mocov2plus_loss_func(query: Tensor, key: Tensor, queue: Tensor, temperature: float = 0.1) -> Tensor:
    """solo-learn's `mocov2plus_loss_func` (`moco_loss_func` in its releases): MoCo's loss of one view.

    Args:
        query: [N, D], unit rows, as solo-learn passes them.
        key: [N, D], unit rows; row n is the positive of query n.
        queue: [D, K], unit columns, without gradient; read in place on a CPU and by "cuda". A transposed [K, D] (the
            `negatives` of a `MemoryBank`, or torch.randn(K, D).T) is read faster.
        temperature: tau, positive.

    Returns:
        A scalar, the mean over the rows, differentiable in query and key.
    """
    (loss,) = multi_queue_infonce([query], [key], [queue.T], [0], temperature=temperature)
    return loss


def simclr_loss_func(z: Tensor, indexes: Tensor, temperature: float = 0.1) -> Tensor:
    """solo-learn's `simclr_loss_func`, of two views in one process.

    Args:
        z: [2N, D], the first view of N images, then the second in the same order; normalised here.
        indexes: [2N] int64, the image of each row: two equal halves without repeats. To check that, their values are
            read, for which a GPU waits.
        temperature: tau, positive.

    Returns:
        A scalar, the mean over the 2N rows.

    Raises:
        ValueError: other indexes, such as those of more views, of labels, or of an image that is in the batch twice.
        NotImplementedError: several processes, whose rows solo-learn gathers.
    """
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        world = torch.distributed.get_world_size()
        if world > 1:
            raise NotImplementedError(
                f"simclr_loss_func: rows of other processes are not gathered, and there are {world} processes. Keep "
                "solo-learn's function."
            )
    if indexes.shape != (len(z),) or len(z) % 2:
        raise ValueError(
            f"simclr_loss_func: z must be [2N, D] and indexes [2N]; got {list(z.shape)} and {list(indexes.shape)}."
        )
    first, second = indexes.chunk(2)
    if not torch.equal(first, second) or len(first.unique()) < len(first):
        raise ValueError(
            "simclr_loss_func: indexes must be those of two views, [i, i] with no i twice; got others. More than two "
            "views, labels, and repeated images have another loss: keep solo-learn's function."
        )
    return nt_xent(*F.normalize(z, dim=1).chunk(2), temperature=temperature)
