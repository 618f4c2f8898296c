"""Decoding and its cache: pixels, broken files, progress, invalidation, memory."""

import os
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from mixfast.data import DataConfig, decode, decoder
from mixfast.data.decoder import decode_file
from mixfast.errors import DataError


def noise(height: int, width: int, channels: int = 3) -> np.ndarray:
    values = np.random.default_rng(height * width).integers(0, 256, (height, width, channels), dtype=np.uint8)
    return values[..., 0] if channels == 1 else values


def decoded(path: Path, size: int) -> np.ndarray:
    """uint8 [size, size, 3]."""
    return decode_file(path, size).permute(1, 2, 0).numpy()


def put(root: Path, count: int = 6) -> tuple[str, ...]:
    """PNG files of noise, all different."""
    files = tuple(f"{i}.png" for i in range(count))
    for i, file in enumerate(files):
        Image.fromarray(np.roll(noise(8, 8), i, axis=0)).save(root / file)
    return files


@pytest.fixture
def cfg(tmp_path_factory: pytest.TempPathFactory) -> DataConfig:
    return DataConfig(kind="folder", size=8, cache_dir=str(tmp_path_factory.mktemp("cache")))


def cached(cfg: DataConfig) -> list[Path]:
    return sorted(Path(str(cfg.cache_dir)).iterdir())


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
    files = put(tmp_path, 11)
    truth = [decode_file(tmp_path / file, 8) for file in files]
    (tmp_path / "2.png").write_bytes((tmp_path / "2.png").read_bytes()[:60])
    (tmp_path / "7.png").write_text("not an image")
    (tmp_path / "10.png").write_bytes(b"")
    said = Said()
    images, readable = decode.decode(tmp_path, files, 8, workers, said)
    assert readable.tolist() == [0, 1, 3, 4, 5, 6, 8, 9]
    assert np.array_equal(images.numpy(), np.stack([truth[i] for i in readable]))
    assert len(said) == 1 and said[0].startswith(f"3 of 11 image files under {tmp_path} could not be read")
    assert "the first is 2.png (" in said[0] and said[0].endswith("They are left out.")


def test_dangling_links_are_unreadable_files(tmp_path, cfg) -> None:
    files = (*put(tmp_path), "link.png")
    (tmp_path / "link.png").symlink_to(tmp_path / "gone.png")
    said = Said()
    images, _ = decode.read(tmp_path, files, 8, cfg, said)
    assert len(images) == 6 and "1 of 7" in said[0] and "link.png (FileNotFoundError" in said[0]


def test_nothing_readable(tmp_path, cfg) -> None:
    (tmp_path / "x.png").write_text("not an image")
    with pytest.raises(DataError, match=r"1 of 1 image files .* the first is x\.png \(UnidentifiedImageError"):
        decode.read(tmp_path, ("x.png",), 8, cfg, Said())
    assert not cached(cfg)


def test_large_files_are_decoded_in_threads(tmp_path, monkeypatch) -> None:
    made = []
    pool = decode.ThreadPoolExecutor
    monkeypatch.setattr(decode, "ThreadPoolExecutor", lambda workers: made.append(workers) or pool(workers))
    files = put(tmp_path)
    decode.decode(tmp_path, files, 8, None, Said())
    assert made == []
    monkeypatch.setattr(decode, "_SMALL_FILE", 10)
    decode.decode(tmp_path, files, 8, None, Said())
    decode.decode(tmp_path, files, 8, 2, Said())
    assert made == [decode.cores(), 2]


def test_cache_is_used_while_nothing_changes(tmp_path, cfg, monkeypatch) -> None:
    files = put(tmp_path)
    first = decode.read(tmp_path, files, 8, cfg, Said())
    assert len(cached(cfg)) == 1
    monkeypatch.setattr(decode, "decode", None)  # calling it fails
    again = decode.read(tmp_path, files, 8, cfg, Said())
    assert torch.equal(first[0], again[0]) and torch.equal(first[1], again[1])


def test_cache_remembers_what_was_unreadable(tmp_path, cfg) -> None:
    files = put(tmp_path)
    (tmp_path / "3.png").write_text("not an image")
    first = decode.read(tmp_path, files, 8, cfg, Said())
    again = decode.read(tmp_path, files, 8, cfg, Said())
    assert torch.equal(first[0], again[0]) and again[1].tolist() == [0, 1, 2, 4, 5]


