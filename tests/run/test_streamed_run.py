"""Training and evaluation on images that stay in their files: the bits of a run in memory, wherever it was stopped."""

import multiprocessing
import os
import shutil
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from mixfast.augment import normalise
from mixfast.data import Streamed
from mixfast.errors import DataError
from mixfast.run import engine, monitor
from mixfast.run.state import Run
from mixfast.scoring import canvas
from mixfast.scoring.baselines import calibrated, pixels
from mixfast.scoring.knn import knn_scores
from mixfast.scoring.linear import LinearRecipe, sgd_score
from mixfast.scoring.maps import Network
from mixfast.train.__main__ import main
from tests.tiny_run import assert_same, last_state, open_tiny, records, train_in_child, words

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("command_settings")]


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """64 training and 20 test JPEGs in two classes, and files between them that cannot be decoded."""
    root, random = tmp_path_factory.mktemp("images"), np.random.default_rng(1)
    for split, count in (("train", 32), ("test", 10)):
        for label in "ab":
            (root / split / label).mkdir(parents=True)
            for i in range(count):
                picture = random.integers(0, 256, (20, 24, 3), dtype=np.uint8)
                Image.fromarray(picture).save(root / split / label / f"{i}.jpg")
        whole = (root / split / "a" / "3.jpg").read_bytes()
        (root / split / "a" / "30.jpg.jpg").write_bytes(whole[:-100])
        (root / split / "a" / "4_.jpg").write_bytes(b"")
        (root / split / "b" / "zz.jpg").write_text("no picture")
        (root / split / "b" / "00.jpg").symlink_to("nowhere.jpg")
    return root


def options(images: Path, in_memory: str) -> dict[str, Any]:
    kind = {"data__kind": "folder", "data__path": str(images), "data__in_memory": in_memory, "data__workers": 1}
    return {**kind, "data__cache_dir": str(images.parent / "cache")}


def opened(out: Path, images: Path, in_memory: str, **changes: Any) -> Run:
    return open_tiny(out, **options(images, in_memory), **changes)


def stopped(arguments: list[str], at_step: int) -> int:
    """Exit code of a training that is sent a SIGTERM once that step is done."""
    pause = engine.pause

    def strike(run: Run) -> None:
        if run.step == at_step:
            os.kill(os.getpid(), signal.SIGTERM)
        pause(run)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(engine, "pause", strike)
        return main(arguments)


