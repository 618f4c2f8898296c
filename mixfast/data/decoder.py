"""Decode an image file to a square of a given side.

The central square of the picture, at whole pixels, is resized in one step by torch's antialiased bilinear filter for
uint8; an image that has the size already keeps its pixels. JPEGs are decoded at the smallest of their own scales (1,
1/2, 1/4, 1/8) that is still large enough.

Pillow decodes. A JPEG that is wanted at its full scale goes through torchvision's decoder where that is installed:
a fifth less time. Both call libjpeg-turbo with the same settings: the pixels are the same.
"""

import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from mixfast.data.scan import printable

_RGB = 3  # torchvision.io.ImageReadMode.RGB
# The formats that Pillow may decode, whatever a file's ending: others start programs (EPS), or are not pictures.
FORMATS = ("BMP", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP")
MOST_PIXELS = 89_478_485  # of an image after the JPEG scale: from here on Pillow warns of a decompression bomb


@contextmanager
def open_image(path: str | Path, size: int) -> Iterator[tuple[IO[bytes], Any, tuple[int, int]]]:
    """Open an image file to be decoded at `size` pixels or more.

    Returns:
        (file, image, full_size): the open file, a `PIL.Image.Image` at the smallest JPEG scale that is large enough,
        and (width, height) of the image in the file.

    Raises:
        OSError: the file cannot be read, or has none of the formats. ValueError: it is not a regular file, or decodes
            to more than MOST_PIXELS. Exception: Pillow raises many types for broken files.
    """
    from PIL import Image, UnidentifiedImageError

    # A pipe or a device in the place of a file would block without O_NONBLOCK.
    handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    with open(handle, "rb") as file:
        if not stat.S_ISREG(os.fstat(handle).st_mode):
            raise ValueError("not a regular file")
        try:
            image = Image.open(file, formats=FORMATS)
        except UnidentifiedImageError:
            raise UnidentifiedImageError(f"none of {', '.join(FORMATS)}, or damaged") from None
        with image:
            full_size = image.size
            image.draft("RGB", (size, size))
            if image.width * image.height > MOST_PIXELS:
                raise ValueError(f"{image.width} x {image.height} pixels; at most {MOST_PIXELS:,} are decoded")
            yield file, image, full_size


def decode_file(path: str | Path, size: int) -> Tensor:
    """uint8 [3, size, size], RGB, upright; greyscale is repeated and transparency dropped.

    Raises:
        Exception: what `open_image` or Pillow raise. ValueError: more than 8 bits a channel.
    """
    with open_image(path, size) as (file, image, full_size):
        at_full_scale = image.format == "JPEG" and image.mode in ("RGB", "L") and image.size == full_size
        if at_full_scale and has_torchvision() and _orientation(image) == 1:
            try:
                file.seek(0)
                data = torch.from_numpy(np.fromfile(file, np.uint8))
                return square(torch.ops.image.decode_jpeg(data, _RGB), size)
            except RuntimeError:  # Pillow raises a clearer error, or can read the file
                file.seek(0)
        return square(pillow_pixels(image), size)


def pillow_pixels(image: Any) -> Tensor:
    """uint8 [3, H, W], RGB, upright, of a `PIL.Image.Image`.

    Raises:
        ValueError: more than 8 bits a channel.
    """
    from PIL import ImageOps

    if image.mode[0] in "IF":  # conversion would clip, not scale
        raise ValueError(f"mode {image.mode}: more than 8 bits a channel")
    image.load()
    upright = ImageOps.exif_transpose(image) if _orientation(image) != 1 else image
    upright = upright if upright.mode == "RGB" else upright.convert("RGB")
    return torch.from_numpy(np.array(upright)).permute(2, 0, 1)


def square(pixels: Tensor, size: int) -> Tensor:
    """The central square of uint8 [3, H, W] as [3, size, size]; of an odd margin the larger half is right or below."""
    height, width = pixels.shape[1:]
    if height == width == size:
        return pixels
    side = min(height, width)
    top, left = (height - side) // 2, (width - side) // 2
    inside = pixels[:, top : top + side, left : left + side]
    if side == size:
        return inside
    return F.interpolate(inside[None], (size, size), mode="bilinear", antialias=True)[0]


def reason(error: Exception) -> str:
    """Why a file cannot be decoded, in a few printable words."""
    return printable(f"{type(error).__name__}: {error}"[:200])


@cache
def has_torchvision() -> bool:
    """Whether torchvision's JPEG decoder can be called.

    Only its library is loaded, 4 MiB in 4 ms; `import torchvision` would take 170 MiB and 2 s in every process.
    """
    spec = find_spec("torchvision")
    for folder in spec.submodule_search_locations or () if spec else ():
        for library in sorted(Path(folder).glob("image*.so")):
            try:
                torch.ops.load_library(str(library))
            except OSError:  # built for another torch
                continue
            return hasattr(torch.ops.image, "decode_jpeg")
    return False


def _orientation(image: Any) -> int:
    from PIL import ExifTags

    return int(image.getexif().get(ExifTags.Base.Orientation, 1))
