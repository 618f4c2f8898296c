"""The cache of decoded folders: what it saves, what makes it void, damage, its place and its bound."""

import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from mixfast.data import DataConfig, Streamed, cache, decode, load, loader

SIZE = 8


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Two classes of ten different PNGs."""
    random = np.random.default_rng(0)
    for name in "ab":
        (tmp_path / "images" / name).mkdir(parents=True)
        for i in range(10):
            pixels = random.integers(0, 256, (SIZE, SIZE, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(tmp_path / "images" / name / f"{i}.png")
    return tmp_path / "images"


@pytest.fixture
def decoded(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the files that are decoded from here on."""
    names: list[str] = []
    for module in (decode, loader):
        true = module.decode_file
        monkeypatch.setattr(
            module, "decode_file", lambda path, size, true=true: names.append(Path(path).name) or true(path, size)
        )
    return names


def open_set(root: Path, seed: int = 0, said: list[str] | None = None, **options):
    cfg = {"cache_dir": str(root.parent / "cache"), "in_memory": "yes", "workers": 0, "size": SIZE, **options}
    print_line = [].append if said is None else said.append
    return load(DataConfig(kind="folder", path=str(root), **cfg), seed, print_line)


def kept(root: Path) -> list[Path]:
    return sorted((root.parent / "cache").iterdir())


def squares(splits) -> list[bytes]:
    """All images of a data set, in no order."""
    images = torch.cat([splits.train.in_memory(), splits.test.in_memory()])
    return sorted(image.numpy().tobytes() for image in images)


@pytest.mark.parametrize("in_memory", ["yes", "no"])
def test_one_file_serves_every_split_seed_and_limit(in_memory, root, decoded) -> None:
    truth = squares(open_set(root, cache=False))
    del decoded[:]
    first = open_set(root, in_memory=in_memory, limit=6, test_limit=2)
    assert isinstance(first.train.images, Streamed) == (in_memory == "no")
    streamed = 6 + 6 if in_memory == "no" else 0  # read for the normalisation: a first batch, then all
    assert len(decoded) == 8 + streamed
    open_set(root, in_memory=in_memory)
    del decoded[:]
    for seed in range(3):
        found = open_set(root, seed, in_memory=in_memory, limit=5)
        assert len(found.train) == 5 and len(decoded) == (10 * (seed + 1) if in_memory == "no" else 0)
    assert squares(open_set(root, in_memory=in_memory)) == truth
    assert [path.name[:11] for path in kept(root)] == ["images-8px-"]


@pytest.mark.parametrize("change", ["time", "content", "one more"])
def test_only_what_has_changed_is_decoded_again(change, root, decoded) -> None:
    open_set(root)
    file = root / "a" / "3.png"
    before = os.stat(file)
    if change == "time":
        os.utime(file, ns=(1, 1))
    elif change == "content":
        Image.new("RGB", (9, 9), "red").save(file)
        os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))  # the size tells
    else:
        file = root / "b" / "new.png"
        Image.new("RGB", (9, 9), "red").save(file)
    del decoded[:]
    again = squares(open_set(root))
    assert decoded == [file.name] and again == squares(open_set(root, cache=False))
    assert len(kept(root)) == 1


def test_another_place_or_side_is_another_file(root) -> None:
    open_set(root)
    open_set(root, size=4)
    moved = root.rename(root.parent / "moved")
    assert squares(open_set(moved)) == squares(open_set(moved, cache=False)) and len(kept(moved)) == 3


def test_broken_files_are_said_every_time_and_read_once_they_are_whole(root) -> None:
    file = root / "a" / "3.png"
    whole = file.read_bytes()
    file.write_text("not an image")
    times = os.stat(file)
    for _ in range(2):
        said: list[str] = []
        assert len(open_set(root, 0, said).train.labels) + 2 == 19
        assert any("1 of 20 image files" in line and "a/3.png" in line for line in said)
        assert any("1 file passed over (1 unreadable)" in line for line in said)
    file.write_bytes(whole)
    os.utime(file, ns=(times.st_atime_ns, times.st_mtime_ns))
    assert len(squares(open_set(root))) == 20


