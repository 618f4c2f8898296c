"""Images that stay in their files: the same pixels and order as in memory, whoever decodes them, and broken files."""

import io
import os
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from mixfast.data import Batches, DataConfig, Splits, decode, folder, load, read, take
from mixfast.data.loader import ImageFiles, Library
from mixfast.data.streamed import Streamed
from mixfast.errors import DataError

SIZE = 12


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """23 training and 9 test JPEGs of noise in two classes, upright and lying, most larger than SIZE."""
    root, random = tmp_path_factory.mktemp("images"), np.random.default_rng(0)
    for split, counts in (("train", (12, 11)), ("test", (5, 4))):
        for label, count in zip("ab", counts, strict=True):
            (root / split / label).mkdir(parents=True)
            for i in range(count):
                side = random.integers(10, 60, 2)
                pixels = random.integers(0, 256, (*side, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(root / split / label / f"{i:02}.jpg", quality=90)
    return root


def config(root: Path, **options: object) -> DataConfig:
    return DataConfig(kind="folder", path=str(root), size=SIZE, cache=False, **options)


def streamed(root: Path, workers: int | None = 1, said: list[str] | None = None, **options: object) -> Splits:
    splits = load(
        config(root, in_memory="no", workers=workers, **options), 0, [].append if said is None else said.append, cores=2
    )
    assert isinstance(splits.train.images, Streamed) and isinstance(splits.test.images, Streamed)
    return splits


def epochs(splits: Splits, count: int, batch_size: int = 5) -> torch.Tensor:
    batches = Batches(splits.train.images, batch_size, torch.Generator().manual_seed(3))
    return torch.stack([batch for _ in range(count) for batch in batches.epoch()])


@pytest.mark.slow
@pytest.mark.parametrize("workers", [None, 0, 1, 3], ids=str)
def test_same_bits_as_in_memory(workers, images) -> None:
    """Pixels, order, normalisation and fingerprint do not depend on who decodes, and when."""
    whole, files = load(config(images, in_memory="yes"), 0), streamed(images, workers)
    assert torch.equal(epochs(files, 3), epochs(whole, 3))
    assert (files.mean, files.std, files.fingerprint) == (whole.mean, whole.std, whole.fingerprint)
    for ours, theirs in ((files.train, whole.train), (files.test, whole.test)):
        assert torch.equal(ours.labels, theirs.labels) and ours.class_names == theirs.class_names
        assert torch.equal(ours.in_memory(), theirs.images) and ours.images.shape == theirs.images.shape
        assert all(map(torch.equal, ours.images.split(4), theirs.images.split(4)))
        index = torch.tensor([3, 0, 3])
        assert torch.equal(ours.images[index], theirs.images[index])
        assert torch.equal(ours.images[1:7:2], theirs.images[1:7:2])
        assert torch.equal(ours.take(index).images, theirs.take(index).images)


@pytest.mark.slow
def test_reading_and_taking_work_alike_in_memory_and_in_files(images) -> None:
    whole, files = load(config(images, in_memory="yes"), 0).train.images, streamed(images).train.images
    for index in (torch.tensor([5, 2, 9, 9, 1]), slice(2, 21, 3)):
        ours, theirs = take(files, index), take(whole, index)
        assert isinstance(ours, Streamed) and len(ours) == len(theirs)
        parts = [torch.tensor([1, 0]), torch.tensor([4]), torch.tensor([2, 3, 1])]
        assert all(map(torch.equal, read(ours, parts), read(theirs, parts)))
    assert list(files.take(slice(0)).split(3)) == []


def test_position_survives_in_either_form(images) -> None:
    """Begun from files, saved in the middle of an epoch, continued from memory, and the other way round."""
    whole, files = load(config(images, in_memory="yes"), 0).train.images, streamed(images).train.images
    generator = torch.Generator().manual_seed(1)
    truth = torch.stack(list(Batches(whole, 5, generator).epoch()))
    for first, second in ((whole, files), (files, whole), (files, files)):
        begun = Batches(first, 5, generator.manual_seed(1))
        iterator = begun.epoch()
        seen = [next(iterator) for _ in range(2)]
        file = io.BytesIO()
        torch.save(begun.state_dict(), file)
        iterator.close()
        file.seek(0)
        continued = Batches(second, 5, torch.Generator())
        continued.load_state_dict(torch.load(file, weights_only=True))
        assert torch.equal(torch.stack([*seen, *continued.epoch()]), truth)
        assert continued.state_dict()["order"] is None


def break_some(images: Path, root: Path) -> list[str]:
    """A copy of the images in which files of every kind of damage are among the others; their names."""
    for path in images.rglob("*.jpg"):
        (root / path.relative_to(images)).parent.mkdir(parents=True, exist_ok=True)
        (root / path.relative_to(images)).write_bytes(path.read_bytes())
    names = [f"train/a/{i:02}.jpg" for i in (0, 3, 4, 11)] + ["train/b/00.jpg", "train/b/10.jpg", "test/a/04.jpg"]
    truncated, empty, text, gone, circle, deep, postscript = (root / name for name in names)
    truncated.write_bytes(truncated.read_bytes()[:-20])
    empty.write_bytes(b"")
    text.write_text("<html>404</html>")
    gone.unlink(), gone.symlink_to(root / "nowhere.jpg")
    circle.unlink(), circle.symlink_to(circle)
    Image.fromarray(np.full((9, 9), 40_000, np.uint16)).save(deep, "png")
    Image.new("RGB", (9, 9)).save(postscript, "eps")
    return names


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("split", ["given", "held out"])
def test_broken_files_are_left_out_as_in_memory(workers, split, images, tmp_path) -> None:
    """Images, labels, order, normalisation and fingerprint are those of a folder without the broken files."""
    names = break_some(images, tmp_path)
    root = tmp_path if split == "given" else tmp_path / "train"
    said: dict[str, list[str]] = {"yes": [], "no": []}
    options = {"limit": None if split == "given" else 13, "holdout": 0.3, "workers": workers}
    whole = load(config(root, in_memory="yes", **options), 0, said["yes"].append)
    files = streamed(root, said=said["no"], **options)
    for ours, theirs in ((files.train, whole.train), (files.test, whole.test)):
        assert torch.equal(ours.in_memory(), theirs.images) and torch.equal(ours.labels, theirs.labels)
        assert torch.equal(ours.digests, theirs.digests)
    assert torch.equal(epochs(files, 2), epochs(whole, 2))
    assert (files.mean, files.std, files.fingerprint) == (whole.mean, whole.std, whole.fingerprint)
    progress = ("decoding", "looking through", f"{len(files.train)} images stay in their files")
    first, second = ([line for line in lines if not line.startswith(progress)] for lines in said.values())
    assert first == second and any("unreadable" in line for line in first)
    if split == "given":
        for name in names:
            (tmp_path / name).unlink()
        clean = load(config(root, in_memory="yes"), 0, [].append)
        for ours, theirs in ((whole.train, clean.train), (whole.test, clean.test)):
            assert torch.equal(ours.images, theirs.images) and torch.equal(ours.labels, theirs.labels)


@pytest.mark.parametrize("workers", [0, 2])
def test_a_file_that_breaks_during_training_is_an_error_that_names_it(workers, images, tmp_path) -> None:
    """No other image takes its place, and its label."""
    for level in range(6):
        Image.new("RGB", (9, 9), (40 * level,) * 3).save(tmp_path / f"{level}.png")
    splits = streamed(tmp_path, workers, holdout=0.2)
    assert len(epochs(splits, 1)) == 1
    name = splits.train.images.library.items[int(splits.train.images.numbers[2])]
    Path(name).write_bytes(Path(name).read_bytes()[:40])
    with pytest.raises(DataError, match=rf"{name} can no longer be read \(.*that the run began with"):
        epochs(splits, 1)


def test_file_names_of_any_bytes(tmp_path) -> None:
    names = [tmp_path / os.fsdecode(raw) for raw in (b"\xff\xfe.jpg", "ä\nb.jpg".encode(), b"c d.jpg")]
    for level, name in enumerate(names):
        with open(name, "wb") as file:
            Image.new("RGB", (SIZE, SIZE), (level,) * 3).save(file, "png")
    library = Library(ImageFiles(SIZE), names, 1)
    (batch,) = Streamed(library, torch.arange(3)).split(3)
    assert batch[:, 0, 0, 0].tolist() == [0, 1, 2]


@pytest.mark.parametrize(
    ("need", "host", "device", "in_files"),
    [(1, 2, None, False), (1.01, 2, None, True), (1, 8, 2, False), (1.01, 8, 2, True), (9, None, None, False)],
    ids=str,
)
def test_auto_leaves_images_in_files_that_need_more_than_half_the_memory(
    need, host, device, in_files, images, monkeypatch
) -> None:
    """In units of the 32 images' bytes, on the host and on a GPU."""
    unit = 32 * 3 * SIZE**2 / need
    monkeypatch.setattr(decode, "available_bytes", lambda: host and host * unit)
    splits = load(config(images), 0, [].append, device_bytes=device and device * unit)
    assert isinstance(splits.train.images, Streamed) == isinstance(splits.test.images, Streamed) == in_files


def test_yes_and_no_do_not_look_at_the_memory(images, monkeypatch) -> None:
    monkeypatch.setattr(decode, "available_bytes", lambda: 2**40)
    streamed(images)
    monkeypatch.setattr(decode, "available_bytes", lambda: 100)
    with pytest.raises(DataError, match=r"Use --data\.in_memory no \(or auto\), --data\.limit"):
        load(config(images, in_memory="yes"), 0)


def test_large_sets_are_normalised_by_a_sample_in_both_forms(images, monkeypatch) -> None:
    """Of 23 images 7: numbers 0, 3, 6, 9, 13, 16 and 19."""
    module = sys.modules["mixfast.data.load"]  # the function has the module's name
    monkeypatch.setattr(module, "_EXACT", 22)
    monkeypatch.setattr(module, "_SAMPLE", 7)
    whole, files = load(config(images, in_memory="yes"), 0), streamed(images)
    values = whole.train.images[[0, 3, 6, 9, 13, 16, 19]].double() / 255
    assert whole.mean == pytest.approx(values.mean((0, 2, 3)).tolist(), abs=1e-12)
    assert (files.mean, files.std) == (whole.mean, whole.std)


def test_the_speed_of_decoding_is_measured_and_said(images) -> None:
    said: list[str] = []
    splits = streamed(images, 2, said)
    assert said[1].startswith("23 images stay in their files: 2 processes can decode ")
    assert said[1].endswith(" images/s of 12 px, measured alone on 23 of them")
    assert splits.train.images.library.images_per_s > 0


def test_limits_and_held_out_images_apply_to_files_too(images) -> None:
    splits = streamed(images / "train", holdout=0.5, limit=6, test_limit=4)
    whole = load(config(images / "train", in_memory="yes", holdout=0.5, limit=6, test_limit=4), 0)
    assert splits.train.labels.tolist() == [0, 0, 0, 1, 1, 1] and splits.test.labels.tolist() == [0, 0, 1, 1]
    assert torch.equal(splits.train.in_memory(), whole.train.images)
    assert torch.equal(splits.test.in_memory(), whole.test.images)


def test_default_is_a_process_per_core(images, monkeypatch) -> None:
    monkeypatch.setattr(decode, "cores", lambda: 1)
    library = load(config(images, in_memory="no"), 0, [].append).train.images.library
    assert library.workers == 1 and folder.decode is decode
