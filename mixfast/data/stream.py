"""Batches of images on the training device, in an order that follows from a generator."""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from mixfast.data.streamed import Images, read


class Batches:
    """Endless epochs over N images: a new permutation for each, full batches only.

    `epoch()` yields the rest of the current epoch. The position is part of the state: loaded into another object, it
    continues with the very next batch, whether that lies inside an epoch or not.
    """

    def __init__(self, images: Images, batch_size: int, generator: torch.Generator, rows: Tensor | None = None):
        """
        Args:
            images: [N, ...], on any device, or in files.
            batch_size: at most N; the last N mod batch_size images of each permutation are omitted.
            generator: draws the permutations, on its own device; nothing else may draw from it.
            rows: int64, the positions in a batch that this process reads, of several; None: all.
        """
        if not 1 <= batch_size <= len(images):
            raise ValueError(
                f"Batches: batch_size must be from 1 to the number of images, {len(images)}; got {batch_size}. "
                "Use a smaller batch or more images."
            )
        self.images = images
        self.batch_size = batch_size
        self.generator = generator
        self._next = 0  # batch of the current epoch
        self._order: Tensor | None = None  # of the current epoch; None between epochs
        self._home = images.device if isinstance(images, Tensor) else "cpu"  # files are looked up by the host
        self._rows = slice(None) if rows is None else rows.to(self._home)

    def __len__(self) -> int:
        """Batches in an epoch."""
        return len(self.images) // self.batch_size

    def epoch(self) -> Iterator[Tensor]:
        """Yield the batches [batch_size, ...], or their `rows`, that the current epoch still has, then stop."""
        return self._counted(read(self.images, self._rest()))

    def epoch_indices(self) -> Iterator[Tensor]:
        """Yield the batches of `epoch` as int64 [batch_size] indices, on the device of images in memory."""
        return self._counted(iter(self._rest()))

    def _rest(self) -> list[Tensor]:
        """The indices of the batches that the current epoch still has."""
        if self._order is None:
            order = torch.randperm(len(self.images), generator=self.generator, device=self.generator.device)
            self._order = order.to(self._home)
        starts = range(self._next * self.batch_size, len(self) * self.batch_size, self.batch_size)
        return [self._order[start : start + self.batch_size][self._rows] for start in starts]

    def _counted(self, batches: Iterator[Tensor]) -> Iterator[Tensor]:
        for batch in batches:
            # counted before it is yielded: a state saved while the batch is in use continues with the next one
            self._next += 1
            yield batch
        self._order, self._next = None, 0

    def state_dict(self) -> dict[str, Any]:
        """Position and permutation; the generator is checkpointed by its owner."""
        return {
            "next": self._next,
            "order": None if self._order is None else self._order.cpu(),
            "images": len(self.images),
            "batch_size": self.batch_size,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue at the position of a state of `state_dict`.

        Raises:
            ValueError: the state belongs to another number of images or another batch size.
        """
        for name, expected in (("images", len(self.images)), ("batch_size", self.batch_size)):
            if state[name] != expected:
                raise ValueError(f"Batches: the saved position is for {name} = {state[name]}, this run has {expected}.")
        self._next = state["next"]
        self._order = None if state["order"] is None else state["order"].to(self._home)
