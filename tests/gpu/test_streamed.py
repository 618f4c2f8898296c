"""Batches decoded into pinned memory reach the GPU whole, while it works, and in the order of a run in memory."""

from pathlib import Path

import pytest
import torch
from PIL import Image

from mixfast.data import Batches, Streamed
from mixfast.data.loader import ImageFiles, Library
from tests.gpu.device import DEVICE

SIZE, COUNT, BATCH = 64, 96, 16
WAIT = 20_000_000  # clock cycles, some 10 ms
pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no GPU")]


@pytest.fixture
def names(tmp_path: Path, rng: torch.Generator) -> list[Path]:
    names = [tmp_path / f"{i}.png" for i in range(COUNT)]
    for name in names:
        Image.fromarray(torch.randint(256, (SIZE, SIZE, 3), generator=rng, dtype=torch.uint8).numpy()).save(name)
    return names


def test_batches_on_the_gpu_equal_those_in_memory(names: list[Path]) -> None:
    """A GPU that lags behind must not find a batch overwritten, by the next batch or in the caching allocator."""
    library = Library(ImageFiles(SIZE), names, 2)
    files = Streamed(library, torch.arange(COUNT)).to(torch.device(DEVICE))
    whole = files[:]
    assert whole.device.type == DEVICE
    ours, theirs = (Batches(images, BATCH, torch.Generator(DEVICE).manual_seed(1)) for images in (files, whole))
    for _ in range(3):
        expected = list(theirs.epoch())
        found = []
        for batch in ours.epoch():
            torch.cuda._sleep(WAIT)
            found.append(batch + 0)
            del batch
        assert all(map(torch.equal, found, expected)) and len(found) == len(expected)
