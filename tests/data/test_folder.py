"""Image folders: layouts, splits, links, and what is said of what is in them."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from mixfast.data import DataConfig, load, scan
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


def run_without_privilege(code: str) -> str:
    """What a program prints that may not read everything, although a superuser may have started it."""
    command = [sys.executable, "-c", code]
    if os.geteuid() == 0:
        rights = "-dac_override,-dac_read_search"
        command = ["setpriv", f"--bounding-set={rights}", f"--inh-caps={rights}", *command]
    done = subprocess.run(command, cwd=Path(__file__).parents[2], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


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
    assert said == [f"{tmp_path}: 6 training + 2 test images, 2 classes (a 4, b 4); 0 files passed over"]


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
    truth = scan.scan(tmp_path)
    read = os.scandir

    class Backwards(list):
        __enter__, __exit__ = lambda self: self, lambda *_: None

    monkeypatch.setattr(scan.os, "scandir", lambda top: Backwards(sorted(read(top), key=lambda e: e.name)[::-1]))
    assert scan.scan(tmp_path).files == truth.files
    assert truth.files[:4] == ("a/0.png", "a/1.png", "a/10.png", "a/11.png") and truth.class_names == ("a", "b", "c")


@pytest.mark.parametrize("train", ["train", "Train", "TRAINING"])
@pytest.mark.parametrize("test", ["test", "TEST", "Testing", "val", "Valid", "validation"])
def test_splits_in_every_spelling(train, test, tmp_path) -> None:
    classes(tmp_path / train), classes(tmp_path / test, count=1, first_level=50)
    classes(tmp_path / "extra")
    said: list[str] = []
    splits = load(config(tmp_path), 0, said.append)
    assert len(splits.train) == 10 and levels(splits.test) == [50, 60]
    assert said[0] == f"{tmp_path}: its folders extra (1 in all) are not read"


def test_training_images_alone_are_split(tmp_path) -> None:
    classes(tmp_path / "Train", count=10)
    splits = load(config(tmp_path), 0)
    assert splits.train.class_names == ("a", "b") and splits.test.labels.tolist() == [0, 1]


@pytest.mark.parametrize("names", [("train", "Training", "test"), ("train", "val", "validation")])
def test_splits_that_are_there_twice_are_refused(names, tmp_path) -> None:
    for name in names:
        classes(tmp_path / name)
    with pytest.raises(DataError, match=r"rain.* and .* could each be the same split|val and validation could each"):
        load(config(tmp_path), 0)


def test_links_to_folders_are_followed_everywhere(tmp_path) -> None:
    """Classes, the root itself, folders inside classes, and links in linked folders."""
    classes(tmp_path / "far", names="abc"), classes(tmp_path / "farther", names="d")
    (tmp_path / "far" / "c" / "more").symlink_to(tmp_path / "farther" / "d")
    (tmp_path / "d").mkdir()
    for name in "ab":
        (tmp_path / "d" / name).symlink_to(tmp_path / "far" / name)
    put(tmp_path / "d" / "c" / "own.png", 99)
    (tmp_path / "d" / "c" / "linked").symlink_to("../../far/c")
    (tmp_path / "link").symlink_to(tmp_path / "d")
    found = scan.scan(tmp_path / "link")
    assert found.class_names == ("a", "b", "c") and found.labels.bincount().tolist() == [5, 5, 11]
    assert {file for file in found.files if file.startswith("c")} == {
        *(f"c/linked/{i}.png" for i in range(5)), *(f"c/linked/more/{i}.png" for i in range(5)), "c/own.png"
    }  # fmt: skip


def test_links_in_a_circle_and_files_reached_twice_are_said(tmp_path) -> None:
    root = classes(tmp_path / "d")
    (root / "a" / "up").symlink_to("..")
    (root / "a" / "out").symlink_to(tmp_path.parent)
    (root / "a" / "self").symlink_to("self")
    (root / "a" / "copy.png").symlink_to("0.png")
    os.link(root / "a" / "1.png", root / "a" / "hard.png")
    (root / "a" / "sub").mkdir()
    (root / "a" / "sub" / "back").symlink_to("../../a")
    (root / "b" / "peer").symlink_to("../a")
    said: list[str] = []
    splits = load(config(root), 0, said.append)
    assert sorted(levels(splits.train) + levels(splits.test)) == [0, 0, 1, 1, 2, 2, 3, 3, 4, 4, 10, 11, 12, 13, 14]
    assert "5 image files are in more than one class through links, such as a/0.png; each counts in all" in said[0]
    assert said[1].startswith(f"{root}: 13 training + 2 test images, 2 classes (a 5, b 10); ")
    # In a: up, out and sub/back; in b, through peer: up, out, and sub/back. Each class: copy, hard, and self.
    assert said[1].endswith("(6 links to folders read already, 2 links to nothing, 4 reached twice)")


def test_what_is_passed_over_is_counted_by_kind(tmp_path) -> None:
    root = classes(tmp_path / "d", count=40)
    for name in ("notes.txt", "Thumbs.db", "x.HEIC", "y.avif", ".hidden.png", "z.pdf"):
        (root / "a" / name).write_bytes(b"")
    put(root / "overview.png", 1)
    (root / "a" / "0.png").write_bytes(b"broken")
    os.mkfifo(root / "b" / "pipe.png")
    (root / "b" / "device.png").symlink_to("/dev/zero")
    (root / "b" / "gone").symlink_to("nowhere")
    for said in ([], []):
        load(config(root, in_memory="no" if said else "yes", workers=0), 0, said.append)
        assert said[1] == (
            f"{root}: 71 training + 8 test images, 2 classes (a 39, b 40); 11 files passed over (1 .avif, 1 .heic, "
            "1 .pdf, 1 beside the class folders, 1 hidden, 1 link to nothing, 2 not images, 2 not regular files, "
            "1 unreadable)"
        )


def test_endings_in_any_case_and_spelling(tmp_path) -> None:
    for i, ending in enumerate(("jfif", "jpe", "JPEG", "JPG", "Png", "WEBP", "tif", "bmp", "pgm", "apng")):
        path = tmp_path / f"{i}.{ending}"
        Image.new("RGB", (8, 8), (i,) * 3).save(path, "png")
    assert len(scan.scan(tmp_path).files) == 10


@pytest.mark.slow
@pytest.mark.skipif(os.geteuid() == 0 and not shutil.which("setpriv"), reason="drops the superuser's rights")
def test_folders_that_cannot_be_read_are_an_error_by_name(tmp_path) -> None:
    """A class, a folder in one, the root, a class that is listed but not entered, and one that is a link."""
    cases = []  # root, the folder that is closed, its mode, the name that the error says
    for place, inside, mode in (("class", "b", 0), ("deep", "b/deep", 0), ("root", "", 0), ("no entry", "b", 0o644)):
        root = classes(tmp_path / place, names="abc")
        put(root / "b" / "deep" / "x.png", 3)
        cases.append((str(root), str(root / inside), mode, str(root / inside)))
    classes(tmp_path / "secret" / "inside")
    root = classes(tmp_path / "linked", names="abc")
    (root / "d").symlink_to(tmp_path / "secret" / "inside")
    cases.append((str(root), str(tmp_path / "secret"), 0, str(root / "d")))
    code = f"""
