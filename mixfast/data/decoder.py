"""Decode image files; run as a script, it is one of the processes of `pool.Pool`.

Such a process imports NumPy and Pillow and nothing of this package: it starts in a quarter of a second and holds some
30 MiB, where one that imports torch takes seconds and ten times that.

Each image is cut to its central square and resized to the wanted side in one step, which is "resize the shorter side,
then centre-crop" without the intermediate rounding; an image that has the size already keeps its pixels. JPEGs are
decoded at the smallest scale that is still large enough.
"""

import bisect
import json
import mmap
import os
import signal
import socket
import struct
import sys
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

TASK = struct.Struct("<qq")  # the first row and the number of rows to fill
TRIES = 16  # files in a row that cannot be decoded before that counts as an error


class Table(NamedTuple):
    """The names of all files in one piece of memory, which processes share."""

    text: mmap.mmap
    ends: "np.ndarray[Any, np.dtype[np.int64]]"  # where each name ends in `text`
    parts: tuple[int, ...]  # where each part of the files ends: training, test

    def name(self, number: int) -> str:
        """The path of a file."""
        start = self.ends[number - 1] if number else 0
        return os.fsdecode(self.text[start : self.ends[number]])

    def stands_in(self, number: int, tried: int) -> int:
        """The file to take after `tried` failures from `number` on: the next ones of its part, round the end."""
        place = bisect.bisect_right(self.parts, number)
        first = self.parts[place - 1] if place else 0
        return first + (number - first + tried) % (self.parts[place] - first)


class Filled(NamedTuple):
    """What became of some rows."""

    broken: dict[int, str]  # number of a file that cannot be decoded: why
    lost: int | None  # a file for which no other could stand in


def decode_file(path: Any, size: int) -> "np.ndarray[Any, np.dtype[np.uint8]]":
    """uint8 [size, size, 3], RGB, upright; greyscale is repeated and transparency dropped."""
    from PIL import ExifTags, Image, ImageOps

    with Image.open(path) as image:
        if image.mode[0] in "IF":  # conversion would clip, not scale
            raise ValueError(f"mode {image.mode}: more than 8 bits a channel")
        image.draft("RGB", (size, size))
        image.load()
        turned = image.getexif().get(ExifTags.Base.Orientation, 1) != 1
        upright = ImageOps.exif_transpose(image) if turned else image
        upright = upright if upright.mode == "RGB" else upright.convert("RGB")
    width, height = upright.size
    if (width, height) != (size, size):
        side = min(width, height)
        left, top = (width - side) / 2, (height - side) / 2
        square = (left, top, left + side, top + side)
        upright = upright.resize((size, size), Image.Resampling.BILINEAR, box=square, reducing_gap=3.0)
    return np.asarray(upright)


def fill(pixels: "np.ndarray[Any, np.dtype[np.uint8]]", numbers: Sequence[int], table: Table) -> Filled:
    """Write the images of files into uint8 [n, 3, size, size], each broken one replaced by the next that is not."""
    size, broken = pixels.shape[-1], {}
    for row, number in enumerate(numbers):
        for tried in range(TRIES):
            file = table.stands_in(number, tried)
            try:
                pixels[row] = decode_file(table.name(file), size).transpose(2, 0, 1)
                break
            except MemoryError:
                raise
            except Exception as error:  # Pillow raises whatever a broken file leads it to
                broken[file] = f"{type(error).__name__}: {error}"[:200]
        else:
            return Filled(broken, number)
    return Filled(broken, None)


def serve(
    tasks: socket.socket,
    results: socket.socket,
    pixels: "np.ndarray[Any, np.dtype[np.uint8]]",
    numbers: "np.ndarray[Any, np.dtype[np.int64]]",
    table: Table,
) -> None:
    """Fill the rows that tasks name, until nobody holds the other end of `tasks`.

    Args:
        tasks: read together with the other processes; each message reaches one of them.
        results: takes JSON [first row, rows, broken, lost].
        pixels: uint8 [rows, 3, size, size].
        numbers: int64 [rows]: the file that belongs in each row.
        table: the files.
    """
    while message := tasks.recv(TASK.size):
        first, count = TASK.unpack(message)
        rows = slice(first, first + count)
        filled = fill(pixels[rows], numbers[rows].tolist(), table)
        results.send(json.dumps([first, count, *filled]).encode())


def layout(rows: int, size: int) -> tuple[int, int]:
    """Bytes of the pixels of `rows` images, rounded up to whole numbers of 8, and of these with a number per row."""
    pixels = -(-rows * 3 * size**2 // 8) * 8
    return pixels, pixels + rows * 8


def main(words: list[str]) -> None:
    """Serve on inherited descriptors: tasks, results, the batches' memory, the table's; then numbers in JSON."""
    # The process that started this one decides when to stop, and closes `tasks`, or dies, which closes it too.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    given = json.loads(words[0])
    tasks, results = (socket.socket(fileno=given[name]) for name in ("tasks", "results"))
    ring, files = mmap.mmap(given["ring"], 0), mmap.mmap(given["table"], 0, access=mmap.ACCESS_READ)
    rows, size, count = given["rows"], given["size"], given["files"]
    start, _ = layout(rows, size)
    pixels = np.frombuffer(ring, np.uint8, rows * 3 * size**2).reshape(rows, 3, size, size)
    numbers = np.frombuffer(ring, np.int64, rows, start)
    ends = np.frombuffer(files, np.int64, count, len(files) - 8 * count)
    try:
        serve(tasks, results, pixels, numbers, Table(files, ends, tuple(given["parts"])))
    except (BrokenPipeError, ConnectionResetError):  # the other end is gone
        return


if __name__ == "__main__":
    main(sys.argv[1:])
