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
from PIL import Image

from mixfast.data import Streamed, decoder
from mixfast.data.loader import ImageFiles, Library

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


def by_pillow(name: Path, size: int) -> np.ndarray:
    """Pillow decodes, at the smallest scale that is large enough, and resizes."""
    with Image.open(name) as image:
        image.draft("RGB", (size, size))
        side = min(image.size)
        left, top = ((length - side) // 2 for length in image.size)
        box = (left, top, left + side, top + side)
        return np.asarray(image.resize((size, size), Image.Resampling.BILINEAR, box=box)).transpose(2, 0, 1).copy()


@pytest.mark.parametrize("size", [64, 128, 224])
def test_decode(size: int, names: list[Path], smoke: bool, measure: Measure) -> None:
    chosen = names[: 2 if smoke else 16]

    def each(decode: Callable[[Path, int], Any]) -> Callable[[], object]:
        return lambda: [decode(name, size) for name in chosen]

    rows = {"mixfast": each(decoder.decode_file), "Pillow alone": each(by_pillow)}
    measure(f"{len(chosen)} JPEGs of 500 x 375 px to {size} px", rows)


def test_batches(names: list[Path], smoke: bool, measure: Measure) -> None:
    """All pictures several times over, by workers that have started before, and by this process."""
    size, batch, workers = 224, 4 if smoke else 32, 1 if smoke else WORKERS
    index = torch.arange(len(names)).repeat(1 if smoke else 4)[: 2 * batch if smoke else None]
    paths = [str(name) for name in names]
    ahead, in_process = (Streamed(Library(ImageFiles(size), paths, n), index) for n in (workers, 0))
    assert all(map(torch.equal, ahead.split(batch), in_process.split(batch)))
    rows = {
        "mixfast": lambda: [None for _ in ahead.split(batch)],
        "without workers": lambda: [None for _ in in_process.split(batch)],
    }
    measure(f"{len(index)} JPEGs of 500 x 375 px to {size} px in batches of {batch}, {workers} workers", rows)
