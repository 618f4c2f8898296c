"""The workers that decode: order, reuse, what happens when one dies, and that none is left over."""

import multiprocessing
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from PIL import Image

from mixfast.data.loader import ImageFiles, Library
from mixfast.data.streamed import Streamed
from mixfast.errors import DataError
from tests.tiny_run import script_in_child

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
SIZE, COUNT = 600, 40  # a worker takes four such images at once


@pytest.fixture(scope="module")
def names(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Files of one grey level each, which is their number."""
    root = tmp_path_factory.mktemp("levels")
    for level in range(COUNT):
        Image.new("RGB", (SIZE, SIZE), (level,) * 3).save(root / f"{level:02}.png", compress_level=1)
    return [str(path) for path in sorted(root.iterdir())]


def make(names: list[str]) -> Library:
    return Library(ImageFiles(SIZE), names, 2)


def levels(batch: torch.Tensor) -> list[int]:
    assert (batch == batch[:, :1, :1, :1]).all()
    return batch[:, 0, 0, 0].tolist()


def workers() -> set[int]:
    return {child.pid for child in multiprocessing.active_children() if child.pid is not None}


def running(pid: int) -> bool:
    """Whether a process runs; one that has ended and waits for its parent does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def eventually(condition: Callable[[], bool]) -> bool:
    deadline = time.monotonic() + 30
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.02)
    return condition()


def test_batches_come_in_order_and_stay_what_they_are(names: list[str], rng: torch.Generator) -> None:
    """Larger and smaller than what a worker takes at once."""
    parts = [torch.randint(COUNT, (size,), generator=rng) for size in (8, 1, 7, 9, 0, 3, 2)]
    kept = list(make(names).read(parts, torch.device("cpu")))
    assert [levels(batch) for batch in kept] == [part.tolist() for part in parts]


def test_readers_share_the_workers(names: list[str]) -> None:
    """One after the other, one that is left, and two at once."""
    before, images = workers(), Streamed(make(names), torch.arange(COUNT))
    assert list(images.read([])) == [] and workers() == before
    assert levels(torch.cat(list(images.split(16)))) == list(range(COUNT))
    first = workers() - before
    assert len(first) == 2
    for batch in images.split(3):
        assert levels(batch) == [0, 1, 2]
        break
    del batch
    half = images.split(8)
    next(half)
    assert levels(torch.cat(list(images.take(slice(5, 9)).split(2)))) == [5, 6, 7, 8]
    assert levels(torch.cat(list(half))) == list(range(8, COUNT))
    assert workers() - before == first
    del images, half
    assert eventually(lambda: not any(map(running, first)))


def test_a_global_generator_is_left_alone(names: list[str]) -> None:
    """A method may draw from it, and a run in memory would not have moved it."""
    images, state = Streamed(make(names), torch.arange(4)), torch.get_rng_state()
    for _ in range(2):
        assert len(list(images.split(4))) == 1
    assert torch.equal(torch.get_rng_state(), state)


def test_a_worker_that_is_killed_is_an_error_and_no_hang(names: list[str]) -> None:
    before, library = workers(), make(names)
    iterator = library.read([torch.arange(4)] * 2000, torch.device("cpu"))
    next(iterator)
    for pid in workers() - before:
        os.kill(pid, signal.SIGKILL)
    with pytest.raises(DataError, match=r"a process that decodes images has died: .*--data\.workers"):
        list(iterator)
    again = Streamed(library, torch.arange(3)).split(3)
    assert levels(next(again)) == [0, 1, 2]


def test_signals_for_the_whole_group_do_not_reach_the_workers(names: list[str]) -> None:
    before, images = workers(), Streamed(make(names), torch.arange(8))
    for _ in range(3):
        assert levels(torch.cat(list(images.split(4)))) == list(range(8))
        for pid in workers() - before:
            os.kill(pid, signal.SIGINT)
            os.kill(pid, signal.SIGTERM)
    assert len(workers() - before) == 2


def test_no_other_process_of_the_group_obeys_a_stop_signal(names: list[str]) -> None:
    """Nor does the server of the workers: without it they count as dead as soon as the reader has to wait."""
    code = f"""
import os, signal
from pathlib import Path
import torch
from mixfast.data.loader import ImageFiles, Library
names = [str(path) for path in sorted(Path({str(Path(names[0]).parent)!r}).iterdir())]
next(Library(ImageFiles(8), names, 1).read([torch.arange(4)], torch.device("cpu")))
others = 0
for path in Path("/proc").glob("[0-9]*"):
    try:
        status = dict(line.split(":", 1) for line in (path / "status").read_text().splitlines())
        inside = os.getpgid(int(path.name)) == os.getpid() != int(path.name)
    except (OSError, ValueError):
        continue
    if inside:
        others += 1
        deaf = int(status["SigBlk"], 16) | int(status["SigIgn"], 16)
        assert all(deaf >> (number - 1) & 1 for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)), status
assert others >= 2, others  # a worker and the server
"""
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=200, start_new_session=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("end", ["os.kill(os.getpid(), signal.SIGKILL)", "sys.exit(3)"])
def test_workers_end_with_the_process_that_started_them(end: str, names: list[str], tmp_path: Path) -> None:
    """However it ends: here by itself or by a signal, while they are at work."""
    code = f"""
import multiprocessing, os, signal, sys
from pathlib import Path
import torch
from mixfast.data.loader import ImageFiles, Library
multiprocessing.set_forkserver_preload(["mixfast.data.loader"])
names = [str(path) for path in sorted(Path({str(Path(names[0]).parent)!r}).iterdir())]
library = Library(ImageFiles(600), names, 2)
for number, _ in enumerate(library.read([torch.arange(4)] * 2000, torch.device("cpu"))):
    if number == 2:
        print(*(child.pid for child in multiprocessing.active_children()), flush=True)
        {end}
"""
    if "exit" in end:  # of an interpreter of its own, which has more to do at its end than a forked child
        done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=100)
        assert (done.returncode, done.stderr) == (3, "")
        printed = done.stdout
    else:
        script, log = tmp_path / "script.py", tmp_path / "log"
        script.write_text(code)
        assert script_in_child(script, [], log) == -signal.SIGKILL, log.read_text()
        printed = log.read_text().splitlines()[0]  # below, Python's resource tracker may say that it cleans up
    pids = [int(word) for word in printed.split()]
    assert len(pids) == 2 and eventually(lambda: not any(map(running, pids)))
