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
    stop: Callable[[], object] = lambda: None,
) -> Features:
    """Features of every image by `encoder` in evaluation mode; its mode is restored afterwards.

    Args:
        encoder: returns an object with fields `z` [n, D] and `h` [n, C].
        images: [N, 3, H, W] uint8, in memory or in files.
        normalise: turns a uint8 batch into the encoder's float input, without augmentation.
        batch_size: images per forward pass.
        stop: called before every batch, as often in all processes; an exception in it ends the extraction.

    Raises:
        NonFiniteError: a feature is NaN or infinite, so that no score of it would mean anything.
    """

    def features(batch: Tensor) -> tuple[Tensor, Tensor]:
        stop()
        out = encoder(normalise(batch))
        return out.z.float(), out.h.float()

    with evaluation_mode(encoder):
        found = Features(*by_batches(images, batch_size, features))
    for name, rows in found._asdict().items():
        if bad := int((~rows.isfinite().all(dim=1)).sum()):
            current().fail(
                NonFiniteError(
                    f"{name} of {bad} of {len(rows)} images holds a NaN or an infinity: the network has diverged. "
                    "Score an earlier checkpoint, or train with a lower --optim.lr."
                )
            )
    return found


def by_batches(images: Images, batch_size: int, work: Callable[[Tensor], tuple[Tensor, ...]]) -> tuple[Tensor, ...]:
    """Call `work` on all images, batch by batch, and concatenate its results in order.

    Several processes share the batches, and each calls `work` equally often. The batches do not depend on the number of
    processes.

    Args:
        images: [N, 3, H, W] uint8, in memory or in files.
        batch_size: images per call.
        work: takes uint8 [n, 3, H, W] and returns tensors [n, ...].
    """
    here, parts = current(), torch.arange(len(images)).split(batch_size)
    results = [work(batch) for batch in read(images, here.dealt(parts))]
    return tuple(here.collected(rows, len(images), batch_size) for rows in zip(*results, strict=True))


@contextmanager
def evaluation_mode(module: nn.Module) -> Iterator[None]:
    """`module.eval()` for the block; every submodule gets its own mode back."""
    modes = [(part, part.training) for part in module.modules()]
    module.eval()
    try:
        yield
    finally:
        for part, training in modes:
            part.training = training