def test_a_stopped_and_continued_run_from_files_equals_one_in_memory(
    images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Stopped inside an epoch, continued from files by another number of processes, killed, and ended in memory."""
    whole, parts, log = tmp_path / "whole", tmp_path / "parts", tmp_path / "log"
    assert main(words(whole, **options(images, "yes"))) == 0
    first = words(parts, **options(images, "no"))
    resume = ["--resume", str(parts), "--data.in_memory", "no", "--data.workers"]
    assert stopped(first, at_step=2) == 128 + signal.SIGTERM
    assert train_in_child([*resume, "2"], log, send=[signal.SIGKILL], at_step=7) == -signal.SIGKILL
    assert main(["--resume", str(parts), "--data.in_memory", "yes"]) == 0
    ours, theirs = last_state(parts), last_state(whole)
    for state in (ours, theirs):
        del state["config"]
    assert_same(ours, theirs)
    assert records(parts) == records(whole)
    printed = capsys.readouterr().out + log.read_text()
    assert printed.count("64 images stay in their files: ") == 2
    assert printed.count("decoding alone ") == 2


def test_a_file_that_breaks_while_the_run_lasts_stops_it_by_name(
    images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = tmp_path / "copy"
    shutil.copytree(images, root, symlinks=True)
    assert stopped(words(tmp_path / "run", **options(root, "no")), at_step=2) == 128 + signal.SIGTERM
    target, times = root / "train" / "a" / "3.jpg", (root / "train" / "a" / "3.jpg").stat()
    target.write_bytes(bytes(times.st_size))
    os.utime(target, ns=(times.st_atime_ns, times.st_mtime_ns))  # nothing tells before it is read
    assert main(["--resume", str(tmp_path / "run")]) == 3
    assert f"error: {target} can no longer be read (UnidentifiedImageError: " in capsys.readouterr().err
    os.utime(target)  # now it is found out before, and left out: other data than those that the run began with
    assert main(["--resume", str(tmp_path / "run")]) == 4
    assert "was trained on other images: saved {'name': 'folder', 'images': 64" in capsys.readouterr().err


def test_processes_that_die_stop_the_training(images: Path, tmp_path: Path, monkeypatch: Any) -> None:
    before, steps = set(multiprocessing.active_children()), 0

    def kill(_: Run) -> None:
        nonlocal steps
        steps += 1
        for worker in set(multiprocessing.active_children()) - before:
            worker.kill()

    monkeypatch.setattr(engine, "pause", kill)
    run = opened(tmp_path, images, "no")
    with pytest.raises(DataError, match=r"a process that decodes images has died"):
        engine.train(run)
    assert 1 <= steps <= 4  # what was decoded already is used


def test_evaluations_from_files_equal_those_in_memory(images: Path, tmp_path: Path) -> None:
    whole, files = (opened(tmp_path / kind, images, kind) for kind in ("yes", "no"))
    assert isinstance(files.batches.images, Streamed)
    assert monitor.score(files, files.method.encoder) == monitor.score(whole, whole.method.encoder)
    assert monitor.score_pixels(files) == monitor.score_pixels(whole)
    statistics = [
        calibrated(r.method.encoder, r.batches.images, r.normalise, 8, 3).state_dict() for r in (whole, files)
    ]
    assert_same(*statistics)
    assert torch.equal(*(canvas.compose(r.splits.train, 3, 48, 2, 0, "test").images for r in (whole, files)))
    scores = []
    for run in (whole, files):
        network = Network(run.method.encoder, run.normalise)
        labels, generator = run.splits.train.labels, torch.Generator().manual_seed(0)
        recipe = LinearRecipe(epochs=1, batch_size=10, lrs=(0.1, 1.0))
        test = (run.splits.test.images, run.splits.test.labels)
        view = lambda batch: normalise(batch, run.splits.mean, run.splits.std)  # noqa: B023, E731
        scores.append(sgd_score(network, view, run.batches.images, labels, *test, generator, recipe))
    assert scores[0] == scores[1]


@pytest.mark.parametrize("in_memory", ["yes", "no"])
def test_the_bank_of_knn_can_be_limited(in_memory: str, images: Path, tmp_path: Path) -> None:
    """Ten of 64: the first five of each class, by the definition."""
    run = opened(tmp_path, images, in_memory, eval__bank=10, eval__k=3)
    chosen = torch.tensor([*range(5), *range(32, 37)])
    some, labels = monitor.bank(run)
    train, test = run.splits.train, run.splits.test
    assert torch.equal(some[:], train.images[chosen]) and torch.equal(labels, train.labels[chosen])
    assert isinstance(some, Streamed) == (in_memory == "no")
    rows, queries = (monitor.extract(run.method.encoder, each[:], run.normalise) for each in (some, test.images))
    assert monitor.score(run, run.method.encoder) == knn_scores(rows, labels, queries, test.labels, 3, 0.1)
    vectors = (pixels(each[:], run.normalise) for each in (some, test.images))
    assert monitor.score_pixels(run) == {
        "knn_h": monitor.knn_score(next(vectors), labels, next(vectors), test.labels, 3, 0.1)
    }


def test_the_limit_of_decoding_stands_beside_the_steps(images: Path, tmp_path: Path) -> None:
    library = opened(tmp_path, images, "no").batches.images.library  # type: ignore[union-attr]
    library.images_per_s = 1500.0
    start = "decoding alone 1,500 images/s, a step without waiting for images "
    assert monitor.loader_and_step(library, 900.4) == f"{start}900: training does not wait for its images"
    assert monitor.loader_and_step(library, 1600.0).startswith(f"{start}1,600: decoding is the limit; more cores")