import os
from mixfast.data import DataConfig, load
for root, closed, mode, _ in {cases!r}:
    os.chmod(closed, mode)
    try:
        load(DataConfig(kind="folder", path=root, size=8, cache=False), 0)
    except Exception as error:
        print(type(error).__name__, error)
    else:
        print("no error")
    finally:
        os.chmod(closed, 0o755)
"""
    lines = run_without_privilege(code).splitlines()
    for line, (*_, name) in zip(lines, cases, strict=True):
        assert line.startswith("DataError ") and f"{name}" in line and "(Permission denied)" in line


def test_relative_paths_and_homes_become_absolute(tmp_path, monkeypatch) -> None:
    classes(tmp_path / "d", count=10)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    for path in ("d", "~/d", "./d/../d"):
        said: list[str] = []
        load(DataConfig(kind="folder", path=path, size=8, cache=False), 0, said.append)
        assert said == [f"{tmp_path}/d: 18 training + 2 test images, 2 classes (a 10, b 10); 0 files passed over"]
    for path in ("gone", "~/gone"):
        with pytest.raises(DataError, match=f"data.path {tmp_path}/gone: does not exist"):
            load(config(Path(path)), 0)
    with pytest.raises(ConfigError, match=r"--data\.path ~nobody-of-that-name/d: .*Write the whole path"):
        load(config(Path("~nobody-of-that-name/d")), 0)


def test_names_of_any_bytes(tmp_path) -> None:
    """A file, a class, and a broken file."""
    root = Path(os.fsdecode(os.fsencode(tmp_path) + b"/d\xff"))
    for name in (b"a/caf\xe9.png", b"\xe9t\xe9/x.png", b"\xe9t\xe9/y.png", b"a/l\n\x1b[1m.png", b"a/b\xe9.png"):
        put(Path(os.fsdecode(os.fsencode(root) + b"/" + name)), len(name))
    Path(os.fsdecode(os.fsencode(root) + b"/a/b\xe9.png")).write_bytes(b"broken")
    said: list[str] = []
    splits = load(config(root, holdout=0.5), 0, said.append)
    assert splits.train.class_names == ("a", "\\xe9t\\xe9")
    assert said[1].startswith(rf"{tmp_path}/d\xff: 1 training + 3 test images, 2 classes (a 2, \xe9t\xe9 2); ")
    assert r"the first is a/b\xe9.png" in said[0]
    "\n".join(said).encode()
