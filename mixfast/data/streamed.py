"""Images that stay in their files, and are decoded when they are asked for."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from mixfast.data import decoder
from mixfast.data.pool import Files, Pool

_AT_ONCE = 16  # images that one thread decodes before it takes more


class Library:
    """The files of a data set, with the processes that decode them."""

    def __init__(
        self, names: Sequence[str | Path], parts: Sequence[int], size: int, workers: int, say: Callable[[str], None]
    ):
        """
        Args:
            names: of all files.
            parts: how many of them are training images, how many are test images.
            size: side of the decoded squares in pixels.
            workers: processes; 0 decodes in this one, without anything ahead of time.
            say: prints a line.
        """
        self.files, self.size, self.workers = Files(names, parts, say), size, workers
        self.images_per_s: float | None = None  # what the processes reach alone, once that was measured
        self._idle: Pool | None = None

    def decode(self, numbers: "np.ndarray") -> Tensor:
        """uint8 [n, 3, size, size] of the files with these numbers, by threads of this process: for a few of them."""
        images = torch.empty(len(numbers), 3, self.size, self.size, dtype=torch.uint8)
        pixels, starts = images.numpy(), range(0, len(numbers), _AT_ONCE)

        def fill(start: int) -> decoder.Filled:
            rows = slice(start, start + _AT_ONCE)
            return decoder.fill(pixels[rows], numbers[rows].tolist(), self.files.table)

        with ThreadPoolExecutor(max(1, self.workers)) as threads:
            for filled in threads.map(fill, starts):
                self.files.report(*filled)
        return images

    def batches(self, parts: "Sequence[np.ndarray]", device: torch.device) -> Iterator[Tensor]:
        """uint8 [n, 3, size, size] on `device` for the numbers of each part, in order, decoded ahead of time.

        The processes of a reader that came to its end serve the next one.
        """
        if self.workers == 0 or not parts:
            for part in parts:
                yield self.decode(part).to(device)
            return
        rows = max(len(part) for part in parts)
        pool, self._idle = self._idle, None
        if pool is not None and (pool.rows < rows or pool.device != device):
            pool.close()
            pool = None
        if pool is None:
            pool = Pool(self.files, self.size, rows, self.workers, device)
        try:
            yield from pool.batches(parts)
        except BaseException:  # what it was asked for would arrive in between
            pool.close()
            raise
        if self._idle is not None:
            self._idle.close()
        self._idle = pool


class Streamed:
    """Images in files, read as a uint8 tensor [N, 3, S, S] is: by slices, by int64 indices, or split into batches.

    A file that cannot be decoded is replaced by the next one that can; in memory such files are left out.
    """

    def __init__(self, library: Library, numbers: Tensor, device: torch.device | None = None):
        """
        Args:
            library: the files.
            numbers: int64 [N], the file of each image.
            device: where images that are read go; None: the CPU.
        """
        self.library, self.numbers = library, numbers
        self.device = device or torch.device("cpu")

    @property
    def shape(self) -> torch.Size:
        """[N, 3, S, S]"""
        return torch.Size((len(self.numbers), 3, self.library.size, self.library.size))

    @property
    def nbytes(self) -> int:
        """Bytes of the images in memory: none."""
        return 0

    def __len__(self) -> int:
        return len(self.numbers)

    def __getitem__(self, index: slice | Tensor) -> Tensor:
        """The images at `index` in memory, without batches ahead: for a few of them."""
        return self.library.decode(self._numbers(index)).to(self.device)

    def to(self, device: torch.device) -> "Streamed":
        """The same images, read to another device."""
        return Streamed(self.library, self.numbers, torch.device(device))

    def take(self, index: slice | Tensor) -> "Streamed":
        """The images at `index`, still in their files."""
        return Streamed(self.library, self.numbers[index.cpu() if isinstance(index, Tensor) else index], self.device)

    def read(self, parts: Iterable[Tensor]) -> Iterator[Tensor]:
        """The images of each index int64 [n], in order; while one is used, the next ones are decoded."""
        return self.library.batches([self._numbers(part) for part in parts], self.device)

    def split(self, batch_size: int) -> Iterator[Tensor]:
        """All images in batches, as `Tensor.split` gives them."""
        return self.read(torch.arange(len(self)).split(batch_size) if len(self) else ())

    def _numbers(self, index: slice | Tensor) -> "np.ndarray":
        return self.take(index).numbers.numpy()


# uint8 [N, 3, H, W]: a tensor, or images in files that are read when they are asked for.
Images = Tensor | Streamed


def read(images: Images, parts: Iterable[Tensor]) -> Iterator[Tensor]:
    """The images of each index int64 [n], in order, from memory or from files."""
    return (images[part] for part in parts) if isinstance(images, Tensor) else images.read(parts)


def take(images: Images, index: slice | Tensor) -> Images:
    """The images at `index`: those in memory as a tensor, the others still in their files."""
    return images[index] if isinstance(images, Tensor) else images.take(index)
