"""Image folders: layouts, splits, and what is said of folders that hold no data set."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from mixfast.data import DataConfig, folder, load
from mixfast.errors import ConfigError, DataError


def put(path: Path, level: int, size: tuple[int, int] = (8, 8)) -> None:
    """One PNG of a single grey level."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, (level,) * 3).save(path)


def classes(root: Path, count: int = 5, names: str = "ab", first_level: int = 0) -> Path:
    """root/<class>/<i>.png with levels 10 * class + i."""
    for c, name in enumerate(names):
        for i in range(count):
            put(root / name / f"{i}.png", first_level + 10 * c + i)
    return root


def config(path: Path | None, **options) -> DataConfig:
    return DataConfig(kind="folder", path=path and str(path), size=8, cache=False, **options)


def levels(images) -> list[int]:
    return images.images[:, 0, 0, 0].tolist()


def test_train_and_test_subfolders(tmp_path) -> None:
    classes(tmp_path / "train"), classes(tmp_path / "test", count=2, first_level=100)
    splits = load(config(tmp_path), 0)
    assert levels(splits.train) == [0, 1, 2, 3, 4, 10, 11, 12, 13, 14]
    assert splits.train.labels.tolist() == [0] * 5 + [1] * 5
    assert levels(splits.test) == [100, 101, 110, 111] and splits.test.labels.tolist() == [0, 0, 1, 1]
    assert splits.train.class_names == splits.test.class_names == ("a", "b")
    assert splits.train.images.dtype == torch.uint8 and splits.train.images.shape == (10, 3, 8, 8)


def test_val_is_used_where_there_is_no_test(tmp_path) -> None:
    classes(tmp_path / "train"), classes(tmp_path / "val", count=1, first_level=50)
    assert levels(load(config(tmp_path), 0).test) == [50, 60]
    classes(tmp_path / "test", count=1, first_level=90)
    assert levels(load(config(tmp_path), 0).test) == [90, 100]


def test_test_path(tmp_path) -> None:
    classes(tmp_path / "train"), classes(tmp_path / "test", count=1, first_level=50)
    classes(tmp_path / "other", count=1, first_level=70)
    splits = load(config(tmp_path / "train", test_path=str(tmp_path / "other")), 0)
    assert len(splits.train) == 10 and levels(splits.test) == [70, 80]
    assert levels(load(config(tmp_path, test_path=str(tmp_path / "other")), 0).test) == [70, 80]


def test_a_class_called_train_is_a_class(tmp_path) -> None:
    for c, name in enumerate(("train", "boat", "plane")):
        for i in range(3):
            put(tmp_path / name / f"{i}.png", 10 * c + i)
    assert load(config(tmp_path), 0).train.class_names == ("boat", "plane", "train")


def test_hold_out_is_a_share_of_every_class_and_follows_the_seed(tmp_path) -> None:
    classes(tmp_path, count=10), classes(tmp_path, count=2, names="c", first_level=200)
    first, again, other = (load(config(tmp_path, holdout=0.3), seed) for seed in (0, 0, 1))
    assert first.test.labels.bincount().tolist() == [3, 3, 1]
    assert first.train.labels.bincount().tolist() == [7, 7, 1]
    assert levels(first.test) == levels(again.test) != levels(other.test)
    assert not set(levels(first.test)) & set(levels(first.train))
    assert len({*levels(first.test), *levels(first.train)}) == 22


def test_flat_folder_has_no_labels(tmp_path) -> None:
    for i in range(10):
        put(tmp_path / f"{i}.png", i)
    splits = load(config(tmp_path, holdout=0.2), 0)
    assert len(splits.train) == 8 and len(splits.test) == 2
    assert splits.train.labels.tolist() == [-1] * 8 and splits.train.class_names == ()
    assert not splits.train.labelled and not splits.test.labelled


def test_a_single_subfolder_is_no_class(tmp_path) -> None:
    classes(tmp_path, names="x")
    assert not load(config(tmp_path), 0).train.labelled


def test_labelled_training_with_flat_test_is_unlabelled_there(tmp_path) -> None:
    classes(tmp_path / "train"), put(tmp_path / "test" / "0.png", 1)
    splits = load(config(tmp_path), 0)
    assert splits.train.labelled and splits.test.labels.tolist() == [-1]


