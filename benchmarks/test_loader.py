"""Photographs from files: decoding one, and batches ahead of a reader.

The pictures are 500 x 375 pixels in JPEGs of some 75 KB, read from the page cache, so that no disk is measured.
"""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from mixfast.data import Streamed, decoder
from mixfast.data.streamed import Library

BATCH = 64
WORKERS = len(os.sched_getaffinity(0))
Measure = Callable[[str, dict[str, Callable[[], object]]], None]


@pytest.fixture(scope="module")
def names(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Smooth colours with the grain of a photograph."""
    random, root = np.random.default_rng(0), tmp_path_factory.mktemp("photographs")
    for number in range(BATCH):
        coarse = Image.fromarray(random.integers(0, 256, (24, 32, 3), dtype=np.uint8))
        smooth = np.asarray(coarse.resize((500, 375), Image.Resampling.BICUBIC))
        grainy = (smooth + random.normal(0, 8, (375, 500, 1))).clip(0, 255).astype(np.uint8)
        Image.fromarray(grainy).save(root / f"{number}.jpg", quality=90)
    return sorted(root.iterdir())


def by_torchvision(name: Path, size: int) -> Tensor:
    from torchvision import io

    pixels = io.decode_jpeg(io.read_file(str(name)), mode=io.ImageReadMode.RGB)
    side = min(pixels.shape[1:])
    top, left = ((length - side) // 2 for length in pixels.shape[1:])
    square = pixels[None, :, top : top + side, left : left + side].contiguous(memory_format=torch.channels_last)
    return F.interpolate(square, (size, size), mode="bilinear", antialias=True)[0]


@pytest.mark.filterwarnings("ignore:The image decoding and encoding capabilities of TorchVision:DeprecationWarning")
@pytest.mark.parametrize("size", [64, 128, 256])
def test_decode(size: int, names: list[Path], smoke: bool, measure: Measure) -> None:
    some = names[: 2 if smoke else 16]

    def each(decode: Callable[[Path, int], Any]) -> Callable[[], object]:
        return lambda: [decode(name, size) for name in some]

    rows = {"mixfast": each(lambda name, size: decoder.decode_file(name, size).transpose(2, 0, 1).copy())}
    pytest.importorskip("torchvision", reason="torchvision is the baseline")
    rows["torchvision decode_jpeg, resized as uint8"] = each(by_torchvision)
    measure(f"{len(some)} JPEGs of 500 x 375 px to {size} px", rows)


class Pictures(torch.utils.data.Dataset):
    """The same pixels for torch's loader."""

    def __init__(self, names: list[Path], size: int):
        self.names, self.size = names, size

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, index: int) -> Tensor:
        return torch.from_numpy(decoder.decode_file(self.names[index], self.size).transpose(2, 0, 1).copy())


def test_batches(names: list[Path], smoke: bool, measure: Measure) -> None:
    """All pictures several times over, by processes that have started before."""
    size, batch, workers = 256, 4 if smoke else 32, 1 if smoke else WORKERS
    index = torch.arange(len(names)).repeat(1 if smoke else 4)[: 2 * batch if smoke else None]
    files = Streamed(Library(names, (len(names),), size, workers, pytest.fail), index)
    loader = torch.utils.data.DataLoader(
        torch.utils.data.Subset(Pictures(names, size), index.tolist()),
        batch_size=batch,
        num_workers=workers,
        persistent_workers=True,
        multiprocessing_context="forkserver",
    )
    assert all(map(torch.equal, files.split(batch), loader))
    rows = {"mixfast": lambda: [None for _ in files.split(batch)], "torch DataLoader": lambda: [None for _ in loader]}
    measure(f"{len(index)} JPEGs of 500 x 375 px to {size} px in batches of {batch}, {workers} processes", rows)
