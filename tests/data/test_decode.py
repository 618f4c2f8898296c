"""Decoding: pixels, formats, broken files, progress, memory."""

import os
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from mixfast.data import DataConfig, decode, decoder
from mixfast.data.decoder import decode_file
from mixfast.data.scan import scan
from mixfast.errors import DataError


def noise(height: int, width: int, channels: int = 3) -> np.ndarray:
    values = np.random.default_rng(height * width).integers(0, 256, (height, width, channels), dtype=np.uint8)
    return values[..., 0] if channels == 1 else values


def decoded(path: Path, size: int) -> np.ndarray:
    """uint8 [size, size, 3]."""
    return decode_file(path, size).permute(1, 2, 0).numpy()


def put(root: Path, count: int = 6) -> list[Path]:
    """PNG files of noise, all different."""
    paths = [root / f"{i:02}.png" for i in range(count)]
    for i, path in enumerate(paths):
        Image.fromarray(np.roll(noise(8, 8), i, axis=0)).save(path)
    return paths


def config(size: int = 8, workers: int | None = 0) -> DataConfig:
    return DataConfig(kind="folder", size=size, workers=workers, cache=False)


class Said(list[str]):
    __call__ = list.append


def test_pixels_of_the_right_size_are_kept(tmp_path) -> None:
    Image.fromarray(noise(8, 8)).save(tmp_path / "x.png")
    assert np.array_equal(decoded(tmp_path / "x.png", 8), noise(8, 8))


@pytest.mark.parametrize("size", [(20, 31), (31, 20), (8, 24), (5, 7)], ids=str)
def test_shorter_side_is_resized_then_centre_cropped(size, tmp_path) -> None:
    """The central square at whole pixels, by Pillow's own antialiased resize: in fixed point too, rounded otherwise."""
    height, width = size
    Image.fromarray(noise(height, width)).save(tmp_path / "x.png")
    side = min(size)
    top, left = (height - side) // 2, (width - side) // 2
    picture = Image.fromarray(noise(height, width)[top : top + side, left : left + side])
    expected = np.asarray(picture.resize((8, 8), Image.Resampling.BILINEAR)).astype(int)
    assert np.abs(decoded(tmp_path / "x.png", 8) - expected).max() <= 1


@pytest.mark.parametrize("progressive", [False, True])
@pytest.mark.parametrize("mode", ["RGB 4:4:4", "RGB 4:2:2", "RGB 4:2:0", "L"])
def test_torchvision_and_pillow_decode_to_the_same_bits(mode, progressive, tmp_path, monkeypatch) -> None:
    """At full scale, where torchvision decodes, and at smaller ones, where Pillow does."""
    if not decoder.has_torchvision():
        pytest.skip("torchvision decodes")
    colours, _, chroma = mode.partition(" ")
    picture = Image.fromarray(noise(20, 15)).resize((57, 75), Image.Resampling.BICUBIC).convert(colours)
    options = {"subsampling": chroma} if chroma else {}
    picture.save(tmp_path / "x.jpg", quality=85, progressive=progressive, **options)
    with_torchvision = {size: decode_file(tmp_path / "x.jpg", size) for size in (8, 28, 40, 57, 64)}
    monkeypatch.setattr(decoder, "has_torchvision", lambda: False)
    for size, pixels in with_torchvision.items():
        assert torch.equal(pixels, decode_file(tmp_path / "x.jpg", size))


def test_large_jpegs_are_decoded_small_but_right(tmp_path) -> None:
    """A horizontal ramp of 512 pixels, as 16: draft mode and reducing stay within two grey levels of the mean."""
    ramp = np.tile(np.linspace(0, 255, 512), (512, 1)).astype(np.uint8)
    Image.fromarray(np.stack([ramp] * 3, axis=2)).save(tmp_path / "x.jpg", quality=95)
    expected = ramp.reshape(512, 16, 32).mean((0, 2))
    found = decoded(tmp_path / "x.jpg", 16).astype(float)
    assert np.abs(found[:, 1:-1] - expected[None, 1:-1, None]).max() < 2.5


