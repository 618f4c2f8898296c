"""Features of a whole image set, in evaluation mode."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import NamedTuple

import torch
from torch import Tensor, nn

from mixfast.data import Images, read
from mixfast.errors import NonFiniteError
from mixfast.world import current


class Features(NamedTuple):
    """Features of N images, float32: z [N, D], the head's output, and h [N, C], pooled features of the backbone."""

    z: Tensor
    h: Tensor


@torch.no_grad()
def extract(
    encoder: nn.Module,
    images: Images,
    normalise: Callable[[Tensor], Tensor],
    batch_size: int = 512,
    before_batch: Callable[[], object] = lambda: None,
) -> Features:
    """Features of every image by `encoder` in evaluation mode; its mode is restored afterwards.

    Args:
        encoder: returns an object with fields `z` [n, D] and `h` [n, C].
        images: [N, 3, H, W] uint8, in memory or in files.
        normalise: turns a uint8 batch into the encoder's float input, without augmentation.
        batch_size: images per forward pass.
        before_batch: called before every batch, equally often in all processes; an exception in it ends the extraction.

    Raises:
        NonFiniteError: a feature is NaN or infinite.
    """

    def features(batch: Tensor) -> tuple[Tensor, Tensor]:
        before_batch()
        encoding = encoder(normalise(batch))
        return encoding.z.float(), encoding.h.float()

    with evaluation_mode(encoder):
        result = Features(*by_batches(images, batch_size, features))
    for name, rows in result._asdict().items():
        if count := int((~rows.isfinite().all(dim=1)).sum()):
            current().fail(
                NonFiniteError(
                    f"{name} of {count} of {len(rows)} images holds a NaN or an infinity: the network has diverged. "
                    "Score an earlier checkpoint, or train with a lower --optim.lr."
                )
            )
    return result


def by_batches(images: Images, batch_size: int, work: Callable[[Tensor], tuple[Tensor, ...]]) -> tuple[Tensor, ...]:
    """Call `work` on all images, batch by batch, and concatenate its results in order.

    Several processes divide the batches among them, and each calls `work` equally often. The batches are the same for
    any number of processes.

    Args:
        images: [N, 3, H, W] uint8, in memory or in files.
        batch_size: images per call.
        work: takes uint8 [n, 3, H, W] and returns tensors [n, ...].
    """
    world, parts = current(), torch.arange(len(images)).split(batch_size)
    results = [work(batch) for batch in read(images, world.own_parts(parts))]
    return tuple(world.gather_parts(rows, len(images), batch_size) for rows in zip(*results, strict=True))


@contextmanager
def evaluation_mode(module: nn.Module) -> Iterator[None]:
    """`module.eval()` for the block; the mode of every submodule is restored."""
    modes = [(part, part.training) for part in module.modules()]
    module.eval()
    try:
        yield
    finally:
        for part, training in modes:
            part.training = training