@pytest.mark.parametrize("change", ["time", "content", "list", "size", "place"])
def test_cache_is_left_when_something_changes(change, tmp_path, cfg, monkeypatch) -> None:
    files, root, size = put(tmp_path), tmp_path, 8
    decode.read(root, files, size, cfg, Said())
    if change == "time":
        os.utime(tmp_path / "1.png", ns=(1, 1))
    elif change == "content":
        stat = os.stat(tmp_path / "1.png")
        Image.fromarray(noise(9, 9)).save(tmp_path / "1.png")
        os.utime(tmp_path / "1.png", ns=(stat.st_atime_ns, stat.st_mtime_ns))  # another length tells
    elif change == "list":
        files = files[:-1]
    elif change == "size":
        size = 4
    else:
        root = tmp_path.parent / f"{tmp_path.name}_moved"
        tmp_path.rename(root)
    images, _ = decode.read(root, files, size, cfg, Said())
    assert len(cached(cfg)) == 2
    truth = np.stack([decode_file(root / file, size) for file in files])
    assert np.array_equal(images.numpy(), truth)


def test_damaged_cache_is_made_again(tmp_path, cfg) -> None:
    files = put(tmp_path)
    truth, _ = decode.read(tmp_path, files, 8, cfg, Said())
    (file,) = cached(cfg)
    for damage in (file.read_bytes()[:-200], b"", b"nonsense"):
        file.write_bytes(damage)
        said = Said()
        images, _ = decode.read(tmp_path, files, 8, cfg, said)
        assert torch.equal(images, truth) and "is damaged" in said[0]
    assert cached(cfg) == [file]


def test_unwritable_cache_costs_only_the_cache(tmp_path) -> None:
    files = put(tmp_path)
    said = Said()
    cfg = DataConfig(kind="folder", size=8, cache_dir=str(tmp_path / "0.png" / "below_a_file"))
    images, _ = decode.read(tmp_path, files, 8, cfg, said)
    assert len(images) == 6 and said[0].startswith("the decoded images were not cached: ")


def test_interrupted_write_leaves_nothing(tmp_path, cfg, monkeypatch) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    files = put(tmp_path)
    monkeypatch.setattr(decode.np, "savez", full)
    said = Said()
    decode.read(tmp_path, files, 8, cfg, said)
    assert not cached(cfg) and "No space left on device" in said[0]


def test_cache_can_be_off_and_has_a_default_place(tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    (tmp_path / "images").mkdir()
    files = put(tmp_path / "images")
    decode.read(tmp_path / "images", files, 8, DataConfig(kind="folder", cache=False), Said())
    assert not (tmp_path / "xdg").exists()
    decode.read(tmp_path / "images", files, 8, DataConfig(kind="folder"), Said())
    assert [path.name[:11] for path in (tmp_path / "xdg/mixfast").iterdir()] == ["images-8px-"]


def test_images_that_do_not_fit_are_refused(tmp_path, cfg, monkeypatch) -> None:
    files = put(tmp_path)
    assert decode.available_bytes() is None or decode.available_bytes() > 2**20
    monkeypatch.setattr(decode, "available_bytes", lambda: 3 * 2**30)
    decode.read(tmp_path, files, 8, cfg, Said())
    with pytest.raises(
        DataError, match=r"images of 20000 px need 6\.7 GiB of memory, 3\.0 GiB are free.*--data\.limit"
    ):
        decode.read(tmp_path, files, 20_000, cfg, Said())
    monkeypatch.setattr(decode, "available_bytes", lambda: None)
    decode.read(tmp_path, files, 8, cfg, Said())


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
    files = put(tmp_path, 10)
    said = Said()
    decode.decode(tmp_path, files, 8, 0, said)
    assert said == [f"decoding {tmp_path}: 4 of 10 files, 0/s", f"decoding {tmp_path}: 8 of 10 files, 0/s"]


def test_progress_bar_on_a_terminal(tmp_path, monkeypatch, capsys) -> None:
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("FORCE_COLOR", "1")
    said = Said()
    images, _ = decode.decode(tmp_path, put(tmp_path), 8, 0, said)
    captured = capsys.readouterr()
    assert len(images) == 6 and said == [] and captured.out == "" and "decoding" in captured.err