def test_modes_become_rgb(tmp_path) -> None:
    grey, rgba = noise(8, 8, 1), noise(8, 8, 4)
    Image.fromarray(grey).save(tmp_path / "grey.png")
    Image.fromarray(rgba).save(tmp_path / "alpha.png")
    Image.fromarray(grey).convert("1").save(tmp_path / "bits.png")
    Image.fromarray(noise(8, 8)).quantize(17).save(tmp_path / "palette.png")
    assert np.array_equal(decoded(tmp_path / "grey.png", 8), np.stack([grey] * 3, axis=2))
    assert np.array_equal(decoded(tmp_path / "alpha.png", 8), rgba[..., :3])
    assert set(np.unique(decoded(tmp_path / "bits.png", 8))) == {0, 255}
    palette = np.asarray(Image.fromarray(noise(8, 8)).quantize(17).convert("RGB"))
    assert np.array_equal(decoded(tmp_path / "palette.png", 8), palette)


def test_16_bits_are_refused_rather_than_clipped(tmp_path) -> None:
    Image.fromarray(np.full((8, 8), 40_000, dtype=np.uint16)).save(tmp_path / "deep.png")
    with pytest.raises(ValueError, match="more than 8 bits a channel"):
        decoded(tmp_path / "deep.png", 8)


