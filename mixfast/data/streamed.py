"""Images that stay in their files, and are decoded when they are asked for."""

from collections.abc import Iterable, Iterator

import torch
from torch import Tensor

from mixfast.data.loader import Library


class Streamed:
    """Images in files, read as a uint8 tensor [N, 3, S, S] is: by slices, by int64 indices, or split into batches.

    A file that cannot be decoded when its image is asked for is a DataError that names it.
    """

    def __init__(self, library: Library, numbers: Tensor, device: torch.device | None = None):
        """
        Args:
            library: where the images come from.
            numbers: int64 [N], of the library's images.
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
        """The images at `index` in memory."""
        return next(self.library.read([self.take(index).numbers], self.device))

    def to(self, device: torch.device) -> "Streamed":
        """A copy whose images are read to another device."""
        return Streamed(self.library, self.numbers, torch.device(device))

    def take(self, index: slice | Tensor) -> "Streamed":
        """The images at `index`, a slice or int64 [n], still in their files."""
        return Streamed(self.library, self.numbers[index.cpu() if isinstance(index, Tensor) else index], self.device)

    def read(self, parts: Iterable[Tensor]) -> Iterator[Tensor]:
        """The images of each of `parts`, indices int64 [n], in order; the next ones are decoded in advance."""
        return self.library.read([self.numbers[part.cpu()] for part in parts], self.device)

    def split(self, batch_size: int) -> Iterator[Tensor]:
        """All images in batches of `batch_size`, as `Tensor.split` gives them."""
        return self.read(torch.arange(len(self)).split(batch_size) if len(self) else ())


# uint8 [N, 3, H, W]: a tensor, or images in files that are read when they are asked for.
Images = Tensor | Streamed


def read(images: Images, parts: Iterable[Tensor]) -> Iterator[Tensor]:
    """The images of each of `parts`, indices int64 [n], in order, from memory or from files."""
    return (images[part] for part in parts) if isinstance(images, Tensor) else images.read(parts)


def take(images: Images, index: slice | Tensor) -> Images:
    """The images at `index`, a slice or int64 [n]: a tensor if `images` are in memory, else still in their files."""
    return images[index] if isinstance(images, Tensor) else images.take(index)
