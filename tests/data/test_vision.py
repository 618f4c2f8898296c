"""torchvision's data sets: their files read through torchvision itself, written here in miniature."""

import pickle
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from mixfast.data import DataConfig, load, vision
from mixfast.errors import DataError, PlatformError


@pytest.fixture
def datasets(monkeypatch):
    """torchvision.datasets with the checksums of its archives taken as right."""
    module = pytest.importorskip("torchvision.datasets", reason="torchvision reads these data sets")
    for name in ("CIFAR10", "STL10"):  # CIFAR100 inherits
        monkeypatch.setattr(getattr(module, name), "_check_integrity", lambda self: True)
    monkeypatch.setattr(module.cifar, "check_integrity", lambda *_: True)
    return module


def byte_images(count: int, side: int) -> np.ndarray:
    return np.random.default_rng(count).integers(0, 256, (count, 3, side, side), dtype=np.uint8)


def dump(path: Path, content: dict) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(pickle.dumps(content))


def test_cifar10(datasets, tmp_path) -> None:
    images = byte_images(12, 32)
    folder = tmp_path / "cifar-10-batches-py"
    for i in range(5):
        dump(folder / f"data_batch_{i + 1}", {"data": images[2 * i : 2 * i + 2].reshape(2, -1), "labels": [i, 9 - i]})
    dump(folder / "test_batch", {"data": images[10:].reshape(2, -1), "labels": [3, 4]})
    dump(folder / "batches.meta", {"label_names": list("abcdefghij")})
    said: list[str] = []
    splits = load(DataConfig(kind="cifar10", path=str(tmp_path)), 0, said.append)
    assert splits.train.images.dtype == torch.uint8 and splits.train.images.is_contiguous()
    assert np.array_equal(splits.train.images.numpy(), images[:10])
    assert np.array_equal(splits.test.images.numpy(), images[10:])
    assert splits.train.labels.tolist() == [0, 9, 1, 8, 2, 7, 3, 6, 4, 5] and splits.test.labels.tolist() == [3, 4]
    assert splits.train.class_names == tuple("abcdefghij")
    assert said[0].startswith(
        f"cifar10 at {tmp_path}: 10 training + 2 test images, 10 classes of 1 to 2 images (a, b, c ...)"
    )
    assert (splits.mean, splits.std) == ((0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010))


def test_cifar100(datasets, tmp_path) -> None:
    images = byte_images(6, 32)
    for name, part in (("train", images[:4]), ("test", images[4:])):
        content = {"data": part.reshape(len(part), -1), "fine_labels": list(range(len(part))), "coarse_labels": [0]}
        dump(tmp_path / "cifar-100-python" / name, content)
    dump(tmp_path / "cifar-100-python/meta", {"fine_label_names": list("abcd")})
    splits = load(DataConfig(kind="cifar100", path=str(tmp_path), limit=3), 0)
    assert np.array_equal(splits.train.images.numpy(), images[:3]) and splits.test.labels.tolist() == [0, 1]
    assert splits.mean == pytest.approx((images[:3] / 255).mean((0, 2, 3)).tolist())


def test_stl10_at_its_own_and_at_a_smaller_size(datasets, tmp_path) -> None:
    folder = tmp_path / "stl10_binary"
    folder.mkdir()
    images = byte_images(5, 96)
    for name, part in (("train", images[:3]), ("test", images[3:])):
        part.transpose(0, 1, 3, 2).tofile(folder / f"{name}_X.bin")  # columns first on the disk
        np.arange(1, len(part) + 1, dtype=np.uint8).tofile(folder / f"{name}_y.bin")
    (folder / "class_names.txt").write_text("airplane\nbird\ncar\n")
    splits = load(DataConfig(kind="stl10", path=str(tmp_path), size=96), 0)
    assert np.array_equal(splits.train.images.numpy(), images[:3]) and splits.test.labels.tolist() == [0, 1]
    assert splits.train.class_names == ("airplane", "bird", "car")
    small = load(DataConfig(kind="stl10", path=str(tmp_path), size=32), 0).train.images
    for ours, image in zip(small, images, strict=False):
        theirs = np.asarray(Image.fromarray(image.transpose(1, 2, 0)).resize((32, 32), Image.Resampling.BILINEAR))
        assert np.abs(ours.numpy().transpose(1, 2, 0).astype(int) - theirs).max() <= 1  # Pillow rounds between the axes


def test_resized_keeps_what_has_the_size() -> None:
    images = torch.zeros(2, 3, 8, 8, dtype=torch.uint8)
    assert vision.resized(images, 8) is images


@pytest.mark.parametrize("kind", ["cifar10", "cifar100", "stl10"])
def test_missing_data(kind, tmp_path) -> None:
    pytest.importorskip("torchvision", reason="torchvision looks for the data")
    folder = {"cifar10": "cifar-10-batches-py", "cifar100": "cifar-100-python", "stl10": "stl10_binary"}[kind]
    with pytest.raises(
        DataError, match=rf"{tmp_path}/{folder} is missing or damaged .*--data\.path .*--data\.download"
    ):
        load(DataConfig(kind=kind, path=str(tmp_path)), 0)


@pytest.mark.parametrize("error", ["absent", "of another torch"])
def test_missing_torchvision(error, monkeypatch) -> None:
    if error == "absent":
        monkeypatch.setitem(sys.modules, "torchvision", None)
    else:

        class Broken:
            def __getattr__(self, name: str) -> object:
                raise RuntimeError("operator torchvision::nms does not exist")

        monkeypatch.setitem(sys.modules, "torchvision", Broken())
    with pytest.raises(PlatformError, match=r"data\.kind cifar10 needs torchvision.*pip install torchvision$"):
        load(DataConfig(kind="cifar10"), 0)