def test_orientation_is_applied(tmp_path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # shown after a quarter turn clockwise
    picture = np.zeros((16, 16, 3), dtype=np.uint8)
    picture[:8] = 255  # top white, so shown with its right side white
    Image.fromarray(picture).save(tmp_path / "x.jpg", exif=exif, quality=100)
    shown = decoded(tmp_path / "x.jpg", 16)
    assert shown[:, 9:].min() > 250 and shown[:, :7].max() < 5


@pytest.mark.parametrize("workers", [None, 0, 1, 3], ids=str)
def test_broken_files_are_left_out_counted_and_named(workers, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(decode, "_FILES_PER_TASK", 4)
    paths = put(tmp_path, 11)
    truth = [decode_file(path, 8) for path in paths]
    paths[2].write_bytes(paths[2].read_bytes()[:60])
    paths[7].write_text("not an image")
    paths[10].write_bytes(b"")
    said = Said()
    images, readable = decode.read(scan(tmp_path), config(workers=workers), said)
    assert readable.positions.tolist() == [0, 1, 3, 4, 5, 6, 8, 9]
    assert np.array_equal(images.numpy(), np.stack([truth[i] for i in readable.positions]))
    assert len(said) == 1 and said[0].startswith(f"3 of 11 image files under {tmp_path} could not be read")
    assert "the first is 02.png (" in said[0] and said[0].endswith("They are left out.")


def test_dangling_links_are_unreadable_files(tmp_path) -> None:
    put(tmp_path)
    (tmp_path / "link.png").symlink_to(tmp_path / "gone.png")
    said = Said()
    images, _ = decode.read(scan(tmp_path), config(), said)
    assert len(images) == 6 and "1 of 7" in said[0] and "link.png (FileNotFoundError" in said[0]


def test_nothing_readable(tmp_path) -> None:
    (tmp_path / "x.png").write_text("not an image")
    with pytest.raises(DataError, match=r"1 of 1 image files .* the first is x\.png \(UnidentifiedImageError"):
        decode.read(scan(tmp_path), config(), Said())


@pytest.mark.parametrize("kind", ["EPS", "PDF", "ICNS", "TGA", "PCX"])
def test_other_formats_are_not_decoded_whatever_their_ending(kind, tmp_path) -> None:
    """Pillow goes by the content, and would start Ghostscript for some of it."""
    Image.fromarray(noise(16, 16)).save(tmp_path / "x.jpg", kind)
    with pytest.raises(OSError, match="none of BMP, GIF, JPEG, PNG, PPM, TIFF, WEBP, or damaged"):
        decode_file(tmp_path / "x.jpg", 8)


def test_a_pipe_in_the_place_of_a_file_does_not_block(tmp_path) -> None:
    os.mkfifo(tmp_path / "x.png")
    with pytest.raises(ValueError, match="not a regular file"):
        decode_file(tmp_path / "x.png", 8)


def test_decompression_bombs_are_refused_by_name(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(decoder, "MOST_PIXELS", 40 * 30)
    Image.new("1", (41, 30)).save(tmp_path / "x.png")
    with pytest.raises(ValueError, match="41 x 30 pixels; at most 1,200 are decoded"):
        decode_file(tmp_path / "x.png", 8)
    Image.new("L", (41, 30)).save(tmp_path / "x.jpg")
    assert decode_file(tmp_path / "x.jpg", 8).shape == (3, 8, 8)  # at half the scale it is small enough


def test_large_files_are_decoded_in_threads(tmp_path, monkeypatch) -> None:
    made = []
    pool = decode.ThreadPoolExecutor
    monkeypatch.setattr(decode, "ThreadPoolExecutor", lambda workers: made.append(workers) or pool(workers))
    put(tmp_path)
    decode.read(scan(tmp_path), config(workers=None), Said())
    assert made == []
    monkeypatch.setattr(decode, "_SMALL_FILE", 10)
    decode.read(scan(tmp_path), config(workers=None), Said())
    decode.read(scan(tmp_path), config(workers=2), Said())
    assert made == [decode.cores(), 2]


def test_images_that_do_not_fit_are_refused(tmp_path, monkeypatch) -> None:
    put(tmp_path)
    assert decode.available_bytes() is None or decode.available_bytes() > 2**20
    monkeypatch.setattr(decode, "available_bytes", lambda: 3 * 2**30)
    decode.read(scan(tmp_path), config(), Said())
    with pytest.raises(
        DataError, match=r"images of 16000 px need 4\.3 GiB of memory, 3\.0 GiB are free.*--data\.limit"
    ):
        decode.read(scan(tmp_path), config(16_000), Said())
    monkeypatch.setattr(decode, "available_bytes", lambda: None)
    decode.read(scan(tmp_path), config(), Said())


def test_files_kept_in_memory_do_not_count_as_used(tmp_path) -> None:
    assert decode.group_bytes(tmp_path) is None
    (tmp_path / "memory.max").write_text("1000\n")
    (tmp_path / "memory.current").write_text("900\n")
    assert decode.group_bytes(tmp_path) is None
    (tmp_path / "memory.stat").write_text("anon 200\nfile 700\nactive_file 300\ninactive_file 350\nshmem 50\n")
    assert decode.group_bytes(tmp_path) == 750
    (tmp_path / "memory.max").write_text("max\n")
    assert decode.group_bytes(tmp_path) is None


def test_progress_lines_without_a_terminal(tmp_path, monkeypatch) -> None:
    clock = iter(range(0, 1000, 6))
    monkeypatch.setattr(decode.time, "monotonic", lambda: float(next(clock)))
    monkeypatch.setattr(decode, "_FILES_PER_TASK", 2)
    put(tmp_path, 10)
    said = Said()
    decode.read(scan(tmp_path), config(), said)
    assert said == [f"decoding {tmp_path}: 4 of 10 files, 0/s", f"decoding {tmp_path}: 8 of 10 files, 0/s"]


def test_progress_bar_on_a_terminal(tmp_path, monkeypatch, capsys) -> None:
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("FORCE_COLOR", "1")
    said = Said()
    put(tmp_path)
    images, _ = decode.read(scan(tmp_path), config(), said)
    captured = capsys.readouterr()
    assert len(images) == 6 and said == [] and captured.out == "" and "decoding" in captured.err