def test_files_are_found_at_any_depth_and_others_are_passed_over(tmp_path) -> None:
    classes(tmp_path / "train", count=2), classes(tmp_path / "test", count=1)
    put(tmp_path / "train/a/deep/deeper/x.PNG", 77)
    put(tmp_path / "train/a/.hidden.png", 1)
    put(tmp_path / "train/.cache/y.png", 1)
    put(tmp_path / "train/a/.thumbs/y.png", 1)
    (tmp_path / "train/a/notes.txt").write_text("not an image")
    (tmp_path / "train/empty").mkdir()
    splits = load(config(tmp_path), 0)
    assert levels(splits.train) == [0, 1, 77, 10, 11] and splits.train.class_names == ("a", "b")


def test_test_classes_count_as_in_training(tmp_path) -> None:
    classes(tmp_path / "train", names="abc", count=2)
    put(tmp_path / "test/c/0.png", 3), put(tmp_path / "test/b/0.png", 2)
    assert load(config(tmp_path), 0).test.labels.tolist() == [1, 2]


def test_limits_are_balanced_and_cut_before_decoding(tmp_path) -> None:
    classes(tmp_path / "train"), classes(tmp_path / "test", first_level=100)
    (tmp_path / "train/b/4.png").write_bytes(b"broken, but not among the first")
    said: list[str] = []
    splits = load(config(tmp_path, limit=6, test_limit=2), 0, said.append)
    assert levels(splits.train) == [0, 1, 2, 10, 11, 12] and levels(splits.test) == [100, 110]
    assert said == []


def test_normalisation_is_measured(tmp_path) -> None:
    classes(tmp_path / "train"), classes(tmp_path / "test")
    splits = load(config(tmp_path), 0)
    values = np.array([0, 1, 2, 3, 4, 10, 11, 12, 13, 14]) / 255
    assert splits.mean == pytest.approx([values.mean()] * 3) and splits.std == pytest.approx([values.std()] * 3)


def test_no_path() -> None:
    with pytest.raises(ConfigError, match=r"needs --data\.path.*PATH/<class>"):
        load(config(None), 0)


def test_missing_path(tmp_path) -> None:
    with pytest.raises(DataError, match=r"data\.path .*nowhere: does not exist.*Accepted: PATH/<class>/\*\.jpg"):
        load(config(tmp_path / "nowhere"), 0)
    put(tmp_path / "x.png", 1)
    with pytest.raises(DataError, match=r"x\.png: is a file; it must be a folder"):
        load(config(tmp_path / "x.png"), 0)
    with pytest.raises(DataError, match=r"data\.test_path .*nowhere: does not exist"):
        load(config(tmp_path, test_path=str(tmp_path / "nowhere")), 0)


def test_folders_without_images(tmp_path) -> None:
    with pytest.raises(DataError, match=r"no image found; it is empty\. Accepted"):
        load(config(tmp_path), 0)
    (tmp_path / "list.csv").touch()
    (tmp_path / "data.tar").touch()
    with pytest.raises(DataError, match=r"no image found; it holds data\.tar, list\.csv\."):
        load(config(tmp_path), 0)


def test_one_image_cannot_be_split(tmp_path) -> None:
    put(tmp_path / "x.png", 1)
    with pytest.raises(DataError, match=r"too few images to hold some out for the test; give --data\.test-path"):
        load(config(tmp_path), 0)


def test_unknown_test_classes(tmp_path) -> None:
    classes(tmp_path / "train"), classes(tmp_path / "test", names="bcdefgh", count=1)
    with pytest.raises(
        DataError, match=r"test classes c, d, e, f, g \(6 in all\) are not among the 2 training classes"
    ):
        load(config(tmp_path), 0)


def test_listing_order_does_not_depend_on_the_file_system(tmp_path, monkeypatch) -> None:
    classes(tmp_path, names="cab", count=12)
    truth = folder.scan(tmp_path)
    walk = folder.os.walk
    monkeypatch.setattr(folder.os, "walk", lambda top: ((p, d[::-1], f[::-1]) for p, d, f in walk(top)))
    assert folder.scan(tmp_path).files == truth.files
    assert truth.files[:4] == ("a/0.png", "a/1.png", "a/10.png", "a/11.png") and truth.class_names == ("a", "b", "c")