def test_damage_costs_decoding_and_no_more(root, decoded) -> None:
    """Flipped bits anywhere, cut and lengthened files, other sides, foreign content."""
    truth = squares(open_set(root, cache=False))
    open_set(root)
    (path,) = kept(root)
    good = path.read_bytes()
    open_set(root, size=4)
    (other,) = [file for file in kept(root) if file != path]
    wrong = [good[:-200], good[:100], good[:30], b"", b"nonsense", good + b"x", other.read_bytes()]
    for position in range(3, len(good), 97):
        wrong.append(good[:position] + bytes([good[position] ^ 16]) + good[position + 1 :])
    for content in wrong:
        path.write_bytes(content)
        said: list[str] = []
        del decoded[:]
        assert squares(open_set(root, 0, said)) == truth
        assert decoded and any("damaged" in line for line in said)
        del decoded[:]
        assert squares(open_set(root)) == truth and decoded == []


def test_a_full_disk_costs_the_cache_only(root, monkeypatch) -> None:
    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(cache.os, "fsync", full)
    said: list[str] = []
    assert len(squares(open_set(root, 0, said))) == 20
    assert kept(root) == [] and any("not kept for the next run: [Errno 28] No space left" in line for line in said)


def test_a_place_below_a_file_costs_the_cache_only(root) -> None:
    said: list[str] = []
    open_set(root, 0, said, cache_dir=str(root / "a" / "0.png" / "x"))
    assert any("not kept for the next run: " in line for line in said)


def test_what_was_not_used_for_longest_makes_room(root, monkeypatch) -> None:
    open_set(root, size=4), open_set(root, size=5), open_set(root, size=6)
    paths = {int(path.name.split("-")[1][0]): path for path in kept(root)}
    for size, when in ((4, 2e9), (5, 1e9), (6, 3e9)):
        os.utime(paths[size], (when, when))
    stranger = root.parent / "cache" / "mine.npz"
    stranger.write_bytes(b"x" * 4000)
    taken = sum(path.stat().st_size for path in paths.values())
    room = (taken + 20 * (3 * 8 * 8 + 100) - 100) / cache.SHARE - taken  # for all, but for a few bytes
    monkeypatch.setattr(cache.shutil, "disk_usage", lambda _: SimpleNamespace(free=room))
    said: list[str] = []
    open_set(root, 0, said)
    assert not paths[5].exists() and paths[4].exists() and paths[6].exists() and stranger.exists()
    assert len(kept(root)) == 4 and any(f"cache: deleted {paths[5]}" in line for line in said)


def test_what_would_fill_the_disk_is_not_kept(root, monkeypatch) -> None:
    monkeypatch.setattr(cache.shutil, "disk_usage", lambda _: SimpleNamespace(free=2000))
    said: list[str] = []
    open_set(root, 0, said)
    assert kept(root) == [] and any("it would take 0.0 MiB" in line for line in said)


def test_places(root, monkeypatch) -> None:
    """Off, the default, ~, and without a home."""
    home = root.parent / "home"
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    open_set(root, cache=False)
    assert not home.exists()
    open_set(root, cache_dir=None)
    open_set(root, cache_dir="~/mine")
    monkeypatch.setenv("XDG_CACHE_HOME", str(root.parent / "xdg"))
    open_set(root, cache_dir=None)
    names = {next(iter(folder.iterdir())).name for folder in (home / ".cache/mixfast", home / "mine")}
    assert names == {path.name for path in (root.parent / "xdg/mixfast").iterdir()} and len(names) == 1
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setattr(Path, "home", lambda: (_ for _ in ()).throw(RuntimeError("no home")))
    said: list[str] = []
    assert len(squares(open_set(root, 0, said, cache_dir=None))) == 20
    assert any("there is no home folder; --data.cache_dir names a place" in line for line in said)


def test_runs_that_write_at_once(root, decoded) -> None:
    """Each sees the whole of a file or nothing, and what stays is whole."""
    truth, said = squares(open_set(root, cache=False)), list[str]()
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda seed: squares(open_set(root, seed, said, limit=4 + seed)), range(6)))
    assert all(set(some) <= set(truth) for some in found) and len(kept(root)) == 1
    assert squares(open_set(root, 0, said)) == truth
    del decoded[:]
    assert squares(open_set(root, 0, said)) == truth and decoded == []
    assert not any("damaged" in line or "not kept" in line for line in said)


def test_names_of_any_bytes_are_cached(root, decoded) -> None:
    odd = os.fsencode(root / "a") + b"/caf\xe9.png"
    Path(os.fsdecode(odd)).write_bytes((root / "a" / "0.png").read_bytes())
    open_set(root)
    del decoded[:]
    assert len(squares(open_set(root))) == 21 and decoded == []
